"""Records in, rows out: one row for an algorithm on a backbone, on one target or overall."""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medbench.briefs import Brief, Setting, brief_of
from medbench.leaderboard.costs import ladder, with_fronts
from medbench.leaderboard.failures import over_datasets, worst_case
from medbench.leaderboard.gains import with_gains
from medbench.leaderboard.grouped import require_counted, with_groups
from medbench.leaderboard.intervals import Findings, Intervals
from medbench.leaderboard.model import Board, Row, RowKey, Table, Verdict
from medbench.leaderboard.names import LOWER, MATTERS
from medbench.records import Record
from medbench.shelf import Interval, Judged, spread
from medbench.stats import Estimate

__all__ = ["Board", "Row", "Table", "build_board"]

Method = Literal["percentile", "bca", "groups"]

_COSTS = (
    "adaptation_s",
    "adaptation_p95_s",
    "adaptation_iqr_s",
    "prediction_s",
    "feature_s",
    "peak_host_bytes",
    "peak_host_added_bytes",
    "peak_device_bytes",
    "peak_device_reserved_bytes",
    "energy_j",
    "parameters_adapted",
    "model_bytes",
    "train_s",
    "train_images",
)


@dataclass(frozen=True)
class _Place:
    """Which table a record belongs to."""

    protocol: str
    sources: tuple[str, ...]
    hardware: str
    target: str
    way: int
    shot: int
    data: str


def build_board(
    records: Iterable[Record | Brief],
    metric: str = "accuracy",
    known: Mapping[str, Interval] | None = None,
    used: MutableMapping[str, Interval] | None = None,
    *,
    method: Method = "percentile",
    matters: float = MATTERS,
    known_verdicts: Mapping[str, Judged] | None = None,
    used_verdicts: MutableMapping[str, Judged] | None = None,
) -> Board:
    """Group records into tables: per target and shot, then overall for every protocol.

    Rows that were trained on other sources, tested on other data, or timed on other hardware,
    stand in other tables. Intervals and verdicts found among the `known` ones are not computed
    again; those of this board are put into `used`. `matters` is the smallest difference that
    would matter. Raises `DataError` for records without `metric`, or whose scores were changed, and
    `UsageError` for intervals over groups of another metric, or of records without groups.
    """
    if method == "groups":
        require_counted(metric)
    briefs = [r if isinstance(r, Brief) else brief_of(r) for r in records]
    groups = _grouped(briefs)
    intervals = Intervals(
        metric,
        known or {},
        {} if used is None else used,
        "bca" if method == "bca" else "percentile",
        known_verdicts or {},
        {} if used_verdicts is None else used_verdicts,
    )
    order = sorted(
        groups,
        key=lambda p: (p.protocol, p.target, p.way, p.shot, str(p.sources), p.hardware, p.data),
    )
    variants: dict[tuple[str, str], set[str]] = defaultdict(set)
    protocols: dict[tuple[str, str], list[_Place]] = defaultdict(list)
    for place in order:
        protocols[place.protocol, place.hardware].append(place)
        variants[place.protocol, place.target].add(place.data)
    tables: dict[_Place, Table] = {}
    totals: list[Table] = []
    for (protocol, hardware), places in protocols.items():
        rows = [groups[p] for p in places]
        complete = [_complete(r) for r in rows]
        found = _found(intervals, complete, method)
        for i, place in enumerate(places):
            lines = _rows([rows[i]], found.alone[i], found.verdicts[i], metric)
            tables[place] = Table(
                protocol,
                place.target,
                place.way,
                place.shot,
                place.sources,
                hardware,
                metric,
                tuple(with_gains(_placed(lines, metric), [complete[i]], metric)),
                # Named only where one target was tested on different data.
                data=place.data if len(variants[protocol, place.target]) > 1 else "",
                n_pairs=_n_pairs(found.verdicts[i]),
                within=ladder(lines, metric),
            )
        if len(places) > 1:
            names = [p.target for p in places]
            here = [tables[p] for p in places]
            totals += _totals(intervals, method, rows, complete, found, here, names)
    # What was not read for an interval is still held against its digest.
    spread(Brief.verify, [b for b in briefs if b.ok and not b.verified])
    licences: dict[str, str] = {}
    for setting in dict.fromkeys(b.setting for b in briefs):
        licences |= dict(setting.licences)
    everything = (*(tables[p] for p in order), *totals)
    covers = sorted({r.score.covers for t in everything for r in t.rows if r.score})
    return Board(everything, licences, len(briefs), metric, matters, tuple(covers), method)


def _found(
    intervals: Intervals, tables: Sequence[Mapping[RowKey, list[Brief]]], method: Method
) -> Findings:
    found = intervals.findings(tables)
    return with_groups(found, tables) if method == "groups" else found


def _totals(
    intervals: Intervals,
    method: Method,
    rows: Sequence[Mapping[RowKey, list[Brief]]],
    complete: Sequence[Mapping[RowKey, list[Brief]]],
    found: Findings,
    tables: Sequence[Table],
    names: Sequence[str],
) -> list[Table]:
    """The tables over all targets; where cells failed, also by the two other rules for these."""
    metric, first = intervals.metric, tables[0]

    def table(lines: Iterable[Row], verdicts: Mapping[RowKey, Verdict], **more: Any) -> Table:
        kept = tuple(lines)
        return Table(
            first.protocol, "", None, None, (), first.hardware, metric, kept,
            n_pairs=_n_pairs(verdicts), within=ladder(kept, metric), **more,
        )  # fmt: skip

    lines = _ranked(_rows(rows, found.overall, found.overall_verdicts, metric), tables)
    lines = with_gains(lines, complete, metric)
    scored = [r.key for r in lines if r.score is not None]
    across = over_datasets(names, found.alone, scored, metric)
    totals = [
        table(
            lines,
            found.overall_verdicts,
            n_targets=len(rows),
            across=across,
            across_rows=tuple(scored) if across else (),
        )
    ]
    if not any(not b.ok for group in rows for members in group.values() for b in members):
        return totals
    whole = [i for i, group in enumerate(rows) if len(complete[i]) == len(group)]
    if len(whole) > 1:
        again = _found(intervals, [complete[i] for i in whole], method)
        some = [rows[i] for i in whole]
        kept = _rows(some, again.overall, again.overall_verdicts, metric)
        totals.append(
            table(
                with_gains(
                    _ranked(kept, [tables[i] for i in whole]),
                    [complete[i] for i in whole],
                    metric,
                ),
                again.overall_verdicts,
                rule="complete cases",
                n_targets=len(whole),
            )
        )
    worst = worst_case(intervals, rows, complete)
    if worst is not None:
        scores, verdicts, ranks = worst
        worse = [
            dataclasses.replace(r, mean_rank=ranks.get(r.key))
            for r in _rows(rows, scores, verdicts, metric)
        ]
        totals.append(table(worse, verdicts, rule="worst case", n_targets=len(rows)))
    return totals


def _n_pairs(verdicts: Mapping[RowKey, Verdict]) -> int:
    return len(verdicts) * (len(verdicts) - 1) // 2


def _grouped(briefs: Sequence[Brief]) -> dict[_Place, dict[RowKey, list[Brief]]]:
    """The records of every row of every table."""
    machines: dict[tuple[str, int], set[str]] = defaultdict(set)
    for s in {b.setting for b in briefs if b.ok}:
        machines[s.protocol, s.protocol_version].add(str(s.hardware))
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
            # A failed record names neither hardware nor sources; it joins the others where it can.
            known = machines[s.protocol, s.protocol_version]
            elsewhere = next(iter(known)) if len(known) == 1 else "unknown"
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
                s.data,
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
    groups: Sequence[Mapping[RowKey, list[Brief]]],
    scores: Mapping[RowKey, Estimate],
    verdicts: Mapping[RowKey, Verdict],
    metric: str,
) -> tuple[Row, ...]:
    """Rows over one target, or over several; best first, those without a score last."""
    keys = dict.fromkeys(key for group in groups for key in group)
    rows = [
        _row(key, [g.get(key, []) for g in groups], scores.get(key), verdicts.get(key))
        for key in keys
    ]
    sign = 1 if metric in LOWER else -1
    ordered = sorted(
        rows,
        key=lambda r: (
            r.score is None,
            sign * (r.score.mean if r.score else 0.0),
            r.algorithm,
            r.backbone,
        ),
    )
    return with_fronts(ordered, metric)


def _row(
    key: RowKey, members: list[list[Brief]], score: Estimate | None, verdict: Verdict | None
) -> Row:
    everything = [b for target in members for b in target]
    ok = [b for b in everything if b.ok]
    failed = [b for b in everything if not b.ok]
    settings = {id(b.setting): b.setting for b in ok}.values()
    costs: dict[str, Any] = {
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
        weights=tuple(sorted({b.own.weights for b in everything if b.own.weights is not None})),
        # Over several targets they are those of the targets' rows.
        records=tuple(sorted(b.own.name for b in everything)) if len(members) == 1 else (),
        targets_ok=sum(bool(target) and all(b.ok for b in target) for target in members),
        targets=len(members),
        verdict=verdict,
        reference=any(not s.uses_support for s in settings),
        **costs,
    )


def _placed(rows: Sequence[Row], metric: str) -> list[Row]:
    """Rows of one target with their rank; ties share a rank, failures rank last."""
    sign = -1.0 if metric in LOWER else 1.0
    means = [sign * r.score.mean if r.score else -math.inf for r in rows]
    in_order = sorted(means)
    found = []
    for row, mean in zip(rows, means, strict=True):
        better = len(means) - bisect_right(in_order, mean)
        equal = len(means) - better - bisect_left(in_order, mean)
        found.append(dataclasses.replace(row, mean_rank=better + (equal + 1) / 2))
    return found


def _ranked(rows: Sequence[Row], tables: Sequence[Table]) -> list[Row]:
    """Rows with the mean of their ranks in `tables`; None where one does not have the row."""
    ranks: dict[RowKey, list[float]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            assert row.mean_rank is not None
            ranks[row.key].append(row.mean_rank)
    return [
        dataclasses.replace(r, mean_rank=float(np.mean(own)) if len(own) == len(tables) else None)
        for r in rows
        for own in [ranks[r.key]]
    ]


def _median(values: Sequence[float]) -> float | None:
    # As numpy's, without its cost for three numbers.
    return statistics.median(values) if values else None
