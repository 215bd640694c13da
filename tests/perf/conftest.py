"""Races: the work done as the field writes it against medbench's way, in one run.

``make perf`` times them. A plain ``pytest`` runs each once and small: it checks that both ways find
the same, and times nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from tabulate import tabulate

_LINES: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Machine:
    """What one thread of this machine can do at best, measured."""

    @cached_property
    def flops_per_s(self) -> float:
        """Floating-point operations a second of a large matrix product in float32."""
        n = 1024
        a, b = torch.randn(n, n), torch.randn(n, n)
        return 2 * n**3 / _fastest(lambda: a @ b)

    @cached_property
    def bytes_per_s(self) -> float:
        """Bytes a second, read and written, of a copy that no cache holds."""
        a = torch.zeros(1 << 26)
        b = torch.empty_like(a)
        return 2 * a.numel() * a.element_size() / _fastest(lambda: b.copy_(a))

    def floor_s(self, *, flops: float = 0.0, n_bytes: float = 0.0) -> float:
        """Seconds that this much arithmetic and memory traffic take at the very least."""
        return max(flops / self.flops_per_s, n_bytes / self.bytes_per_s)


def _fastest(work: Callable[[], object], rounds: int = 7) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


class Race:
    """Times two ways of doing the same work in turns, and keeps the line of the table."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark
        self.quick = bool(benchmark.disabled)
        """Whether nothing is timed; tests then take little work."""

    def __call__(
        self,
        case: str,
        *,
        ours: Callable[[], Any],
        loop: Callable[[], Any],
        n_ours: int,
        n_loop: int,
        unit: str = "episode",
        goal: float | None = None,
        floor_s: Callable[[Machine], float] | None = None,
        rounds: int = 5,
    ) -> tuple[Any, Any]:
        """What `ours` and `loop` return; they do `n_ours` and `n_loop` units of the same work.

        `goal`: the ratio of speeds that is aimed at. `floor_s`: the least seconds that one unit
        can take on a machine.
        """
        spans: list[float] = []
        found: list[Any] = []

        def race_loop() -> None:
            start = time.perf_counter()
            found[:] = [loop()]
            spans.append(time.perf_counter() - start)

        # The loop runs before each timed round, so that both see the same moods of the machine.
        result = self._benchmark.pedantic(
            ours, setup=race_loop, rounds=rounds, iterations=1, warmup_rounds=0 if self.quick else 1
        )
        if not self.quick:
            own = self._benchmark.stats.stats.data
            slow = spans[-len(own) :]
            ratios = [(a / n_loop) / (b / n_ours) for a, b in zip(slow, own, strict=True)]
            line: dict[str, Any] = {
                "case": case,
                "unit": unit,
                "loop/s": n_loop / statistics.median(slow),
                "medbench/s": n_ours / statistics.median(own),
                "ratio": statistics.median(ratios),
                "from": min(ratios),
                "to": max(ratios),
                "goal": goal,
                "floor": None,
            }
            if floor_s is not None:
                line["floor"] = floor_s(Machine()) / (statistics.median(own) / n_ours)
            self._benchmark.extra_info.update(line)
            _LINES.append(line)
        return result, found[0]


@pytest.fixture
def race(benchmark: Any) -> Race:
    """Times medbench's way against the plain loop; see `Race`."""
    return Race(benchmark)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of all races, fit for a Markdown page."""
    if not _LINES:
        return
    rows = [
        {
            "case": line["case"],
            "plain loop": f"{_figure(line['loop/s'])} {line['unit']}s/s",
            "medbench": f"{_figure(line['medbench/s'])} {line['unit']}s/s",
            "ratio (from - to)": " ".join(
                [f"{_figure(line['ratio'])}x", f"({_figure(line['from'])} - {_figure(line['to'])})"]
            ),
            "goal": f"{_figure(line['goal'])}x" if line["goal"] else "",
            "of the floor": f"{100 * line['floor']:.0f} %" if line["floor"] else "",
        }
        for line in _LINES
    ]
    terminalreporter.write_line("")
    terminalreporter.write_line(
        tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    )
