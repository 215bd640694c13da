"""Records in, rows out: one row for an algorithm on a backbone, on one target or overall."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.errors import DataError
from medbench.records import Record
from medbench.stats import Estimate, estimate

RowKey = tuple[str, str]


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


def build_board(records: Iterable[Record], metric: str = "accuracy") -> Board:
    """Group records into tables: per target and shot, then overall for every protocol.

    Rows that were trained on other sources, or timed on other hardware, stand in other tables.
    Raises `DataError` for records without `metric`.
    """
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    everything = list(records)
    hardware_of = _hardware(everything)
    sources_of = _sources(everything)
    for record in everything:
        cell = record.cell
        target = str(cell["target"]).rpartition(":")[0]
        protocol = f"{cell['protocol']} v{cell['protocol_version']}"
        key = (
            protocol,
            sources_of[id(record)],
            hardware_of[id(record)],
            target,
            cell["way"],
            cell["shot"],
        )
        groups[key].append(record)
    scores: dict[int, NDArray[np.float64]] = {id(r): _scores(r, metric) for r in everything if r.ok}
    tables: list[Table] = []
    overall: dict[tuple[Any, ...], list[tuple[Table, list[Record]]]] = defaultdict(list)
    for key in sorted(groups, key=lambda k: (k[0], k[3], k[4], k[5], str(k[1]), k[2])):
        protocol, sources, hardware, target, way, shot = key
        rows = _rows([groups[key]], scores)
        table = Table(protocol, target, way, shot, sources, hardware, metric, rows)
        tables.append(table)
        overall[(protocol, hardware)].append((table, groups[key]))
    totals = []
    for (protocol, hardware), members in overall.items():
        if len(members) < 2:
            continue
        rows = _rows([group for _, group in members], scores)
        rows = tuple(_ranked(rows, [table for table, _ in members]))
        totals.append(Table(protocol, "", None, None, (), hardware, metric, rows))
    licences: dict[str, str] = {}
    for record in everything:
        licences |= record.data.get("licences", {})
    covers = sorted({r.score.covers for t in tables for r in t.rows if r.score})
    return Board((*tables, *totals), licences, len(everything), metric, tuple(covers))


def _hardware(records: Sequence[Record]) -> dict[int, str]:
    """The hardware class of each record; a failed one, which has none, joins where it can."""
    known = sorted({r.data["hardware"]["class"] for r in records if r.ok})
    return {
        id(r): r.data["hardware"]["class"] if r.ok else (known[0] if len(known) == 1 else "unknown")
        for r in records
    }


def _sources(records: Sequence[Record]) -> dict[int, tuple[str, ...]]:
    """The source datasets of each record; a failed one, which names none, joins its target's."""
    seen: dict[tuple[Any, ...], set[tuple[str, ...]]] = defaultdict(set)

    def place(record: Record) -> tuple[Any, ...]:
        cell = record.cell
        return cell["protocol"], cell["protocol_version"], cell["target"]

    for record in records:
        if "sources" in record.cell:
            seen[place(record)].add(tuple(record.cell["sources"]))
    found = {}
    for record in records:
        if "sources" in record.cell:
            found[id(record)] = tuple(record.cell["sources"])
        else:
            options = seen[place(record)]
            found[id(record)] = next(iter(options)) if len(options) == 1 else ()
    return found


def _scores(record: Record, metric: str) -> NDArray[np.float64]:
    scores = record.scores()
    if metric not in scores:
        raise DataError(f"{record.path}: no metric {metric!r}; it has {', '.join(scores)}.")
    return scores[metric]


def _rows(
    groups: Sequence[list[Record]], scores: Mapping[int, NDArray[np.float64]]
) -> tuple[Row, ...]:
    """Rows over one target, or over several; best first, those without a score last."""
    by_row: dict[RowKey, list[list[Record]]] = defaultdict(lambda: [[] for _ in groups])
    for i, group in enumerate(groups):
        for record in group:
            cell = record.cell
            key = (
                str(cell.get("algorithm_label", cell["algorithm"])),
                str(cell.get("backbone_label", cell["backbone"])),
            )
            by_row[key][i].append(record)
    rows = [_row(key, members, scores) for key, members in by_row.items()]
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


def _row(
    key: RowKey, members: list[list[Record]], scores: Mapping[int, NDArray[np.float64]]
) -> Row:
    everything = [r for target in members for r in target]
    ok = [r for r in everything if r.ok]
    failed = [r for r in everything if not r.ok]
    # Only targets with all their seeds count: a mean over the seeds that happened to end well
    # would flatter a method that often fails.
    complete = [
        sorted(target, key=lambda r: int(r.cell["seed"]))
        for target in members
        if target and all(r.ok for r in target)
    ]
    score = None
    seeds = {tuple(int(r.cell["seed"]) for r in target) for target in complete}
    if len(complete) == len(members) and len(seeds) == 1:
        lengths = [min(len(scores[id(r)]) for r in target) for target in complete]
        score = estimate(
            [
                np.stack([scores[id(r)][:n] for r in target])
                for target, n in zip(complete, lengths, strict=True)
            ]
        )

    def cost(*path: str) -> float | None:
        return _median(_dig(r.data, path) for r in ok)

    return Row(
        algorithm=key[0],
        backbone=key[1],
        transductive=any(r.data.get("traits", {}).get("transductive") for r in ok),
        score=score,
        n_ok=len(ok),
        n_failed=len(failed),
        failures=dict(Counter(str(r.data["status"]) for r in failed)),
        errors=tuple(dict.fromkeys(str(r.data.get("error", "")) for r in failed)),
        n_episodes=score.n_episodes if score else 0,
        adaptation_s=cost("costs", "times", "adaptation_s", "median"),
        adaptation_p95_s=cost("costs", "times", "adaptation_s", "p95"),
        prediction_s=cost("costs", "times", "prediction_s", "median"),
        peak_host_bytes=cost("costs", "memory", "peak_host_bytes"),
        peak_host_added_bytes=cost("costs", "memory", "peak_host_added_bytes"),
        peak_device_bytes=cost("costs", "memory", "peak_device_bytes"),
        parameters_adapted=cost("costs", "parameters_adapted"),
        train_s=cost("training", "train_s"),
        train_images=cost("training", "images_seen"),
        overlap=tuple(sorted({o for r in ok for o in r.data.get("overlap", ())})),
        targets_ok=len(complete),
        targets=len(members),
    )


def _ranked(rows: Sequence[Row], tables: Sequence[Table]) -> list[Row]:
    """Rows with their mean rank over the tables; ties share a rank, failures rank last."""
    ranks: dict[RowKey, list[float]] = defaultdict(list)
    for table in tables:
        means = {
            (r.algorithm, r.backbone): r.score.mean if r.score else -math.inf for r in table.rows
        }
        for key, mean in means.items():
            better = sum(m > mean for m in means.values())
            equal = sum(m == mean for m in means.values())
            ranks[key].append(better + (equal + 1) / 2)
    return [
        Row(
            **{
                **vars(row),
                "mean_rank": float(np.mean(ranks[row.algorithm, row.backbone]))
                if len(ranks[row.algorithm, row.backbone]) == len(tables)
                else None,
            }
        )
        for row in rows
    ]


def _dig(data: Any, path: Sequence[str]) -> Any:
    for step in path:
        if not isinstance(data, Mapping) or step not in data:
            return None
        data = data[step]
    return data


def _median(values: Iterable[Any]) -> float | None:
    found = [float(v) for v in values if v is not None]
    return float(np.median(found)) if found else None
