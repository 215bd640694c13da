"""What rows gain over those of the same backbone that adapt to nothing (trait ``uses_support``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medbench.briefs import Brief
from medbench.leaderboard.model import Gain, Row, RowKey, Table
from medbench.leaderboard.names import LOWER
from medbench.stats import Difference, Floats, compare, holm

Members = Mapping[RowKey, Sequence[Brief]]


def with_gains(rows: Sequence[Row], tables: Sequence[Members], metric: str) -> list[Row]:
    """`rows` over `tables`, each with its gain over every reference row of its backbone.

    Rows are paired on the seeds and episodes that both have on all `tables`; where they share none,
    there is no gain. A gain is positive where the row is better. p is corrected by Holm's method
    for the rows that are compared with one reference. Raises `DataError` for damaged scores.
    """
    gains: dict[RowKey, list[Gain]] = {}
    for reference in (r for r in rows if r.reference and r.score is not None):
        others = [
            r.key
            for r in rows
            if r.backbone == reference.backbone and r.key != reference.key and r.score is not None
        ]
        found = {k: d for k in others if (d := _difference(k, reference.key, tables, metric))}
        corrected = holm(np.array([d.p for d in found.values()]))
        for (key, d), p in zip(found.items(), corrected, strict=True):
            ends = (-d.high, -d.low) if metric in LOWER else (d.low, d.high)
            mean = -d.mean if metric in LOWER else d.mean
            gains.setdefault(key, []).append(Gain(reference.algorithm, mean, *ends, float(p)))
    return [
        dataclasses.replace(r, gains=tuple(gains[r.key])) if r.key in gains else r for r in rows
    ]


def _difference(
    key: RowKey, reference: RowKey, tables: Sequence[Members], metric: str
) -> Difference | None:
    if any(key not in t or reference not in t for t in tables):
        return None
    sides = [[t[k] for t in tables] for k in (key, reference)]
    seeds = set.intersection(*({b.own.seed for b in own} for side in sides for own in side))
    if not seeds:
        return None
    both = [[_scores(own, seeds, metric) for own in side] for side in sides]
    lengths = [min(a.shape[1], b.shape[1]) for a, b in zip(*both, strict=True)]
    first, second = (
        [scores[:, :n] for scores, n in zip(side, lengths, strict=True)] for side in both
    )
    if any(not np.isfinite(a - b).all(axis=0).any() for a, b in zip(first, second, strict=True)):
        return None
    return compare(first, second)


def _scores(members: Sequence[Brief], seeds: set[int], metric: str) -> Floats:
    """Scores ``(n_seeds, n_episodes)``, seeds in order."""
    kept = sorted((b for b in members if b.own.seed in seeds), key=lambda b: b.own.seed)
    arrays = [b.scores(metric) for b in kept]
    length = min(map(len, arrays))
    return np.stack([a[:length] for a in arrays])


def references_of(tables: Sequence[Table]) -> tuple[str, ...]:
    """The algorithms over which rows of some tables have gains, by name."""
    return tuple(sorted({g.reference for t in tables for r in t.rows for g in r.gains}))


def gain_over(row: Row, reference: str) -> Gain | None:
    """What a row gains over an algorithm on its backbone; None where that is not known."""
    return next((g for g in row.gains if g.reference == reference), None)
