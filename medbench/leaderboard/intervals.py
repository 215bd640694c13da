"""The intervals of many rows at once: scores are read once, and never all at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medbench.briefs import Brief
from medbench.errors import DataError
from medbench.files import bytes_digest
from medbench.shelf import Interval, spread
from medbench.stats import REPLICATES, Estimate, Floats, means, percentiles, replicates

RowKey = tuple[str, str]
Units = Mapping[RowKey, Sequence[Brief]]

# Bounds of memory: scores of so many records at a time (their replicates are 16 kB a record), and
# sums over targets for so many rows (16 kB each).
_RECORDS = 1024
_ROWS = 4096


@dataclass(frozen=True)
class Intervals:
    """Intervals of one metric; `known` ones, by a hash of the scores, are not computed again.

    What was asked for is put into `used`.
    """

    metric: str
    known: Mapping[str, Interval]
    used: MutableMapping[str, Interval]

    def estimates(self, tables: Sequence[Units]) -> tuple[list[dict[RowKey, Estimate]], Any]:
        """Estimates of the rows of every table, and of the rows that all `tables` have.

        `tables`: for each target, the records of its rows, one for each seed in order. Both
        results are by row; the second also wants the same seeds everywhere. Raises `DataError`
        for scores that are missing, changed or without the metric.
        """
        rows = list(dict.fromkeys(key for table in tables for key in table))
        alone: list[dict[RowKey, Estimate]] = [{} for _ in tables]
        overall: dict[RowKey, Estimate] = {}
        for start in range(0, len(rows), _ROWS):
            self._some(rows[start : start + _ROWS], tables, alone, overall)
        return alone, overall

    def _some(
        self,
        rows: Sequence[RowKey],
        tables: Sequence[Units],
        alone: Sequence[dict[RowKey, Estimate]],
        overall: dict[RowKey, Estimate],
    ) -> None:
        whole = [key for key in rows if len(tables) > 1 and _same_seeds(key, tables)]
        hashes = {key: self._hash([t[key] for t in tables]) for key in whole}
        for key, name in hashes.items():
            self._recall(name, key, overall)
        # Places of the rows that are summed over all tables.
        sums = {key: i for i, key in enumerate(k for k in whole if k not in overall)}
        total, mean = np.zeros((len(sums), REPLICATES)), np.zeros(len(sums))
        n_episodes = np.zeros(len(sums), dtype=int)
        for i, table in enumerate(tables):
            names = {key: self._hash([table[key]]) for key in rows if key in table}
            for key, name in names.items():
                self._recall(name, key, alone[i])
            wanted = [k for k in names if k not in alone[i] or k in sums]
            for keys, scores in self._blocks(wanted, table):
                middle = means(scores)
                first = None
                if any(k not in alone[i] for k in keys):
                    first = replicates(scores, 0)
                    ends = percentiles(first)
                    for k, *found in zip(keys, middle, *ends, strict=True):
                        self._keep(names[k], k, found, scores.shape[1:], alone[i])
                if any(k in sums for k in keys):
                    again = first if i == 0 and first is not None else replicates(scores, i)
                    rows_in = [r for r, k in enumerate(keys) if k in sums]
                    places = [sums[keys[r]] for r in rows_in]
                    total[places] += again[rows_in]
                    mean[places] += middle[rows_in]
                    n_episodes[places] += scores.shape[2]
        if sums:
            ends = percentiles(total / len(tables))
            for k, *found, n in zip(sums, mean / len(tables), *ends, n_episodes, strict=True):
                shape = (len(tables[0][k]), int(n))
                self._keep(hashes[k], k, found, shape, overall)

    def _blocks(
        self, keys: Sequence[RowKey], table: Units
    ) -> Iterator[tuple[list[RowKey], Floats]]:
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

    def _hash(self, members: Sequence[Sequence[Brief]]) -> str:
        digests = [[b.own.scores_digest for b in target] for target in members]
        return bytes_digest(json.dumps(digests).encode())

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


def _same_seeds(key: RowKey, tables: Sequence[Units]) -> bool:
    seeds = {tuple(b.own.seed for b in t[key]) if key in t else None for t in tables}
    return len(seeds) == 1 and None not in seeds
