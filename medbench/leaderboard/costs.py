"""Views of what accuracy costs: Pareto fronts, and the best within a budget.

Within one table all times were taken on one class of hardware; nothing here looks across tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from medbench.leaderboard.model import Row, Within
from medbench.leaderboard.names import LOWER


def with_fronts(rows: Sequence[Row], metric: str) -> tuple[Row, ...]:
    """The rows, marked where no other is at least as good and as cheap, and better in one."""
    time = _front(rows, metric, lambda r: r.adaptation_s)
    memory = _front(rows, metric, lambda r: r.memory_bytes)
    return tuple(
        dataclasses.replace(r, pareto_time=i in time, pareto_memory=i in memory)
        for i, r in enumerate(rows)
    )


def _front(rows: Sequence[Row], metric: str, cost: Callable[[Row], float | None]) -> set[int]:
    points = [
        (spent, -_goodness(r, metric), i)
        for i, r in enumerate(rows)
        if r.score is not None and (spent := cost(r)) is not None
    ]
    found: set[int] = set()
    best, at = math.inf, math.inf
    for spent, badness, i in sorted(points):
        # An equal of a row on the front, in cost and score, stands on it too.
        if badness < best or (badness == best and spent == at):
            found.add(i)
            best, at = badness, spent
    return found


def best_within(
    rows: Sequence[Row], metric: str, time_s: float | None, memory_bytes: float | None
) -> Within:
    """The row with the best score among those within both budgets; None means no limit.

    A row whose cost was not measured is within no limit.
    """

    def affordable(value: float | None, limit: float | None) -> bool:
        return limit is None or (value is not None and value <= limit)

    fit = [
        r
        for r in rows
        if r.score is not None
        and affordable(r.adaptation_s, time_s)
        and affordable(r.memory_bytes, memory_bytes)
    ]
    best = max(fit, key=lambda r: _goodness(r, metric), default=None)
    if best is None or best.score is None:
        return Within(time_s, memory_bytes, None, None, None)
    return Within(time_s, memory_bytes, best.algorithm, best.backbone, best.score.mean)


def ladder(rows: Sequence[Row], metric: str) -> tuple[Within, ...]:
    """The best within 1, 10, 100 ms and so on, and within 1, 4, 16 MiB and so on.

    From the first budget that any row meets to the first that all meet.
    """
    scored = [r for r in rows if r.score is not None]
    times = _steps([r.adaptation_s for r in scored], 1e-3, 10.0)
    sizes = _steps([r.memory_bytes for r in scored], 2.0**20, 4.0)
    return tuple(best_within(rows, metric, t, None) for t in times) + tuple(
        best_within(rows, metric, None, m) for m in sizes
    )


def _steps(values: Sequence[float | None], unit: float, factor: float) -> list[float]:
    known = [v for v in values if v is not None]
    if not known:
        return []
    found, step = [], unit
    while True:
        if step >= min(known):
            found.append(step)
        if step >= max(known):
            return found
        step = unit * factor ** round(math.log(step * factor / unit, factor))


def _goodness(row: Row, metric: str) -> float:
    if row.score is None:
        return -math.inf
    return -row.score.mean if metric in LOWER else row.score.mean
