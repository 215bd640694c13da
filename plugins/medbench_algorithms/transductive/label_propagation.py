"""Label propagation ("Learning with Local and Global Consistency", Zhou et al., NeurIPS 2004)."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor
from torch.nn import functional as F

from medbench_algorithms.metric.simpleshot import Normalize
from medbench_algorithms.transductive.graph import (
    distances_among,
    nearest_only,
    propagate,
    symmetric,
)
from medbench_algorithms.transductive.joint import Joint, Points

Kernel = Literal["gaussian", "cosine"]


@final
class LabelPropagation(Joint):
    """Support labels, spread over a graph of support and query images together.

    Affinities are ``exp(-|x - z|^2 / (2 sigma^2))``, or the cosine where it is positive, and zero
    from an image to itself; labels spread to their fixed point in closed form (Eq. 3).
    ``neighbours``: keep pairs only where one is among the other's nearest so many; None keeps all,
    as the paper does.

    The paper's ``alpha`` of 0.99 is for thousands of images: among the hundred of an episode, what
    all have in common then outweighs what tells them apart, and one class takes all queries. The
    default is 0.8. The paper sets ``sigma`` for each of its data sets; 0.25, on centred features
    of unit length, is a choice.
    """

    def __init__(
        self,
        *,
        kernel: Kernel = "gaussian",
        sigma: float = 0.25,
        alpha: float = 0.8,
        neighbours: int | None = None,
        normalize: Normalize = "cl2",
    ) -> None:
        super().__init__(normalize=normalize)
        self.kernel: Kernel = kernel
        self.sigma = sigma
        self.alpha = alpha
        self.neighbours = neighbours

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Log-probabilities ``(e, q, k)``: the shares of what reaches a query."""
        affinity = self.affinity(points.scaled()).double()
        reached = propagate(affinity, targets.mT.double(), self.alpha)
        spread = reached[..., targets.shape[-1] :, :]
        # A query that nothing reaches is as likely of any class; rounding may go below zero.
        spread = spread.clamp_min(1e-30)
        return (spread / spread.sum(-1, keepdim=True)).log()

    def affinity(self, features: Tensor) -> Tensor:
        """The graph ``(e, n, n)`` of features ``(e, n, d)``."""
        if self.kernel == "gaussian":
            weights = distances_among(features).mul_(-0.5 / self.sigma**2).exp_()
        else:
            unit = F.normalize(features, dim=-1)
            weights = symmetric(unit @ unit.mT).clamp_min_(0)
        weights.diagonal(dim1=-2, dim2=-1).zero_()
        return weights if self.neighbours is None else nearest_only(weights, self.neighbours)
