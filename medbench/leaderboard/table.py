"""Records in, rows out: one row for an algorithm on a backbone, on one target or overall."""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medbench.briefs import Brief, Setting, brief_of
from medbench.leaderboard.intervals import Intervals, RowKey
from medbench.records import Record
from medbench.shelf import Interval, spread
from medbench.stats import Estimate

_COSTS = (
    "adaptation_s",
    "adaptation_p95_s",
    "prediction_s",
    "peak_host_bytes",
    "peak_host_added_bytes",
    "peak_device_bytes",
    "parameters_adapted",
    "train_s",
    "train_images",
)


@dataclass(frozen=True)
class Row:
    """One line of a table; costs are medians over seeds of what each cell measured."""

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
    prediction_s: float | None = None
    peak_host_bytes: float | None = None
    peak_host_added_bytes: float | None = None
    peak_device_bytes: float | None = None
    parameters_adapted: float | None = None
    train_s: float | None = None
    train_images: float | None = None
    overlap: tuple[str, ...] = ()
    targets_ok: int = 1
    targets: int = 1
    mean_rank: float | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one target, or of all targets of one protocol (``target`` is empty)."""

    protocol: str
    target: str
    way: int | None
    shot: int | None
    sources: tuple[str, ...]
    hardware: str
    metric: str
    rows: tuple[Row, ...]
    budgets: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the table compares, in one line."""
        if not self.target:
            return f"{self.protocol}: overall"
        return f"{self.protocol}: {self.target}, {self.way}-way {self.shot}-shot"


@dataclass(frozen=True)
class Board:
    """All tables, and what a reader must know to judge them."""

    tables: tuple[Table, ...]
    licences: Mapping[str, str]
    n_records: int
    metric: str
    covers: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Place:
    """Which table a record belongs to."""

    protocol: str
    sources: tuple[str, ...]
    hardware: str
    target: str
    way: int
    shot: int


def build_board(
    records: Iterable[Record | Brief],
    metric: str = "accuracy",
    known: Mapping[str, Interval] | None = None,
    used: MutableMapping[str, Interval] | None = None,
) -> Board:
    """Group records into tables: per target and shot, then overall for every protocol.

    Rows that were trained on other sources, or timed on other hardware, stand in other tables.
    Intervals found among the `known` ones are not computed again; those of this board are put
    into `used`. Raises `DataError` for records without `metric`, or whose scores were changed.
    """
    briefs = [r if isinstance(r, Brief) else brief_of(r) for r in records]
    groups = _grouped(briefs)
    intervals = Intervals(metric, known or {}, {} if used is None else used)
    order = sorted(
        groups, key=lambda p: (p.protocol, p.target, p.way, p.shot, str(p.sources), p.hardware)
    )
    protocols: dict[tuple[str, str], list[_Place]] = defaultdict(list)
    for place in order:
        protocols[place.protocol, place.hardware].append(place)
    tables: dict[_Place, Table] = {}
    totals: list[Table] = []
    for (protocol, hardware), places in protocols.items():
        rows = [groups[p] for p in places]
        alone, overall = intervals.estimates([_complete(r) for r in rows])
        for place, members, found in zip(places, rows, alone, strict=True):
            lines = _rows([members], found)
            tables[place] = Table(
                protocol,
                place.target,
                place.way,
                place.shot,
                place.sources,
                hardware,
                metric,
                lines,
            )
        if len(places) > 1:
            lines = tuple(_ranked(_rows(rows, overall), [tables[p] for p in places]))
            totals.append(Table(protocol, "", None, None, (), hardware, metric, lines))
    # What was not read for an interval is still held against its digest.
    spread(Brief.verify, [b for b in briefs if b.ok and not b.verified])
    licences: dict[str, str] = {}
    for setting in dict.fromkeys(b.setting for b in briefs):
        licences |= dict(setting.licences)
    everything = (*(tables[p] for p in order), *totals)
    covers = sorted({r.score.covers for t in everything for r in t.rows if r.score})
    return Board(everything, licences, len(briefs), metric, tuple(covers))


def _grouped(briefs: Sequence[Brief]) -> dict[_Place, dict[RowKey, list[Brief]]]:
    """The records of every row of every table."""
    known = sorted({str(b.hardware) for b in briefs if b.ok})
    # A failed record names neither hardware nor sources; it joins the others where it can.
    elsewhere = known[0] if len(known) == 1 else "unknown"
    seen: dict[tuple[Any, ...], set[tuple[str, ...]]] = defaultdict(set)
    for s in {b.setting for b in briefs}:
        if s.sources is not None:
            seen[s.protocol, s.protocol_version, s.target].add(s.sources)
    places: dict[tuple[Setting, bool], _Place] = {}
    groups: dict[_Place, dict[RowKey, list[Brief]]] = {}
    for b in briefs:
        s, own = b.setting, b.own
        place = places.get((s, b.ok))
        if place is None:
            options = seen[s.protocol, s.protocol_version, s.target]
            place = places[s, b.ok] = _Place(
                f"{s.protocol} v{s.protocol_version}",
                s.sources
                if s.sources is not None
                else (next(iter(options)) if len(options) == 1 else ()),
                str(s.hardware) if b.ok else elsewhere,
                s.target.rpartition(":")[0],
                s.way,
                s.shot,
            )
        key = (str(own.algorithm_label or own.algorithm), str(own.backbone_label or own.backbone))
        groups.setdefault(place, {}).setdefault(key, []).append(b)
    return groups


def _complete(rows: Mapping[RowKey, list[Brief]]) -> dict[RowKey, list[Brief]]:
    """The rows with all their seeds, in order.

    A mean over the seeds that happened to end well would flatter a method that often fails.
    """
    return {
        key: sorted(members, key=lambda b: b.own.seed)
        for key, members in rows.items()
        if all(b.ok for b in members)
    }


def _rows(
    groups: Sequence[Mapping[RowKey, list[Brief]]], scores: Mapping[RowKey, Estimate]
) -> tuple[Row, ...]:
    """Rows over one target, or over several; best first, those without a score last."""
    keys = dict.fromkeys(key for group in groups for key in group)
    rows = [_row(key, [g.get(key, []) for g in groups], scores.get(key)) for key in keys]
    return tuple(
        sorted(
            rows,
            key=lambda r: (
                r.score is None,
                -(r.score.mean if r.score else 0.0),
                r.algorithm,
                r.backbone,
            ),
        )
    )


def _row(key: RowKey, members: list[list[Brief]], score: Estimate | None) -> Row:
    everything = [b for target in members for b in target]
    ok = [b for b in everything if b.ok]
    failed = [b for b in everything if not b.ok]
    settings = {id(b.setting): b.setting for b in ok}.values()
    costs = {
        name: _median([v for b in ok if (v := getattr(b.own, name)) is not None]) for name in _COSTS
    }
    return Row(
        algorithm=key[0],
        backbone=key[1],
        transductive=any(s.transductive for s in settings),
        score=score,
        n_ok=len(ok),
        n_failed=len(failed),
        failures=dict(Counter(b.own.status for b in failed)),
        errors=tuple(dict.fromkeys(b.own.error for b in failed)),
        n_episodes=score.n_episodes if score else 0,
        overlap=tuple(sorted({o for s in settings for o in s.overlap})),
        targets_ok=sum(bool(target) and all(b.ok for b in target) for target in members),
        targets=len(members),
        **costs,
    )


def _ranked(rows: Sequence[Row], tables: Sequence[Table]) -> list[Row]:
    """Rows with their mean rank over the tables; ties share a rank, failures rank last."""
    ranks: dict[RowKey, list[float]] = defaultdict(list)
    for table in tables:
        means = [r.score.mean if r.score else -math.inf for r in table.rows]
        in_order = sorted(means)
        for row, mean in zip(table.rows, means, strict=True):
            better = len(means) - bisect_right(in_order, mean)
            equal = len(means) - better - bisect_left(in_order, mean)
            ranks[row.algorithm, row.backbone].append(better + (equal + 1) / 2)
    found = []
    for row in rows:
        own = ranks[row.algorithm, row.backbone]
        mean_rank = float(np.mean(own)) if len(own) == len(tables) else None
        found.append(dataclasses.replace(row, mean_rank=mean_rank))
    return found


def _median(values: Sequence[float]) -> float | None:
    # As numpy's, without its cost for three numbers.
    return statistics.median(values) if values else None
