"""Intervals for mean scores over shared episodes.

Every algorithm and every training seed meets the same frozen episodes, so seeds and episodes are
crossed, not nested: an episode that is hard is hard for all seeds. The bootstrap therefore
resamples seeds and, apart from them, episodes (the pigeonhole bootstrap of Owen, Annals of Applied
Statistics 1 (2007) 386-411), which is conservative for crossed designs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed
from medbench.stats.digits import printable
from medbench.stats.spread import Floats, Spread

REPLICATES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and what the interval covers."""

    mean: float
    low: float
    high: float
    n_seeds: int
    n_episodes: int
    groups: str = ""
    """What else was resampled: ``patient`` or ``image``, or nothing."""

    @property
    def covers(self) -> str:
        """What another experiment may redraw for the interval to hold, in words."""
        parts = ["episodes"] if self.n_seeds == 1 else ["training seeds", "episodes"]
        parts += [f"{self.groups}s"] if self.groups else []
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def estimate(
    scores: Sequence[Floats],
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> Estimate:
    """The mean over targets of the mean score, with a bootstrap interval.

    `scores`: one array a target, each ``(n_seeds, n_episodes)``, the seeds in the same order; the
    targets are taken as given, and seeds are resampled together for all of them. NaN scores (an
    AUROC that does not exist) are left out. The interval covers new training seeds and new
    episodes from the same images, not new images. With several seeds it is widened for their small
    number (see `medbench.stats.spread`). ``bca`` is for one seed. Raises `ValueError` for arrays
    it cannot use.

    >>> e = estimate([np.full((1, 10), 0.5)])
    >>> (e.mean, e.low, e.high)
    (0.5, 0.5, 0.5)
    """
    arrays = checked(scores)
    n_seeds = arrays[0].shape[0]
    if method == "bca" and n_seeds > 1:
        raise ValueError(
            f"BCa intervals are for one training seed, and there are {n_seeds}: two ways of "
            "resampling have no single acceleration. Use method='percentile'."
        )
    total = np.zeros((1, REPLICATES))
    mean, parts = np.zeros(1), None
    for i, array in enumerate(arrays):
        total += replicates(array[None], i, seed)
        mean += means(array[None])
        own = Spread.of(array[None])
        parts = own if parts is None else parts + own
    assert parts is not None
    mean, total, parts = mean / len(arrays), total / len(arrays), parts.over(len(arrays))
    found = bca(mean, total, parts, level) if method == "bca" else ends(mean, total, parts, level)
    low, high = found
    n_episodes = sum(a.shape[1] for a in arrays)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), n_seeds, n_episodes)


def checked(scores: Sequence[Floats]) -> list[Floats]:
    """`scores` as arrays ``(n_seeds, n_episodes)`` of as many seeds. Raises `ValueError`."""
    arrays = [np.atleast_2d(np.asarray(s, dtype=np.float64)) for s in scores]
    if not arrays or any(a.size == 0 for a in arrays):
        raise ValueError("at least one target with at least one episode is needed.")
    if any(a.shape[0] != arrays[0].shape[0] for a in arrays):
        raise ValueError("every target must have the same seeds.")
    return arrays


def means(scores: Floats) -> Floats:
    """The mean of every row, ``(n_rows,)``; `scores`: ``(n_rows, n_seeds, n_episodes)``."""
    flat = scores.reshape(len(scores), -1)
    there = np.isfinite(flat)
    found: Floats = np.where(there, flat, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return found


def replicates(scores: Floats, stream: int, seed: int = 0) -> Floats:
    """The mean of every row in every bootstrap replicate, ``(n_rows, REPLICATES)``.

    `scores`: ``(n_rows, n_seeds, n_episodes)``. All rows meet the same draws: seeds by `seed`,
    episodes by `seed` and `stream`, the number of the target in a mean over several. A row's
    numbers are the same to the last bit whichever rows are computed beside it.
    """
    n_rows, n_seeds, n_episodes = scores.shape
    by_seed, by_episode = weights(n_seeds, seed, -1), weights(n_episodes, seed, stream)

    def summed(values: Floats) -> Floats:
        # One matrix product for all rows: a product for each would read the weights anew.
        flat = _on_grid(values.reshape(n_rows * n_seeds, n_episodes))
        sums = (flat @ by_episode.astype(np.float64).T).reshape(n_rows, n_seeds, REPLICATES)
        total: Floats = sums[:, 0] * by_seed[:, 0]
        for s in range(1, n_seeds):
            total += sums[:, s] * by_seed[:, s]
        return total

    there = np.isfinite(scores)
    if there.all():
        # Weights add up to the number of what is drawn.
        found: Floats = summed(scores) / (n_seeds * n_episodes)
        return found
    counts = np.maximum(summed(there.astype(np.float64)), 1)
    return summed(np.where(there, scores, 0.0)) / counts


def percentiles(found: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Both ends of the middle `level` of every row of `found`, to 12 decimals."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(found, [tail, 100 - tail], axis=1)
    return printable(low), printable(high)


def ends(mean: Floats, found: Floats, spread: Spread, level: float = 0.95) -> tuple[Floats, Floats]:
    """The interval of every row, ``(n_rows,)`` each, of its mean, replicates and spread.

    The ends of the percentile interval, moved apart by `Spread.widening` where there are seeds.
    """
    low, high = percentiles(found, level)
    if spread.n_seeds == 1:
        return low, high
    factor = spread.widening(high - low, level)
    return printable(mean - factor * (mean - low)), printable(mean + factor * (high - mean))


def bca(mean: Floats, found: Floats, spread: Spread, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated intervals of one-seed rows, ``(n_rows,)`` each.

    Efron, Journal of the American Statistical Association 82 (1987) 171-185. The acceleration is
    that of the jackknife, which for a mean is a sixth of the skewness of what is averaged.
    """
    from scipy.special import ndtr, ndtri

    tail = (1 - level) / 2
    below = (found < mean[:, None]).mean(axis=1) + (found == mean[:, None]).mean(axis=1) / 2
    # All replicates alike: there is nothing to correct, and nothing to divide by.
    flat = found.min(axis=1) == found.max(axis=1)
    edge = 0.5 / found.shape[1]
    bias = np.where(flat, 0.0, ndtri(np.clip(below, edge, 1 - edge)))
    limits = []
    for share in (tail, 1 - tail):
        shifted = bias + ndtri(share)
        level_of = ndtr(bias + shifted / (1 - spread.acceleration * shifted))
        rows = zip(found, level_of, strict=True)
        limits.append(printable(np.array([np.quantile(r, q) for r, q in rows])))
    return limits[0], limits[1]


def _on_grid(values: Floats) -> Floats:
    """`values` ``(n, n_episodes)`` rounded so that no sum of them over a replicate is rounded.

    A matrix product adds in an order that depends on the machine and on the product's size, and
    every order gives another last digit. Sums of multiples of one power of two are exact as long
    as they fit 53 bits: then a table has the same digits everywhere. The rounding is by 2**-44 of
    a row's largest value for 600 episodes.
    """
    _, exponents = np.frexp(np.abs(values).max(axis=1, keepdims=True))
    spare = 53 - int(values.shape[1]).bit_length()
    scale = np.ldexp(1.0, spare - exponents)
    found: Floats = np.rint(values * scale) / scale
    return found


@lru_cache(maxsize=64)
def weights(n: int, seed: int, stream: int | str) -> NDArray[Any]:
    """How often each of `n` things is drawn in each replicate, ``(REPLICATES, n)``.

    Kept, because a board asks for the same numbers of episodes again and again, and as the
    smallest integers that hold them: 1.2 MB for 600 episodes.
    """
    # RandomState's streams are frozen by numpy's policy: tables can be rebuilt bit by bit.
    random = np.random.RandomState(derive_seed("bootstrap", n, seed, stream) % 2**32)
    drawn = random.multinomial(n, np.full(n, 1 / n), size=REPLICATES)
    found = drawn.astype(np.min_scalar_type(int(drawn.max())))
    found.setflags(write=False)
    return found
