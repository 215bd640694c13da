"""The Bayesian signed-rank test: how probably one method is better by more than a trifle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medbench.api import derive_seed
from medbench.stats.spread import Floats

_CHUNK = 500


@dataclass(frozen=True)
class Posterior:
    """Probabilities that the second method, neither, or the first is the better one in practice."""

    second: float
    neither: float
    first: float


def signed_rank(
    differences: Floats, rope: float, *, prior: float = 0.5, draws: int = 50_000, seed: int = 0
) -> Posterior:
    """The posterior of differences ``first - second``, one for each data set, ``(n,)``.

    A Dirichlet process weighs the data sets and one prior observation of strength `prior` at 0;
    in each draw the three regions (below ``-rope``, within, above) get the weight of the pairs
    whose mean lies there, and the largest wins (Benavoli, Mangili, Corani, Zaffalon and Ruggeri,
    International Conference on Machine Learning 2014; Benavoli, Corani, Demšar and Zaffalon,
    Journal of Machine Learning Research 18 (2017) 1-36). Equal weights are shared. Raises
    `ValueError` for no difference, one that is not finite, or a `rope` below 0.
    """
    known = np.asarray(differences, dtype=np.float64)
    if known.ndim != 1 or not len(known) or not np.isfinite(known).all() or rope < 0:
        raise ValueError(
            f"a signed-rank posterior needs finite differences and a region of 0 or more, and got "
            f"{known.shape} differences and {rope}."
        )
    values = np.concatenate([[0.0], known])
    sums = values[:, None] + values
    above, below = (sums > 2 * rope).astype(float), (sums < -2 * rope).astype(float)
    # RandomState's streams are frozen by numpy's policy.
    random = np.random.RandomState(derive_seed("signed-rank", seed) % 2**32)
    won = np.zeros(3)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        weights = random.dirichlet([prior, *np.ones(len(known))], size=size)
        first = ((weights @ above) * weights).sum(axis=1)
        second = ((weights @ below) * weights).sum(axis=1)
        shares = np.stack([second, 1 - first - second, first]).round(12)
        best = shares == shares.max(axis=0)
        won += (best / best.sum(axis=0)).sum(axis=1)
    return Posterior(*(float(w) for w in won / draws))
