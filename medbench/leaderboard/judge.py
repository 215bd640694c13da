"""Which rows of a table paired tests tell apart, and what that leaves of their ranks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.leaderboard.model import ALL_PAIRS, RowKey, Verdict
from medbench.stats import (
    REPLICATES,
    Floats,
    Spread,
    better_than,
    ends,
    holm,
    p_best,
    rank_bounds,
    replicates,
    sign_flip,
    tested,
    tie_groups,
    with_seeds,
)

_PAIRS = 256


@dataclass(frozen=True)
class Held:
    """The scores of one row on one target: all of them, or their means where rows are many."""

    seeds: tuple[int, ...]
    seed_means: Floats
    episode_means: Floats
    scores: Floats | None


Verdicts = dict[RowKey, Verdict]
Maybe = float | None
Packed = tuple[str, str, str, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe]


def judge(tables: Sequence[Mapping[RowKey, Held]], lower: bool) -> tuple[list[Verdicts], Verdicts]:
    """Verdicts on the rows of every table, and on those that all `tables` have.

    Rows are paired on the seeds and episodes that all of them share; where there are none, there
    is no verdict.
    """
    whole = [k for k in tables[0] if all(k in t for t in tables)] if len(tables) > 1 else []
    if max(len(t) for t in tables) > ALL_PAIRS:
        alone = [_against_best([t], list(t), lower) for t in tables]
        return alone, _against_best(tables, whole, lower) if whole else {}
    blocks = [_block(list(t), [t]) for t in tables]
    raw = [_raw(block) for block in blocks]
    alone = [
        _verdicts(list(t), block, p, lower, None)
        for t, block, p in zip(tables, blocks, raw, strict=True)
    ]
    if not whole:
        return alone, {}
    together = _block(whole, tables)
    same = [list(t) == whole for t in tables]
    apart = [
        p if s else _raw(_block(whole, [t])) for p, s, t in zip(raw, same, tables, strict=True)
    ]
    bounds = _mean_bounds(apart, [_goodness(_block(whole, [t]), lower) for t in tables])
    return alone, _verdicts(whole, together, _raw(together), lower, bounds)


def _block(keys: Sequence[RowKey], tables: Sequence[Mapping[RowKey, Held]]) -> list[Floats] | None:
    """Shared scores of some rows, ``(n_rows, n_seeds, n_episodes)`` for each table."""
    held = [[t[k] for k in keys] for t in tables]
    common = set.intersection(*(set(h.seeds) for row in held for h in row)) if keys else set()
    if not common:
        return None
    found = []
    for rows in held:
        length = min(len(h.episode_means) for h in rows)
        arrays = []
        for h in rows:
            assert h.scores is not None
            own = [i for i, seed in enumerate(h.seeds) if seed in common]
            arrays.append(h.scores[own, :length])
        found.append(np.stack(arrays))
    return found


def _raw(block: list[Floats] | None) -> Floats:
    """Uncorrected p of all pairs of rows, in the order of `itertools.combinations`."""
    if block is None:
        return np.empty(0)
    pairs = list(itertools.combinations(range(len(block[0])), 2))
    found = []
    for start in range(0, len(pairs), _PAIRS):
        first, second = (list(side) for side in zip(*pairs[start : start + _PAIRS], strict=True))
        found.append(tested([scores[first] - scores[second] for scores in block]))
    return with_seeds(found, len(block[0])) if found else np.empty(0)


def _goodness(block: list[Floats] | None, lower: bool) -> Floats:
    if block is None:
        return np.empty(0)
    means = np.mean([np.nanmean(scores, axis=(1, 2)) for scores in block], axis=0)
    found: Floats = -means if lower else means
    return found


def _mean_bounds(raw: Sequence[Floats], goodness: Sequence[Floats]) -> tuple[Floats, Floats] | None:
    """Bounds of mean ranks; the pairs of all targets are one family, so that all hold at once."""
    if any(not len(g) for g in goodness):
        return None
    n = len(goodness[0])
    pairs = list(itertools.combinations(range(n), 2))
    corrected = np.split(holm(np.concatenate(raw)), len(raw))
    bounds = [
        rank_bounds(better_than(good, p, pairs))
        for good, p in zip(goodness, corrected, strict=True)
    ]
    lows, highs = (np.mean(side, axis=0) for side in zip(*bounds, strict=True))
    return lows, highs


def _verdicts(
    keys: Sequence[RowKey],
    block: list[Floats] | None,
    raw: Floats,
    lower: bool,
    bounds: tuple[Floats, Floats] | None,
) -> Verdicts:
    if block is None:
        return {}
    good = _goodness(block, lower)
    n = len(keys)
    pairs = list(itertools.combinations(range(n), 2))
    corrected = holm(raw)
    better = better_than(good, corrected, pairs)
    order = np.argsort(-good, kind="stable")
    letters = tie_groups((better | better.T)[np.ix_(order, order)])
    best = int(order[0])
    matrix = np.ones((n, n))
    for (i, j), p in zip(pairs, corrected, strict=True):
        matrix[i, j] = matrix[j, i] = p
    low, high = rank_bounds(better) if bounds is None else bounds
    drawn = np.mean([replicates(scores, t) for t, scores in enumerate(block)], axis=0)
    chance = p_best(-drawn if lower else drawn)
    mean, (left, right) = _differences(block, best)
    return {
        keys[i]: Verdict(
            group=letters[place],
            p=None if i == best else float(matrix[i, best]),
            difference=float(mean[i]),
            low=float(left[i]),
            high=float(right[i]),
            rank_low=float(low[i]),
            rank_high=float(high[i]),
            p_best=float(chance[i]),
        )
        for place, i in enumerate(order.tolist())
    }


def _differences(block: list[Floats], best: int) -> tuple[Floats, tuple[Floats, Floats]]:
    """Differences of all rows to one, with intervals, as `medbench.stats.compare` gives them."""
    n = len(block)
    total: Floats = np.zeros((len(block[0]), REPLICATES))
    mean: Floats = np.zeros(len(block[0]))
    spread = None
    for t, scores in enumerate(block):
        apart = scores - scores[best]
        total += replicates(apart, t)
        mean += np.nanmean(apart, axis=(1, 2))
        own = Spread.of(apart)
        spread = own if spread is None else spread + own
    assert spread is not None
    return mean / n, ends(mean / n, total / n, spread.over(n))


def _against_best(
    tables: Sequence[Mapping[RowKey, Held]], keys: Sequence[RowKey], lower: bool
) -> Verdicts:
    """Verdicts in a table of many rows: p against the best, corrected as if for all pairs.

    That the best was picked by its score is thereby paid for. With several seeds the variance of
    single scores is counted twice, which can only make p larger.
    """
    if not keys:
        return {}
    n = len(keys)
    lengths = [min(len(t[k].episode_means) for k in keys) for t in tables]
    seeds = [tuple(t[k].seeds for t in tables) for k in keys]
    seed_means: list[Floats] = [
        np.mean([t[k].seed_means for t in tables], axis=0) if len(set(own)) == 1 else np.empty(0)
        for k, own in zip(keys, seeds, strict=True)
    ]
    means = [
        np.stack([t[k].episode_means[:length] for k in keys])
        for t, length in zip(tables, lengths, strict=True)
    ]
    good = np.mean([np.nanmean(m, axis=1) for m in means], axis=0) * (-1 if lower else 1)
    best = int(np.argmax(good))
    same = np.array([own == seeds[best] and len(set(own)) == 1 for own in seeds])
    apart = [np.nan_to_num(m - m[best]) / length / len(means) for m, length in
             zip(means, lengths, strict=True)]  # fmt: skip
    raw = sign_flip(np.concatenate(apart, axis=1))
    if len(seed_means[best]) > 1:
        raw[same] = np.maximum(raw[same], _by_seeds(means, seed_means, best, same))
    raw[~same] = 1.0
    others = [i for i in range(n) if i != best]
    corrected = np.ones(n)
    corrected[others] = holm(raw[others], family=n * (n - 1) // 2)
    return {
        k: Verdict("a" if i == best or corrected[i] >= 0.05 else "",
                   None if i == best else float(corrected[i]))
        for i, k in enumerate(keys)
    }  # fmt: skip


def _by_seeds(
    means: Sequence[Floats],
    seed_means: Sequence[Floats],
    best: int,
    same: NDArray[np.bool_],
) -> Floats:
    spread = None
    for m in means:
        own = Spread.of((m[same] - m[best])[:, None])
        spread = own if spread is None else spread + own
    assert spread is not None
    total = spread.over(len(means))
    gaps = np.stack([seed_means[i] - seed_means[best] for i in np.flatnonzero(same).tolist()])
    both = Spread(gaps, total.rest, total.free, total.second, total.third)
    return both.p_value(gaps.mean(axis=1))


def packed(key: RowKey, verdict: Verdict) -> Packed:
    """A row's names and its verdict's fields in order: what is kept between commands."""
    v = verdict
    chances = (v.rank_low, v.rank_high, v.p_best)
    return (*key, v.group, v.p, v.difference, v.low, v.high, *chances)
