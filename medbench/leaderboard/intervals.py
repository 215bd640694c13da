"""What the scores of many rows say, all read once, and never all held at a time.

Intervals are computed in blocks of records. For paired tests a table's scores are held until it
has been judged: whole in tables of up to a hundred rows, in larger ones as their means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medbench.briefs import Brief
from medbench.errors import DataError
from medbench.files import bytes_digest
from medbench.leaderboard.judge import Held, Verdicts, judge, packed
from medbench.leaderboard.model import ALL_PAIRS, RowKey, Verdict
from medbench.leaderboard.names import LOWER
from medbench.shelf import Interval, Judged, spread
from medbench.stats import (
    REPLICATES,
    Estimate,
    Floats,
    Spread,
    bca,
    ends,
    estimate,
    means,
    replicates,
)

Units = Mapping[RowKey, Sequence[Brief]]

# Bounds of memory: scores of so many records at a time (their replicates are 16 kB a record), and
# sums over targets for so many rows (16 kB each).
_RECORDS = 1024
_ROWS = 4096


@dataclass
class Findings:
    """Estimates and verdicts: of the rows of every table, and of those that all tables have."""

    alone: list[dict[RowKey, Estimate]]
    overall: dict[RowKey, Estimate]
    verdicts: list[Verdicts]
    overall_verdicts: Verdicts


@dataclass
class _Sum:
    """A row's sum over targets, as far as it has come."""

    mean: float = 0.0
    n_episodes: int = 0
    spread: Spread | None = None


@dataclass(frozen=True)
class Intervals:
    """Findings on one metric; `known` ones, by a hash of the scores, are not computed again.

    What was asked for is put into `used` and `used_verdicts`. ``method``: BCa intervals are for
    rows of one seed; those of several keep the percentile interval for seeds and episodes.
    """

    metric: str
    known: Mapping[str, Interval]
    used: MutableMapping[str, Interval]
    method: Literal["percentile", "bca"] = "percentile"
    known_verdicts: Mapping[str, Judged] = field(default_factory=dict)
    used_verdicts: MutableMapping[str, Judged] = field(default_factory=dict)

    def findings(self, tables: Sequence[Units]) -> Findings:
        """What is found on `tables`: for each target, the records of its rows, a seed each.

        Estimates over all tables are of the rows with the same seeds everywhere. Raises
        `DataError` for scores that are missing, changed or without the metric.
        """
        rows = list(dict.fromkeys(key for table in tables for key in table))
        names = [self._hash([t[k] for k in sorted(t)], "alone") for t in tables]
        name = bytes_digest(json.dumps(names).encode())
        unknown = [n not in self.known_verdicts for n in names]
        judging = any(unknown) or name not in self.known_verdicts
        held: list[dict[RowKey, Held]] | None = [{} for _ in tables] if judging else None
        found = Findings([{} for _ in tables], {}, [{} for _ in tables], {})
        for start in range(0, len(rows), _ROWS):
            self._some(rows[start : start + _ROWS], tables, found, held)
        if held is not None:
            lower = self.metric in LOWER
            found.verdicts, found.overall_verdicts = judge(held, lower)
        else:
            found.verdicts = [_unpacked(self.known_verdicts[n]) for n in names]
            found.overall_verdicts = _unpacked(self.known_verdicts[name])
        for n, verdicts in zip([*names, name], [*found.verdicts, found.overall_verdicts],
                               strict=True):  # fmt: skip
            self.used_verdicts[n] = [packed(k, v) for k, v in verdicts.items()]
        return found

    def _some(
        self,
        rows: Sequence[RowKey],
        tables: Sequence[Units],
        into: Findings,
        held: list[dict[RowKey, Held]] | None,
    ) -> None:
        whole = [key for key in rows if len(tables) > 1 and _same_seeds(key, tables)]
        hashes = {key: self._hash([t[key] for t in tables]) for key in whole}
        for key, name in hashes.items():
            self._recall(name, key, into.overall)
        # Places of the rows that are summed over all tables.
        sums = {key: i for i, key in enumerate(k for k in whole if k not in into.overall)}
        total, parts = np.zeros((len(sums), REPLICATES)), [_Sum() for _ in sums]
        for i, table in enumerate(tables):
            alone = into.alone[i]
            names = {key: self._hash([table[key]]) for key in rows if key in table}
            for key, name in names.items():
                self._recall(name, key, alone)
            wanted = [k for k in names if k not in alone or k in sums or held is not None]
            for keys, scores in self.blocks(wanted, table):
                middle, spreads = means(scores), Spread.of(scores)
                first = None
                if any(k not in alone for k in keys):
                    first = replicates(scores, 0)
                    sides = self._ends(middle, first, spreads)
                    for k, *found in zip(keys, middle, *sides, strict=True):
                        self._keep(names[k], k, found, scores.shape[1:], alone)
                if any(k in sums for k in keys):
                    again = first if i == 0 and first is not None else replicates(scores, i)
                    for r, k in enumerate(keys):
                        if k in sums:
                            total[sums[k]] += again[r]
                            part, own = parts[sums[k]], spreads.of_row(r)
                            part.mean += float(middle[r])
                            part.n_episodes += scores.shape[2]
                            part.spread = own if part.spread is None else part.spread + own
                if held is not None:
                    for r, k in enumerate(keys):
                        held[i][k] = _held(table, k, scores[r])
        for some in _by_seeds(sums, parts):
            spreads = Spread.stacked([s for i in some.values() if (s := parts[i].spread)])
            n, places = len(tables), list(some.values())
            mean = np.array([parts[i].mean for i in places]) / n
            sides = self._ends(mean, total[places] / n, spreads.over(n))
            for k, *found in zip(some, mean, *sides, strict=True):
                shape = (len(tables[0][k]), parts[sums[k]].n_episodes)
                self._keep(hashes[k], k, found, shape, into.overall)

    def _ends(self, mean: Floats, drawn: Floats, spreads: Spread) -> tuple[Floats, Floats]:
        if self.method == "bca" and spreads.n_seeds == 1:
            return bca(mean, drawn, spreads)
        return ends(mean, drawn, spreads)

    def of_scores(self, rows: Mapping[RowKey, Sequence[Floats]]) -> dict[RowKey, Estimate]:
        """Estimates over targets of scores at hand, ``(n_seeds, n_episodes)`` for each target."""
        one = next(iter(rows.values()))[0].shape[0] == 1
        method = self.method if one else "percentile"
        return {key: estimate(scores, method=method) for key, scores in rows.items()}

    def blocks(self, keys: Sequence[RowKey], table: Units) -> Iterator[tuple[list[RowKey], Floats]]:
        """Scores ``(n_rows, n_seeds, n_episodes)`` of rows that have as many of both."""
        while keys:
            n = max(1, _RECORDS // len(table[keys[0]]))
            some, keys = keys[:n], keys[n:]
            read = iter(spread(self._scores, [brief for k in some for brief in table[k]]))
            shapes: dict[tuple[int, int], tuple[list[RowKey], list[Floats]]] = {}
            for key in some:
                seeds = [next(read) for _ in table[key]]
                shortest = min(map(len, seeds))
                block = shapes.setdefault((len(seeds), shortest), ([], []))
                block[0].append(key)
                block[1].append(np.stack([s[:shortest] for s in seeds]))
            for same, arrays in shapes.values():
                yield same, np.stack(arrays)

    def _scores(self, brief: Brief) -> Floats:
        found = brief.scores(self.metric)
        if not len(found):
            raise DataError(f"{brief.path}: its scores file holds no episode.")
        return found

    def _hash(self, members: Sequence[Sequence[Brief]], *more: str) -> str:
        digests = [[b.own.scores_digest for b in target] for target in members]
        return bytes_digest(json.dumps([*digests, *more]).encode())

    def _recall(self, name: str, key: RowKey, into: dict[RowKey, Estimate]) -> None:
        if name in self.known:
            self.used[name] = self.known[name]
            into[key] = Estimate(*self.known[name])

    def _keep(
        self,
        name: str,
        key: RowKey,
        found: Sequence[Any],
        shape: tuple[int, ...],
        into: dict[RowKey, Estimate],
    ) -> None:
        mean, low, high = map(float, found)
        self.used[name] = (mean, low, high, shape[0], shape[1])
        into[key] = Estimate(mean, low, high, shape[0], shape[1])


def _by_seeds(sums: Mapping[RowKey, int], parts: Sequence[_Sum]) -> list[dict[RowKey, int]]:
    """Rows with as many seeds, together."""
    found: dict[int, dict[RowKey, int]] = {}
    for key, i in sums.items():
        part = parts[i].spread
        assert part is not None
        found.setdefault(part.n_seeds, {})[key] = i
    return list(found.values())


def _held(table: Units, key: RowKey, scores: Floats) -> Held:
    means_of = np.isfinite(scores).all(axis=0)
    seed_means = scores[:, means_of].mean(axis=1) if means_of.any() else scores[:, 0]
    seeds = tuple(b.own.seed for b in table[key])
    small = len(table) <= ALL_PAIRS
    return Held(seeds, seed_means, scores.mean(axis=0), scores if small else None)


def _unpacked(judged: Judged) -> Verdicts:
    return {(row[0], row[1]): Verdict(*row[2:]) for row in judged}


def _same_seeds(key: RowKey, tables: Sequence[Units]) -> bool:
    seeds = {tuple(b.own.seed for b in t[key]) if key in t else None for t in tables}
    return len(seeds) == 1 and None not in seeds
