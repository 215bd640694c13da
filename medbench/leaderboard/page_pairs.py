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
from medbench.stats import REPLICATES, Floats, Spread, ends, p_values, replicates

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_WIDTH = 3
_MIDDLE = 2 ** (6 * _WIDTH - 1)
# Packed, a pair is its difference, both ends, and -log10 of its p in steps of 1e-4.
BYTES = 4 * _WIDTH
_P_STEP = 1e-4
# All pages of one board together hold no more than so many bytes of pairs.
LIMIT = 700_000
_PAIRS = 256

Members = Sequence[Mapping[RowKey, Sequence[Brief]]]


@dataclass(frozen=True)
class Packed:
    """All pairs of some rows of a table, in the order of `itertools.combinations`.

    ``rows``: places in the table. ``text``: twelve characters a pair: difference ``first -
    second``, low and high in multiples of ``unit`` above the middle, and -log10 p.
    """

    rows: tuple[int, ...]
    unit: float
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
    if not 2 <= n <= ALL_PAIRS or n * (n - 1) // 2 * BYTES > room:
        return None
    seeds = {tuple(b.own.seed for b in target[k]) for target in members for k in keys}
    if len(seeds) != 1:
        return None
    blocks = [_block([target[k] for k in keys], metric) for target in members]
    found = [np.concatenate(part) for part in zip(*_tested(blocks), strict=True)]
    *values, p = found
    largest = max(float(np.abs(v).max()) for v in values)
    # A power of ten, so that shares keep five decimals whatever the rows are.
    unit = 1e-5 if largest < 1.3 else 10.0 ** math.ceil(math.log10(largest / (_MIDDLE - 1)))
    columns = [_MIDDLE + _rounded(v / unit) for v in values]
    columns.append(_rounded(-np.log10(np.maximum(p, 1e-26)) / _P_STEP))
    numbers = np.stack(columns, axis=1).ravel().tolist()
    return Packed(tuple(places), unit, "".join(map(_characters, numbers)))


def _block(rows: Sequence[Sequence[Brief]], metric: str) -> Floats:
    """Scores ``(n_rows, n_seeds, n_episodes)`` of the episodes that all have."""
    scores = [[b.scores(metric) for b in members] for members in rows]
    length = min(len(s) for members in scores for s in members)
    return np.stack([np.stack([s[:length] for s in members]) for members in scores])


def _tested(blocks: Sequence[Floats]) -> Iterator[tuple[Floats, Floats, Floats, Floats]]:
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
        yield mean / n, low, high, p_values(apart)


def _rounded(values: Floats) -> Floats:
    # Halves always upwards: many lie there, and noise would choose.
    found: Floats = np.floor(values + 0.5 + 1e-6)
    return found


def _characters(number: float) -> str:
    value = int(min(max(number, 0), 2 * _MIDDLE - 1))
    return ALPHABET[value >> 12] + ALPHABET[value >> 6 & 63] + ALPHABET[value & 63]


def unpacked(packed: Packed) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """What `packed` says of every pair of places: difference, low, high and p."""
    found = {}
    for i, pair in enumerate(itertools.combinations(packed.rows, 2)):
        text = packed.text[i * BYTES : (i + 1) * BYTES]
        parts = [text[k : k + _WIDTH] for k in range(0, BYTES, _WIDTH)]
        d, low, high, p = (
            sum(ALPHABET.index(c) << 6 * (_WIDTH - 1 - k) for k, c in enumerate(part))
            for part in parts
        )
        values = [(v - _MIDDLE) * packed.unit for v in (d, low, high)]
        found[pair] = (values[0], values[1], values[2], 10 ** (-p * _P_STEP))
    return found


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return metric in LOWER
