"""Finds steps in a series: when a level changed, and by how much.

The series is cut into pieces of constant level so that the squared distance to them plus a penalty
for every cut is least, by dynamic programming over all cuts (Jackson et al., IEEE Signal
Processing Letters 12 (2005) 105-108). Single outliers are drawn in first: a run that a neighbour
disturbed is no step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medbench.gate.measurements import Floats

# A level needs so many runs: two could be one bad hour.
SHORTEST = 3
# Times sigma squared and the log of the length. Twice what the Schwarz criterion asks for a cut
# (its place and its level), because noise of runs has heavier tails than it assumes.
_PENALTY = 8.0
_OUTLIER = 3.0


@dataclass(frozen=True)
class Step:
    """A change of level before the run with number `at`; interval of 95 % for the change."""

    at: int
    before: float
    after: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


def find_steps(values: Sequence[float] | Floats, least_noise: float, smallest: float) -> list[Step]:
    """The steps in `values` ``(n,)`` that are at least `smallest`.

    `least_noise` is the standard deviation below which noise is not believed to be: a series that
    happens to repeat itself has some too.
    """
    series = np.asarray(values, dtype=np.float64)
    n = len(series)
    if n < 2 * SHORTEST:
        return []
    sigma = max(noise_of(series), least_noise)
    clean = _without_outliers(series, sigma)
    cuts = _cuts(clean, _PENALTY * sigma**2 * math.log(n))
    edges = [0, *cuts, n]
    found = []
    for i, cut in enumerate(cuts):
        left, right = clean[edges[i] : cut], clean[cut : edges[i + 2]]
        change = float(right.mean() - left.mean())
        if abs(change) < smallest:
            continue
        error = sigma * math.sqrt(1 / len(left) + 1 / len(right))
        half = float(stats.t.ppf(0.975, n - len(edges) + 1)) * error
        found.append(
            Step(cut, float(left.mean()), float(right.mean()), change - half, change + half)
        )
    return found


def noise_of(series: Floats) -> float:
    """The standard deviation of a series around its levels, from differences of neighbours.

    The median of their sizes knows nothing of the few that span a step.
    """
    differences = np.abs(np.diff(series))
    return float(np.median(differences)) / (0.6745 * math.sqrt(2))


def _without_outliers(series: Floats, sigma: float) -> Floats:
    """Single values far from both neighbours become the median of the three."""
    found: Floats = series.copy()
    inner = np.median(np.stack([series[:-2], series[1:-1], series[2:]]), axis=0)
    far = np.abs(series[1:-1] - inner) > _OUTLIER * sigma
    found[1:-1][far] = inner[far]
    for end, near in ((0, series[1:3]), (-1, series[-3:-1])):
        middle = float(np.median(near))
        if abs(series[end] - middle) > _OUTLIER * sigma:
            found[end] = middle
    return found


def _cuts(series: Floats, penalty: float) -> list[int]:
    n = len(series)
    sums = np.concatenate([[0.0], np.cumsum(series)])
    squares = np.concatenate([[0.0], np.cumsum(series**2)])
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(n + 1, dtype=np.int64)
    for end in range(SHORTEST, n + 1):
        starts = np.arange(0, end - SHORTEST + 1)
        lengths = end - starts
        cost = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / lengths
        total = best[starts] + cost + penalty
        choice = int(total.argmin())
        best[end], last[end] = total[choice], starts[choice]
    cuts: list[int] = []
    end = int(last[n])
    while end > 0:
        cuts.append(end)
        end = int(last[end])
    return cuts[::-1]
