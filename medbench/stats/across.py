"""Several methods over several data sets: whether any differ, and which of them.

Here a data set is one observation, so that the answer is about data sets like these; the tests on
shared episodes (`medbench.stats.paired`) are about these data sets alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from medbench.stats.paired import holm, midranks, wilcoxon
from medbench.stats.ranks import better_than, tie_groups
from medbench.stats.spread import Floats

# With five data sets, no two methods could differ at 5 % by Wilcoxon's test.
FEWEST = 6


@dataclass(frozen=True)
class AcrossDatasets:
    """Friedman's test, and what follows it.

    ``mean_ranks`` are in the order of the methods (1 is best), ``critical_difference`` is
    Nemenyi's, ``nemenyi`` and ``wilcoxon_holm`` are p values of all `pairs`; ``groups`` are the
    letters that Wilcoxon-Holm leaves together.
    """

    n_datasets: int
    friedman: float
    p: float
    mean_ranks: tuple[float, ...]
    critical_difference: float
    pairs: tuple[tuple[int, int], ...]
    nemenyi: tuple[float, ...]
    wilcoxon_holm: tuple[float, ...]
    groups: tuple[str, ...]


def across_datasets(scores: Floats) -> AcrossDatasets:
    """Compare methods over data sets (Demšar, Journal of Machine Learning Research 7 (2006) 1-30).

    `scores`: ``(n_datasets, n_methods)``, larger is better. Raises `ValueError` for fewer than six
    data sets or two methods, or where a score is missing.
    """
    values = np.asarray(scores, dtype=np.float64)
    n, k = values.shape
    if n < FEWEST or k < 2:
        raise ValueError(
            f"comparing over data sets needs {FEWEST} data sets and 2 methods, and there are {n} "
            f"and {k}."
        )
    if not np.isfinite(values).all():
        raise ValueError("comparing over data sets needs a score of every method on each.")
    ranks = midranks(-values)
    mean = ranks.mean(axis=0)
    statistic, p = friedman(values)
    pairs = list(itertools.combinations(range(k), 2))
    own = holm(np.array([wilcoxon(values[:, i] - values[:, j]) for i, j in pairs]))
    order = np.argsort(mean, kind="stable")
    better = better_than(-mean, own, pairs)
    letters = tie_groups((better | better.T)[np.ix_(order, order)])
    groups = dict(zip(order.tolist(), letters, strict=True))
    off = math.sqrt(k * (k + 1) / (6 * n))
    return AcrossDatasets(
        n_datasets=n,
        friedman=statistic,
        p=p,
        mean_ranks=tuple(mean.tolist()),
        critical_difference=_studentised(0.05, k) * off,
        pairs=tuple(pairs),
        nemenyi=tuple(_tail(abs(mean[i] - mean[j]) / off, k) for i, j in pairs),
        wilcoxon_holm=tuple(own.tolist()),
        groups=tuple(groups[i] for i in range(k)),
    )


def friedman(scores: Floats) -> tuple[float, float]:
    """Friedman's chi-square of ``(n_datasets, n_methods)`` scores, corrected for ties, and its p.

    Friedman, Journal of the American Statistical Association 32 (1937) 675-701. All scores equal:
    0 and 1.
    """
    from scipy.special import chdtrc

    ranks = midranks(np.asarray(scores, dtype=np.float64))
    n, k = ranks.shape
    squares = float(((ranks - (k + 1) / 2) ** 2).sum())
    if squares == 0:
        return 0.0, 1.0
    between = float(((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum())
    statistic = n * n * (k - 1) * between / squares
    return statistic, float(chdtrc(k - 1, statistic))


def _studentised(level: float, k: int) -> float:
    """Nemenyi's q: the studentised range of k means, over the square root of two."""
    from scipy.stats import studentized_range

    return float(studentized_range.isf(level, k, math.inf)) / math.sqrt(2)


def _tail(q: float, k: int) -> float:
    from scipy.stats import studentized_range

    return float(np.clip(studentized_range.sf(q * math.sqrt(2), k, math.inf), 0.0, 1.0))
