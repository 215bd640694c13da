"""The numbers of a board as a page holds them: columns of small integers, each text once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medbench.briefs import Brief
from medbench.leaderboard.gains import gain_over, references_of
from medbench.leaderboard.model import Board, Row, RowKey, Table
from medbench.leaderboard.names import METRICS
from medbench.leaderboard.notes import facts, notes
from medbench.leaderboard.numbers import score_of, shares
from medbench.leaderboard.page_facts import Facts, Pool, place_slug
from medbench.leaderboard.page_pairs import LIMIT, lower_is_better, packed_pairs
from medbench.leaderboard.page_pictures import Pictures
from medbench.records import slug
from medbench.stats import joined

# Raised when what the script of a page expects of its data changes.
SCHEMA = 1
# Pairs take what is left of so many characters of data; a page of ten thousand rows stays below
# 2 MB.
ROOM = 1_850_000
_MS, _MIB = 1e3, 2.0**-20
# Costs, with the factor to the unit that is shown and None for three significant digits.
_COSTS: dict[str, tuple[float, int | None]] = {
    "adaptation_s": (_MS, None),
    "adaptation_p95_s": (_MS, None),
    "adaptation_iqr_s": (_MS, None),
    "prediction_s": (_MS, None),
    "feature_s": (_MS, None),
    "peak_host_added_bytes": (_MIB, 1),
    "peak_device_bytes": (_MIB, 1),
    "peak_device_reserved_bytes": (_MIB, 1),
    "energy_j": (1.0, None),
    "parameters_adapted": (1.0, 0),
    "model_bytes": (_MIB, None),
    "train_s": (1.0, 0),
    "train_images": (1.0, 0),
}
Column = Callable[[Row], Any]


def page_data(
    board: Board, briefs: Sequence[Brief], folder: str, *, pictures: bool = True
) -> dict[str, Any]:
    """All that a page shows of a board, as JSON.

    `briefs` are the records that the board was made of, `folder` is that of their files as a
    command run beside the page names it.
    """
    told = Facts(folder=folder)
    references = references_of(board.tables)
    pools = {n: Pool() for n in ("algorithms", "backbones", "overlaps", "weights", "failed")}
    known = {(b.hardware if b.ok else None, b.own.name): b for b in briefs}
    tables: list[dict[str, Any]] = []
    pictured: list[dict[str, str]] = []
    shown = Pictures()
    inside: dict[tuple[str, str], list[tuple[Table, list[list[Brief]]]]] = defaultdict(list)
    for table in board.tables:
        members = [
            [
                b
                for n in row.records
                if (b := known.get((table.hardware, n)) or known.get((None, n)))
            ]
            for row in table.rows
        ]
        same = inside[table.protocol, table.hardware]
        if table.target:
            same.append((table, members))
        # Tables over targets come after these, and have the licences of all of them.
        used: dict[RowKey, list[Brief]] = defaultdict(list)
        for one, its in [(table, members)] if table.target else same:
            for row, own in zip(one.rows, its, strict=True):
                used[row.key] += own
        tables.append(_table(table, members, used, told, pools, references))
        pictured.append(shown.of(members) if pictures and table.target else {})
    # Overall tables are what people look at first, so theirs come first where room is short.
    rest = json.dumps(
        [tables, told.parts.values, told.curves, told.failures], separators=(",", ":")
    )
    room = min(LIMIT, ROOM - len(rest))
    for table, data in sorted(zip(board.tables, tables, strict=True), key=lambda p: p[0].target):
        rows = inside[table.protocol, table.hardware]
        packed = _pairs(table, rows if not table.target else [r for r in rows if r[0] is table],
                        room)  # fmt: skip
        data["pairs"] = packed
        room -= len(packed["text"]) if packed else 0
    # They have room of their own.
    for data, some in zip(tables, pictured, strict=True):
        data |= {"pictures": some} if some else {}
    about_pictures = shown.told(board.metric)
    factor, digits = shares(board.metric)
    return {
        "schema": SCHEMA,
        "metric": METRICS.get(board.metric, board.metric),
        "metric_name": board.metric,
        "factor": factor,
        "digits": digits,
        "lower": lower_is_better(board.metric),
        "matters": board.matters,
        "n_records": board.n_records,
        **{name: pool.values for name, pool in pools.items()},
        "slugs": {
            n: [slug(v, limit=None) for v in pools[n].values] for n in ("algorithms", "backbones")
        },
        "folder": folder,
        "licences": told.licences.values,
        "parts": told.parts.values,
        "curves": told.curves,
        "n_curves": told.n_curves,
        "failures": told.failures,
        "notes": notes(board),
        **({"references": list(references)} if references else {}),
        **({"pictures": about_pictures} if about_pictures else {}),
        "tables": tables,
    }


def _table(
    table: Table,
    members: Sequence[Sequence[Brief]],
    used: Mapping[RowKey, Sequence[Brief]],
    told: Facts,
    pools: Mapping[str, Pool],
    references: Sequence[str],
) -> dict[str, Any]:
    everyone = [b for row in members for b in row]
    factor, digits = shares(table.metric)
    columns: dict[str, list[Any]] = {
        "algorithm": [pools["algorithms"](r.algorithm) for r in table.rows],
        "backbone": [pools["backbones"](r.backbone) for r in table.rows],
        "transductive": [int(r.transductive) for r in table.rows],
        "overlap": [pools["overlaps"](list(r.overlap)) for r in table.rows],
        "weights": [pools["weights"](list(r.weights)) for r in table.rows],
        "licence": [told.licence(used[r.key]) for r in table.rows],
        "failed": [
            pools["failed"](score_of(r, table.metric)) if r.score is None else -1
            for r in table.rows
        ],
        "front": [r.pareto_time + 2 * r.pareto_memory for r in table.rows],
        "tied": [r.verdict.group if r.verdict else "" for r in table.rows],
        "n_ok": [r.n_ok for r in table.rows],
        "n_failed": [r.n_failed for r in table.rows],
        "n_episodes": [r.n_episodes for r in table.rows],
        "targets_ok": [r.targets_ok for r in table.rows],
        "targets": [r.targets for r in table.rows],
        "n_seeds": [r.score.n_seeds if r.score else 0 for r in table.rows],
    }
    shown: dict[str, tuple[Callable[[Row], float | None], float, int | None]] = {
        "mean": (lambda r: r.score.mean if r.score else None, factor, digits),
        "low": (lambda r: r.score.low if r.score else None, factor, digits),
        "high": (lambda r: r.score.high if r.score else None, factor, digits),
        "rank": (lambda r: r.mean_rank, 1.0, 1),
        "rank_low": (lambda r: r.verdict.rank_low if r.verdict else None, 1.0, 1),
        "rank_high": (lambda r: r.verdict.rank_high if r.verdict else None, 1.0, 1),
        "p_best": (lambda r: r.verdict.p_best if r.verdict else None, 1.0, 2),
        "p": (lambda r: r.verdict.p if r.verdict else None, 1.0, 4),
    }
    numbers = {n: [_shown(get(r), f, d) for r in table.rows] for n, (get, f, d) in shown.items()}
    numbers |= {
        n: [_shown(getattr(r, n), f, d) for r in table.rows] for n, (f, d) in _COSTS.items()
    }
    for i, name in enumerate(references):
        gains = [gain_over(r, name) for r in table.rows]
        for part, field in (("", "mean"), ("_low", "low"), ("_high", "high")):
            numbers[f"gain{i}{part}"] = [
                _shown(getattr(g, field) if g else None, factor, digits) for g in gains
            ]
    # What was not measured takes no room.
    columns |= {n: v for n, v in numbers.items() if any(x is not None for x in v)}
    records = {n: _packed(v) for n, v in told.of(everyone).items()}
    return {
        "protocol": table.protocol,
        "target": table.target,
        "way": table.way,
        "shot": table.shot,
        "rule": table.rule,
        "sources": list(table.sources),
        "hardware": table.hardware,
        "data": table.data,
        "title": table.title,
        "n_pairs": table.n_pairs,
        "place": place_slug(everyone[0]) if everyone else "",
        # Failed cells have a part of the page of their own.
        "facts": [line for line in facts(table) if not line.startswith("failed: ")],
        "across": _across(table),
        "n": len(table.rows),
        "rows": {n: _packed(v) for n, v in columns.items()},
        "counts": _packed([len(row) for row in members]),
        "records": records,
    }


def _across(table: Table) -> dict[str, Any] | None:
    """Rows by their mean rank over data sets, and between which of them a diagram draws bars."""
    found = table.across
    if found is None:
        return None
    place = {row.key: i for i, row in enumerate(table.rows)}
    order = sorted(range(len(found.mean_ranks)), key=lambda i: found.mean_ranks[i])
    rank = {method: i for i, method in enumerate(order)}
    bars = joined(found.mean_ranks, found.critical_difference)
    return {
        "n": found.n_datasets,
        "p": float(f"{found.p:.2g}"),
        "difference": round(found.critical_difference, 4),
        "rows": [place[table.across_rows[i]] for i in order],
        "ranks": [round(found.mean_ranks[i], 4) for i in order],
        "bars": [[rank[bar[0]], rank[bar[-1]]] for bar in bars],
    }


def _packed(column: list[Any]) -> Any:
    """A column whose values are all one as that value: many are, in a table."""
    same = column and all(type(v) is type(column[0]) and v == column[0] for v in column)
    return column[0] if same else column


def _shown(value: float | None, factor: float, digits: int | None) -> float | int | None:
    """A number as tables print it: rounded there and here alike, so that they say the same."""
    if value is None or not math.isfinite(value):
        return None
    scaled = value * factor
    if digits is None:
        digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    text = f"{scaled:.{digits}f}"
    number = float(text)
    return int(number) if number == int(number) else number


def _pairs(
    table: Table, inside: Sequence[tuple[Table, list[list[Brief]]]], room: int
) -> dict[str, Any] | None:
    """Every two rows of a table tested on all its targets; None where that cannot be, or is big."""
    if table.rule:
        return None
    maps: list[dict[RowKey, list[Brief]]] = [
        {r.key: sorted(b, key=lambda b: b.own.seed) for r, b in zip(t.rows, members, strict=True)}
        for t, members in inside
    ]
    places = [i for i, r in enumerate(table.rows) if r.score is not None]
    keys = [table.rows[i].key for i in places]
    if not maps or any(k not in m for m in maps for k in keys):
        return None
    found = packed_pairs(keys, places, maps, table.metric, room)
    return None if found is None else dataclasses.asdict(found)
