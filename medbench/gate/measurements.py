"""What a gate knows of one side: cells, their scores, and one or more rounds of their costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Identity = tuple[Any, ...]

# What a time is made of: the stages that a table prints as one.
STAGES = {
    "adaptation_s": ("support_feature_s", "adapt_s"),
    "prediction_s": ("query_feature_s", "predict_s"),
}
# What the process waited for a core within them.
WAITS = {"adaptation_s": "adaptation_wait_s", "prediction_s": "prediction_wait_s"}
CALIBRATIONS = ("matmul_s", "stream_s", "dispatch_s")
_IDENTITY = (
    "protocol",
    "target",
    "way",
    "shot",
    "backbone",
    "backbone_label",
    "algorithm",
    "algorithm_label",
    "seed",
)


def cell_identity(cell: Mapping[str, Any]) -> Identity:
    """What pairs a cell with itself on the other side; versions of protocols are held apart."""
    return tuple(cell.get(k) for k in _IDENTITY)


def cell_title(cell: Mapping[str, Any]) -> str:
    """A cell's name as ``medbench run --only`` knows it."""
    backbone = cell.get("backbone_label") or cell["backbone"]
    algorithm = cell.get("algorithm_label") or cell["algorithm"]
    return f"{cell['target']} / {backbone} / {algorithm} / seed{cell['seed']}"


@dataclass(frozen=True)
class Round:
    """The costs that one process measured.

    ``times`` are seconds of every episode in order; a record of an older medbench has one number,
    its median. ``waits`` are the seconds of them spent waiting for a core, empty where not known.
    ``calibration`` is seconds by kind of work, at the start and the end; empty where
    there was none. ``memory`` holds what was measured, in bytes.
    """

    created: str
    times: Mapping[str, tuple[float, ...]]
    waits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration_version: int | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    load: float | None = None


@dataclass(frozen=True)
class CellResult:
    """One cell on one side.

    ``scores`` ``(n_episodes,)`` are those of the compared metric, means over rounds where rounds
    differ, which ``wobble`` tells: the standard deviation of a round's mean.
    """

    cell: Mapping[str, Any]
    status: str
    error: str = ""
    scores: tuple[float, ...] = ()
    wobble: float = 0.0
    episodes: str = ""
    data: str = ""
    training: bool = False
    hardware: str | None = None
    torch: str = ""
    rounds: tuple[Round, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cell was measured."""
        return self.status == "ok"

    @property
    def identity(self) -> Identity:
        """What pairs it with the other side."""
        return cell_identity(self.cell)

    @property
    def title(self) -> str:
        """Its name in reports."""
        return cell_title(self.cell)


@dataclass(frozen=True)
class Side:
    """All that one side measured, and what it had planned and did not measure."""

    name: str
    cells: Mapping[Identity, CellResult]
    unmeasured: tuple[str, ...] = ()
    metric: str = "accuracy"
    commit: str | None = None
    created: str = ""
    suite: str | None = None

    @property
    def n_planned(self) -> int:
        """How many cells were to be measured."""
        return len(self.cells) + len(self.unmeasured)
