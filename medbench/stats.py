"""Intervals for scores of shared episodes; numpy only.

Every algorithm and every training seed meets the same frozen episodes, so seeds and episodes are
crossed, not nested: an episode that is hard is hard for all seeds. The bootstrap therefore
resamples seeds and, apart from them, episodes (the pigeonhole bootstrap of Owen, Annals of Applied
Statistics 1 (2007) 386-411), which is conservative for crossed designs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed

Floats = NDArray[np.float64]

REPLICATES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and what the interval covers."""

    mean: float
    low: float
    high: float
    n_seeds: int
    n_episodes: int

    @property
    def covers(self) -> str:
        """What another experiment may redraw for the interval to hold, in words."""
        return "episodes" if self.n_seeds == 1 else "training seeds and episodes"


def estimate(scores: Sequence[Floats], level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean over targets of the mean score, with a bootstrap percentile interval.

    `scores`: one array a target, each ``(n_seeds, n_episodes)``, the seeds in the same order; the
    targets are taken as given, and seeds are resampled together for all of them. NaN scores (an
    AUROC that does not exist) are left out. The interval covers new training seeds and new
    episodes from the same images, not new images.

    >>> e = estimate([np.full((1, 10), 0.5)])
    >>> (e.mean, e.low, e.high)
    (0.5, 0.5, 0.5)
    """
    arrays = [np.atleast_2d(np.asarray(s, dtype=np.float64)) for s in scores]
    if not arrays or any(a.size == 0 for a in arrays):
        raise ValueError("estimate needs at least one target with at least one episode.")
    n_seeds = arrays[0].shape[0]
    if any(a.shape[0] != n_seeds for a in arrays):
        raise ValueError("every target must have the same seeds.")
    seed_weights = _weights(n_seeds, seed, -1)
    replicates = np.zeros(REPLICATES)
    mean = 0.0
    for i, array in enumerate(arrays):
        there = np.isfinite(array)
        filled = np.where(there, array, 0.0)
        episode_weights = _weights(array.shape[1], seed, i)
        total = np.einsum("bs,bs->b", seed_weights, episode_weights @ filled.T)
        count = np.einsum("bs,bs->b", seed_weights, episode_weights @ there.T.astype(np.float64))
        replicates += total / np.maximum(count, 1)
        mean += filled.sum() / max(1, int(there.sum()))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(replicates / len(arrays), [tail, 100 - tail])
    return Estimate(
        mean=mean / len(arrays),
        low=float(low),
        high=float(high),
        n_seeds=n_seeds,
        n_episodes=sum(a.shape[1] for a in arrays),
    )


@lru_cache(maxsize=64)
def _weights(n: int, seed: int, stream: int) -> Floats:
    """How often each of `n` things is drawn in each replicate, ``(REPLICATES, n)``.

    Kept, because a board asks for the same numbers of episodes again and again.
    """
    # RandomState's streams are frozen by numpy's policy: tables can be rebuilt bit by bit.
    random = np.random.RandomState(derive_seed("bootstrap", n, seed, stream) % 2**32)
    found: Floats = random.multinomial(n, np.full(n, 1 / n), size=REPLICATES).astype(np.float64)
    found.setflags(write=False)
    return found
