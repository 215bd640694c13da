"""Intervals that cover new patients, sites or images: whole groups are resampled.

Episodes redraw the same test images again and again, so a bootstrap over episodes says nothing of
other patients. Where the group behind every query is known, the groups are drawn anew as wholes
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Both sources of
chance are crossed, and their variances add up, less what single answers bring to both (Cameron,
Gelbach and Miller, Journal of Business and Economic Statistics 29 (2011) 238-249).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medbench.stats.bootstrap import (
    REPLICATES,
    Estimate,
    checked,
    means,
    percentiles,
    replicates,
    weights,
)
from medbench.stats.spread import Floats, Spread

# Of fewer groups a bootstrap says too little.
FEWEST = 10


def group_replicates(sums: Floats, counts: Floats, stream: int = 0, seed: int = 0) -> Floats:
    """The mean score over all queries in every replicate of groups, ``(n_rows, REPLICATES)``.

    `sums`, `counts`: ``(n_rows, n_groups)``, what the queries of each group scored and how many
    they are. Every group is drawn whole, so large ones weigh more, as they do in the mean.
    """
    drawn = weights(sums.shape[1], seed, f"groups{stream}").astype(np.float64)
    total = counts @ drawn.T
    found: Floats = (sums @ drawn.T) / np.where(total > 0, total, 1.0)
    return found


def estimate_groups(
    scores: Sequence[Floats],
    sums: Sequence[Floats],
    counts: Sequence[Floats],
    kind: str,
    seed: int = 0,
) -> Estimate:
    """As `medbench.stats.estimate`, of accuracies, covering new groups of `kind` besides.

    `scores`: for each target ``(n_seeds, n_episodes)``; `sums`: ``(n_groups,)``, the right answers
    of each group, averaged over seeds; `counts`: ``(n_groups,)``, its queries. Raises `ValueError`
    for fewer than ten groups, which are too few to stand for others.
    """
    arrays = checked(scores)
    total, spread = np.zeros((1, REPLICATES)), None
    mean, shared = np.zeros(1), np.zeros(1)
    among = np.zeros(1)
    for i, (array, right, asked) in enumerate(zip(arrays, sums, counts, strict=True)):
        if len(right) < FEWEST:
            raise ValueError(f"{len(right)} {kind}s are too few to resample; {FEWEST} are needed.")
        own = Spread.of(array[None])
        spread = own if spread is None else spread + own
        mean += means(array[None])
        by_group = group_replicates(right[None], asked[None], i, seed)
        middle = by_group.mean(axis=1, keepdims=True)
        total += replicates(array[None], i, seed) + by_group - middle
        among += by_group.var(axis=1)
        share = float(right.sum() / asked.sum())
        # With several seeds an answer is a mean of zeros and ones, which varies less than this.
        shared += share * (1 - share) / float(asked.sum()) if array.shape[0] == 1 else 0.0
    assert spread is not None
    n = len(arrays)
    mean, total, spread = mean / n, total / n, spread.over(n)
    low, high = percentiles(total)
    given = total.var(axis=1)
    wanted = np.maximum(given - shared / n**2, np.maximum(among / n**2, spread.variance))
    factor = np.sqrt(wanted / given) if given[0] > 0 else np.ones(1)
    if spread.n_seeds > 1:
        factor = factor * spread.widening(factor * (high - low), 0.95)
    n_episodes = sum(a.shape[1] for a in arrays)
    low, high = mean - factor * (mean - low), mean + factor * (high - mean)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), spread.n_seeds, n_episodes, kind)
