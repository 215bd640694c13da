"""The words of a gate: what a comparison of one cell's metric came to, and of the whole."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from medbench.gate.thresholds import Kind


class Verdict(enum.Enum):
    """What a comparison came to."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    EQUIVALENT = "equivalent"
    CANNOT_TELL = "cannot tell"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell on both sides.

    ``effect``, ``low`` and ``high`` are the change from before to after: a difference for
    accuracy, a ratio less one for times and memory. ``p`` is two-sided; None where nothing is left
    to chance. ``worse`` is the sign of an effect that is bad.
    """

    title: str
    metric: str
    kind: Kind
    before: float | None
    after: float | None
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    note: str = ""
    p_adjusted: float | None = None
    n: int = 0
    margin: float = 0.0
    smallest: float = 0.0
    too_small: bool = False

    @property
    def worse(self) -> int:
        """The sign of a change for the worse."""
        return -1 if self.kind == "accuracy" else 1


@dataclass(frozen=True)
class CellTrouble:
    """A cell that could not be compared, or whose status changed."""

    title: str
    what: str
    """``missing``, ``new``, ``failed``, ``repaired``, ``failed before and now``, ``other``."""
    message: str
    fatal: bool


@dataclass(frozen=True)
class Outcome:
    """The verdict on a whole: every comparison, every cell with a trouble, and what follows."""

    comparisons: tuple[Comparison, ...]
    troubles: tuple[CellTrouble, ...]
    notices: tuple[str, ...]
    exit_code: int
    headline: str
    reproduce: str = ""
    before: str = ""
    after: str = ""
    n_cells: int = 0
    family_error: float = 0.01
    reasons: tuple[str, ...] = field(default=())

    def having(self, *verdicts: Verdict) -> list[Comparison]:
        """The comparisons with one of `verdicts`."""
        return [c for c in self.comparisons if c.verdict in verdicts]


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being the smallest of many (Holm 1979), in the order given.

    >>> [round(v, 3) for v in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    found = [1.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        found[i] = largest
    return found
