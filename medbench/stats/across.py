"""Several methods over several data sets: whether any differ, and which of them.

Here a data set is one observation, so that the answer is about data sets like these; the tests on
shared episodes (`medbench.stats.paired`) are about these data sets alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medbench.stats.paired import holm, midranks, wilcoxon
from medbench.stats.ranks import better_than, tie_groups
from medbench.stats.spread import Floats

# With five data sets, no two methods could differ at 5 % by Wilcoxon's test.
FEWEST = 6
# A bound of memory: rows of one integral.
_ROWS = 1024


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
        nemenyi=tuple(
            _tail(np.array([abs(mean[i] - mean[j]) for i, j in pairs]) / off, k).tolist()
        ),
        wilcoxon_holm=tuple(own.tolist()),
        groups=tuple(groups[i] for i in range(k)),
    )


def joined(mean_ranks: Sequence[float], critical_difference: float) -> list[tuple[int, ...]]:
    """The largest sets of methods that Nemenyi's test does not tell apart: bars of a diagram.

    Each set holds methods by number, in the order of their `mean_ranks`, and all of it lies within
    less than the `critical_difference`: so far apart, two methods differ (Demšar 2006, section
    3.2.2). A method that differs from all others is in no set.

    >>> joined([3.0, 1.0, 2.5], 1.0)
    [(2, 0)]
    """
    order = sorted(range(len(mean_ranks)), key=lambda i: mean_ranks[i])
    sets: list[tuple[int, ...]] = []
    reached = 0
    for start, first in enumerate(order):
        end = start + 1
        while end < len(order) and mean_ranks[order[end]] - mean_ranks[first] < critical_difference:
            end += 1
        if end > reached and end - start > 1:
            sets.append(tuple(order[start:end]))
        reached = max(reached, end)
    return sets


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
    low, high = 0.0, 20.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        beyond = float(_tail(np.array([middle]), k)[0]) > level
        low, high = (middle, high) if beyond else (low, middle)
    return (low + high) / 2


def _tail(q: Floats, k: int) -> Floats:
    """The chance that k normal means range over more than each of `q` times the root of two.

    With the largest of them at z, the others lie within that range below it. The integrand is
    smooth and vanishes at both ends, where the trapezoid rule is as good as any. scipy's
    studentised range agrees to 1e-12, takes a second to import, and then long for each number.
    """
    from scipy.special import ndtr

    z = np.linspace(-9.0, 9.0, 601)
    density = k * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    found = np.empty(len(q))
    for start in range(0, len(q), _ROWS):
        below = ndtr(z - q[start : start + _ROWS, None] * math.sqrt(2))
        within: Floats = (ndtr(z) - below) ** (k - 1) * density
        found[start : start + _ROWS] = 1.0 - within.sum(axis=1)
    return np.clip(found, 0.0, 1.0)
