"""Whether a gate has anything to guard: scores at chance cannot get worse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medbench.gate.measurements import CellResult

_METRICS = ("accuracy", "balanced_accuracy")
# Of the way from chance to all right.
_LITTLE = 0.1


def near_chance(cells: Sequence[CellResult], metric: str) -> str:
    """What to say of the cells that answer hardly better than by guessing; empty without any."""
    measured = [c for c in cells if c.ok and c.scores]
    found = [c for c in measured if metric in _METRICS and _above(c) < _LITTLE]
    if not found:
        return ""
    worst = min(found, key=_above)
    said = (
        f"{_mean(worst):.0%} in {worst.cell['way']}-way tasks, where guessing gives "
        f"{_chance(worst):.0%}"
    )
    return (
        f"In {len(found)} of {len(measured)} cells {metric} is near chance ({said}): it can hardly "
        "get worse, so that the gate guards little there. Features of a trained network (a "
        "'trainer' in the spec, or pretrained weights) leave something to lose."
    )


def _chance(cell: CellResult) -> float:
    return 1.0 / float(cell.cell["way"])


def _mean(cell: CellResult) -> float:
    return float(np.nanmean(cell.scores))


def _above(cell: CellResult) -> float:
    chance = _chance(cell)
    return (_mean(cell) - chance) / (1.0 - chance)
