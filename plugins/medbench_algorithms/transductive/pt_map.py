"""PT-MAP (Hu, Gripon and Pateux, ICANN 2021).

"Leveraging the Feature Distribution in Transfer-based Few-Shot Learning".
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench_algorithms.common.geometry import squared_distances
from medbench_algorithms.transductive.joint import Joint, Points, compact, means_of, split
from medbench_algorithms.transductive.sinkhorn import transport

Negatives = Literal["clip", "sign"]
_EPSILON = 1e-6


def power_transform(features: Tensor, beta: float, negatives: Negatives) -> Tensor:
    """Features ``(..., d)`` closer to a Gaussian, of unit length (section 3.2, Eq. 1).

    The paper's come from a ReLU. Where they do not, ``clip`` takes negative values as zero and
    ``sign`` transforms their size and keeps their sign.
    """
    if negatives == "clip":
        powered = (features.clamp_min(0) + _EPSILON) ** beta
    else:
        powered = (features.abs() + _EPSILON) ** beta * features.sign()
    return F.normalize(powered, dim=-1)


def centred(features: Tensor, on: Tensor) -> Tensor:
    """Features less the mean of `on`, of unit length."""
    return F.normalize(features - on.mean(-2, keepdim=True), dim=-1)


@final
class PTMAP(Joint):
    """Class centres that share the queries out evenly, on features made more Gaussian.

    Features are raised to the power ``beta``, scaled to unit length, and centred on the mean of
    the support set and of the query set, each on its own (section 3.2, and the authors' code).
    Then ``steps`` times: a Sinkhorn plan between queries and centres, at ``sharpness`` (lambda)
    times the squared distance (Eq. 3), and a move of the centres by ``centre_rate`` (alpha) of the
    way to the means under that plan (Eqs. 4 and 5). The plan gives every class the same number of
    queries: the method assumes that query sets are balanced, and gains from it where they are.

    Defaults are those of the authors' code (for five shots). A single query can be neither centred
    on itself nor shared out: it is centred on the support set and goes by distance alone.
    """

    def __init__(
        self,
        *,
        steps: int = 20,
        beta: float = 0.5,
        sharpness: float = 10.0,
        centre_rate: float = 0.2,
        negatives: Negatives = "clip",
    ) -> None:
        super().__init__(normalize="none")
        self.steps = steps
        self.beta = beta
        self.sharpness = sharpness
        self.centre_rate = centre_rate
        self.negatives: Negatives = negatives

    def count_adapted(self, n_way: int, d: int) -> int:
        """One centre a class."""
        return n_way * d

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """The log of the last plan, ``(e, q, k)``: log-probabilities."""
        support, query = split(power_transform(points.scaled(), self.beta, self.negatives), targets)
        alone = query.shape[-2] == 1
        query = centred(query, support if alone else query)
        features, targets = torch.cat([centred(support, support), query], -2), targets.double()
        support, query = split(compact(features), targets)
        counts, sums = targets.sum(-1, keepdim=True), targets @ support
        centres = means_of(support, targets)
        n_query, n_way = query.shape[-2], targets.shape[-2]
        totals = centres.new_full(centres.shape[:2], n_query / n_way)
        potentials = torch.zeros_like(totals)
        for step in range(self.steps + 1):
            log_plan = -self.sharpness * squared_distances(centres, query)
            if alone:
                log_plan = log_plan.log_softmax(-2)
            else:
                log_plan, potentials = transport(log_plan, totals, potentials)
            if step < self.steps:
                plan = log_plan.exp()
                means = (sums + plan @ query) / (counts + plan.sum(-1, keepdim=True))
                centres = torch.lerp(centres, means, self.centre_rate)
        return log_plan.mT
