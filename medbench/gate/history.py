"""Many runs in order of time: one series for each metric of each cell, and its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medbench.errors import UsageError
from medbench.gate.measurements import STAGES, CellResult, Identity, Side
from medbench.gate.ratios import level, speed
from medbench.gate.steps import Step, find_steps
from medbench.gate.thresholds import Kind, Thresholds

# Noise that every series is believed to have at least: of log times, and of mean scores.
_LEAST_TIME, _LEAST_SCORE = 0.01, 0.0005


@dataclass(frozen=True)
class Series:
    """One metric of one cell over runs.

    ``values`` are in the metric's own unit, times as if the machine had always been as fast as in
    the median run; ``runs`` are indices into the history's runs. Steps of times and memory are
    those of logarithms.
    """

    title: str
    metric: str
    kind: Kind
    runs: tuple[int, ...]
    values: tuple[float, ...]
    steps: tuple[Step, ...]

    def before_after(self, step: Step) -> tuple[float, float]:
        """The levels on both sides of a step, in the metric's unit."""
        if self.kind == "accuracy":
            return step.before, step.after
        return math.exp(step.before), math.exp(step.after)

    def change(self, step: Step) -> tuple[float, float, float]:
        """The change and its interval: a difference for scores, a ratio less one for others."""
        found = (step.change, step.low, step.high)
        if self.kind == "accuracy":
            return found
        one, two, three = (math.expm1(v) for v in found)
        return one, two, three

    def worse(self, step: Step) -> bool:
        """Whether a step is a change for the worse."""
        return step.change < 0 if self.kind == "accuracy" else step.change > 0


@dataclass(frozen=True)
class History:
    """Runs in order, and the series over them."""

    runs: tuple[str, ...]
    created: tuple[str, ...]
    series: tuple[Series, ...]
    notices: tuple[str, ...]

    @property
    def stepped(self) -> list[tuple[Series, Step]]:
        """Every step, the latest first."""
        found = [(s, step) for s in self.series for step in s.steps]
        return sorted(found, key=lambda f: -f[0].runs[f[1].at])


def build_history(sides: Sequence[Side], thresholds: Thresholds) -> History:
    """The history of some runs. Raises `UsageError` for fewer than two."""
    if len(sides) < 2:
        raise UsageError(f"a history needs two runs at least, and there is {len(sides)}.")
    ordered = sorted(sides, key=lambda s: s.created)
    titles: dict[Identity, str] = {}
    for side in ordered:
        titles |= {k: c.title for k, c in side.cells.items() if c.ok}
    series: list[Series] = []
    notices: list[str] = []
    for identity, title in titles.items():
        made, told = _of_cell(identity, title, ordered, thresholds)
        series += made
        notices += told
    names = tuple(f"{s.commit[:12]} {s.name}" if s.commit else s.name for s in ordered)
    return History(names, tuple(s.created for s in ordered), tuple(series), tuple(notices))


def _of_cell(
    identity: Identity, title: str, sides: Sequence[Side], thresholds: Thresholds
) -> tuple[list[Series], list[str]]:
    there = [(i, s.cells[identity]) for i, s in enumerate(sides) if identity in s.cells]
    there = [(i, c) for i, c in there if c.ok]
    version = there[-1][1].cell["protocol_version"]
    same = [(i, c) for i, c in there if c.cell["protocol_version"] == version]
    notices = []
    if len(same) < len(there):
        notices.append(
            f"{title}: {len(there) - len(same)} runs of other protocol versions left out"
        )
    accuracy, time, memory = thresholds.of(title)
    found: list[Series] = []

    def add(
        metric: str, kind: Kind, cells: Sequence[tuple[int, CellResult]], value: _Value, rule: float
    ) -> None:
        pairs = [(i, v) for i, c in cells if (v := value(c)) is not None and math.isfinite(v)]
        if len(pairs) < 2:
            return
        values = np.array([v for _, v in pairs])
        scored = kind == "accuracy"
        least = _LEAST_SCORE if scored else _LEAST_TIME
        steps = find_steps(values if scored else np.log(values), least, rule)
        runs = tuple(i for i, _ in pairs)
        found.append(Series(title, metric, kind, runs, tuple(values.tolist()), tuple(steps)))

    add(accuracy.metric, "accuracy", same, _mean_score, accuracy.smallest)
    hardware = same[-1][1].hardware
    alike = [(i, c) for i, c in same if c.hardware == hardware]
    if len(alike) < len(same):
        count = len(same) - len(alike)
        notices.append(f"{title}: times and memory of {count} runs on other hardware left out")
    usual = _usual_speed([c for _, c in alike])
    for name in STAGES:
        add(name, "time", alike, _time(name, usual), math.log1p(time.smallest))
    add("tensor_bytes", "memory", alike, _tensor_bytes, math.log1p(memory.smallest))
    return found, notices


_Value = Callable[[CellResult], float | None]


def _mean_score(cell: CellResult) -> float | None:
    scores = np.asarray(cell.scores)
    scores = scores[np.isfinite(scores)]
    return float(scores.mean()) if len(scores) else None


def _tensor_bytes(cell: CellResult) -> float | None:
    found = [
        r.memory["peak_tensor_bytes"] for r in cell.rounds if r.memory.get("peak_tensor_bytes")
    ]
    return float(max(found)) if found else None


def _usual_speed(cells: Sequence[CellResult]) -> float | None:
    found = [speed(r) for c in cells for r in c.rounds if r.calibration]
    return float(np.median(found)) if found else None


def _time(name: str, usual: float | None) -> _Value:
    def value(cell: CellResult) -> float | None:
        levels = []
        for r in cell.rounds:
            if r.times.get(name):
                own = speed(r) - usual if r.calibration and usual is not None else 0.0
                levels.append(level(r, name, net=bool(r.waits.get(name))) - own)
        return math.exp(float(np.mean(levels))) if levels else None

    return value
