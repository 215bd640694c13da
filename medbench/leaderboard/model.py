"""What a leaderboard is: rows in tables, and what a reader must know to judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medbench.stats import AcrossDatasets, Estimate

RowKey = tuple[str, str]
# In larger tables rows are compared with the best alone: pairs grow with the square of rows.
ALL_PAIRS = 100


@dataclass(frozen=True)
class Verdict:
    """How a row stands to the others of its table, by paired tests on shared episodes.

    ``group``: letters; rows that share one are tied. ``p``: that the best row is as good, after
    Holm's correction for all pairs of the table; None for the best itself. ``difference`` to the
    best with its interval, in the metric's unit. ``rank_low`` and ``rank_high``: the ranks (in a
    table over targets, mean ranks) that the tests leave open. ``p_best``: the share of bootstrap
    replicates in which the row is the best.
    """

    group: str
    p: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    rank_low: float | None = None
    rank_high: float | None = None
    p_best: float | None = None


@dataclass(frozen=True)
class Gain:
    """What a row gains over one of the same backbone that adapts to nothing, above zero if better.

    The mean difference on shared episodes with its interval, in the metric's unit; ``p`` of the
    paired test, after Holm's correction for the rows compared with ``reference``.
    """

    reference: str
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Row:
    """One line of a table; costs are medians over seeds of what each cell measured.

    Times are of one episode: adaptation from raw support images to a classifier, prediction from
    raw query images to scores, ``feature_s`` the part of both that extracts features.
    ``reference``: it adapts to nothing, and ``gains`` are over such rows.
    """

    algorithm: str
    backbone: str
    transductive: bool
    score: Estimate | None
    n_ok: int
    n_failed: int
    failures: Mapping[str, int]
    errors: tuple[str, ...]
    n_episodes: int
    adaptation_s: float | None = None
    adaptation_p95_s: float | None = None
    adaptation_iqr_s: float | None = None
    prediction_s: float | None = None
    feature_s: float | None = None
    peak_host_bytes: float | None = None
    peak_host_added_bytes: float | None = None
    peak_device_bytes: float | None = None
    peak_device_reserved_bytes: float | None = None
    energy_j: float | None = None
    parameters_adapted: float | None = None
    model_bytes: float | None = None
    train_s: float | None = None
    train_images: float | None = None
    overlap: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    targets_ok: int = 1
    targets: int = 1
    mean_rank: float | None = None
    verdict: Verdict | None = None
    reference: bool = False
    gains: tuple[Gain, ...] = ()
    pareto_time: bool = False
    pareto_memory: bool = False

    @property
    def key(self) -> RowKey:
        """What tells the row from others of its table."""
        return self.algorithm, self.backbone

    @property
    def memory_bytes(self) -> float | None:
        """Peak memory of adapting and predicting: of the device, or added on the host."""
        known = self.peak_device_bytes
        return self.peak_host_added_bytes if known is None else known

    @property
    def tied_with_best(self) -> bool:
        """Whether no test tells the row from the best of its table."""
        return self.verdict is not None and "a" in self.verdict.group


@dataclass(frozen=True)
class Within:
    """The best row of a table whose adaptation takes at most so long and so much memory."""

    time_s: float | None
    memory_bytes: float | None
    algorithm: str | None
    backbone: str | None
    mean: float | None


@dataclass(frozen=True)
class Table:
    """The rows of one target, or of all targets of one protocol (``target`` is empty).

    ``rule``: how failed cells enter a table over targets: not at all (empty), ``complete cases``
    (targets on which no row failed) or ``worst case`` (a failed cell scores, in every episode, as
    the worst measured row). ``n_pairs``: the comparisons that p values are corrected for.
    """

    protocol: str
    target: str
    way: int | None
    shot: int | None
    sources: tuple[str, ...]
    hardware: str
    metric: str
    rows: tuple[Row, ...]
    data: str = ""
    rule: str = ""
    n_targets: int = 1
    n_pairs: int = 0
    within: tuple[Within, ...] = ()
    across: AcrossDatasets | None = None
    across_rows: tuple[RowKey, ...] = ()

    @property
    def title(self) -> str:
        """What the table compares, in one line."""
        if not self.target:
            what = f"overall, {self.rule}" if self.rule else "overall"
            return f"{self.protocol}: {what} ({self.n_targets} targets)"
        data = f", data {self.data[:8]}" if self.data else ""
        return f"{self.protocol}: {self.target}, {self.way}-way {self.shot}-shot{data}"


@dataclass(frozen=True)
class Board:
    """All tables, and what a reader must know to judge them.

    ``matters``: the smallest difference of the metric that would matter to a user.
    """

    tables: tuple[Table, ...]
    licences: Mapping[str, str]
    n_records: int
    metric: str
    matters: float
    covers: tuple[str, ...] = field(default=())
    method: str = "percentile"

    @property
    def hardware(self) -> tuple[str, ...]:
        """The classes of machines that times were taken on."""
        return tuple(sorted({t.hardware for t in self.tables}))
