"""What scores of shared episodes say: intervals, paired tests, ranks, ties; numpy and scipy only.

scipy is imported where it is used, so that a table of one training seed is made without it.
"""

from __future__ import annotations

from medbench.stats.across import AcrossDatasets, across_datasets, friedman, joined
from medbench.stats.bayes import Posterior, signed_rank
from medbench.stats.bootstrap import (
    REPLICATES,
    Estimate,
    bca,
    ends,
    estimate,
    means,
    percentiles,
    replicates,
    weights,
)
from medbench.stats.clusters import (
    Answered,
    estimate_groups,
    estimates_by_group,
    group_replicates,
)
from medbench.stats.paired import (
    Difference,
    Tested,
    compare,
    holm,
    midranks,
    p_values,
    sign_flip,
    tested,
    wilcoxon,
    with_seeds,
)
from medbench.stats.ranks import better_than, p_best, rank_bounds, tie_groups
from medbench.stats.spread import Floats, Spread

__all__ = [
    "REPLICATES",
    "AcrossDatasets",
    "Answered",
    "Difference",
    "Estimate",
    "Floats",
    "Posterior",
    "Spread",
    "Tested",
    "across_datasets",
    "bca",
    "better_than",
    "compare",
    "ends",
    "estimate",
    "estimate_groups",
    "estimates_by_group",
    "friedman",
    "group_replicates",
    "holm",
    "joined",
    "means",
    "midranks",
    "p_best",
    "p_values",
    "percentiles",
    "rank_bounds",
    "replicates",
    "sign_flip",
    "signed_rank",
    "tested",
    "tie_groups",
    "weights",
    "wilcoxon",
    "with_seeds",
]
