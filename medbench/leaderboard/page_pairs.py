"""Paired tests of every two rows of a table, packed small enough to travel with a page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medbench.briefs import Brief
from medbench.leaderboard.model import ALL_PAIRS, RowKey
from medbench.leaderboard.names import LOWER
from medbench.stats import REPLICATES, Floats, Spread, Tested, ends, replicates, tested, with_seeds

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_WIDTH = 3
_MIDDLE = 2 ** (6 * _WIDTH - 1)
# Packed, a pair is its difference, both ends, and -log10 of its p in steps of 1e-4; with several
# seeds also of the p that the table's letters go by, which learns from all pairs what seeds bring.
_NUMBERS = 4
_P_STEP = 1e-4
# All pages of one board together hold no more than so many bytes of pairs.
LIMIT = 700_000
_PAIRS = 256

Members = Sequence[Mapping[RowKey, Sequence[Brief]]]


@dataclass(frozen=True)
class Packed:
    """All pairs of some rows of a table, in the order of `itertools.combinations`.

    ``rows``: places in the table. ``text``: of every pair ``numbers`` times three characters:
    difference ``first - second``, low and high in multiples of ``unit`` above the middle, -log10 p,
    and with five numbers -log10 of the p among all pairs.
    """

    rows: tuple[int, ...]
    unit: float
    numbers: int
    text: str


def packed_pairs(
    keys: Sequence[RowKey], places: Sequence[int], members: Members, metric: str, room: int
) -> Packed | None:
    """Test every two of `keys`, rows at `places` of their table, on the targets of `members`.

    Differences, intervals and p are those of `medbench.stats.compare`, before a correction. None
    in tables of more than a hundred rows, of which pairs take more than `room` bytes, or whose
    rows do not have the same seeds.
    """
    n = len(keys)
    seeds = {tuple(b.own.seed for b in target[k]) for target in members for k in keys}
    if len(seeds) != 1:
        return None
    numbers = _NUMBERS + (len(seeds.pop()) > 1)
    if not 2 <= n <= ALL_PAIRS or n * (n - 1) // 2 * numbers * _WIDTH > room:
        return None
    blocks = [_block([target[k] for k in keys], metric) for target in members]
    parts = list(_tested(blocks))
    values = [np.concatenate(part) for part in zip(*(part[:3] for part in parts), strict=True)]
    ps = [np.concatenate([with_seeds([t]) for *_, t in parts])]
    if numbers > _NUMBERS:
        ps.append(with_seeds([t for *_, t in parts], n))
    largest = max(float(np.abs(v).max()) for v in values)
    # A power of ten, so that shares keep five decimals whatever the rows are.
    unit = 1e-5 if largest < 1.3 else 10.0 ** math.ceil(math.log10(largest / (_MIDDLE - 1)))
    columns = [_MIDDLE + _rounded(v / unit) for v in values]
    columns += [_rounded(-np.log10(np.maximum(p, 1e-26)) / _P_STEP) for p in ps]
    return Packed(tuple(places), unit, numbers, _characters(np.stack(columns, axis=1).ravel()))


def _block(rows: Sequence[Sequence[Brief]], metric: str) -> Floats:
    """Scores ``(n_rows, n_seeds, n_episodes)`` of the episodes that all have."""
    scores = [[b.scores(metric) for b in members] for members in rows]
    length = min(len(s) for members in scores for s in members)
    return np.stack([np.stack([s[:length] for s in members]) for members in scores])


def _tested(blocks: Sequence[Floats]) -> Iterator[tuple[Floats, Floats, Floats, Tested]]:
    """Of the pairs, some at a time: differences, both ends, and what their p is made of."""
    n = len(blocks)
    whole = all(bool(np.isfinite(b).all()) for b in blocks)
    drawn = [replicates(b, t) for t, b in enumerate(blocks)] if whole else []
    pairs = list(itertools.combinations(range(len(blocks[0])), 2))
    for start in range(0, len(pairs), _PAIRS):
        first, second = (list(s) for s in zip(*pairs[start : start + _PAIRS], strict=True))
        apart = [b[first] - b[second] for b in blocks]
        total: Floats = np.zeros((len(first), REPLICATES))
        mean: Floats = np.zeros(len(first))
        spread = None
        for t, d in enumerate(apart):
            # The mean of differences is the difference of means, unless some are missing.
            total += drawn[t][first] - drawn[t][second] if whole else replicates(d, t)
            mean += np.nanmean(d, axis=(1, 2))
            own = Spread.of(d)
            spread = own if spread is None else spread + own
        assert spread is not None
        low, high = ends(mean / n, total / n, spread.over(n))
        yield mean / n, low, high, tested(apart)


def _rounded(values: Floats) -> Floats:
    # Halves always upwards: many lie there, and noise would choose.
    found: Floats = np.floor(values + 0.5 + 1e-6)
    return found


def _characters(numbers: Floats) -> str:
    values = np.clip(numbers, 0, 2 * _MIDDLE - 1).astype(np.int64)
    digits = np.stack([values >> 12, values >> 6 & 63, values & 63], axis=1)
    return "".join(np.array(list(ALPHABET))[digits].ravel().tolist())


def unpacked(packed: Packed) -> dict[tuple[int, int], tuple[float, ...]]:
    """What `packed` says of every pair of places: difference, low, high, p, and p among all."""
    found = {}
    width = packed.numbers * _WIDTH
    for i, pair in enumerate(itertools.combinations(packed.rows, 2)):
        text = packed.text[i * width : (i + 1) * width]
        parts = [text[k : k + _WIDTH] for k in range(0, width, _WIDTH)]
        d, low, high, *ps = (
            sum(ALPHABET.index(c) << 6 * (_WIDTH - 1 - k) for k, c in enumerate(part))
            for part in parts
        )
        values = [(v - _MIDDLE) * packed.unit for v in (d, low, high)]
        shares = [10 ** (-p * _P_STEP) for p in ps]
        found[pair] = (*values, shares[0], shares[-1])
    return found


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return metric in LOWER
