"""Feature Map Reconstruction Networks (Wertheimer, Tang and Hariharan, CVPR 2021)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.metric.places import MapPredictor, class_pools, descriptors

AuxiliaryNorm = Literal["all", "rows"]
_LEAST_LAMBDA = 1e-6  # the authors' code


@final
class FRNHead(nn.Module):
    """Three learned numbers: ``alpha`` and ``beta`` (Eq. 7), and ``gamma`` (Eq. 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))
        self.gamma = nn.Parameter(torch.ones(()))


def reconstruction(pools: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor | None]:
    """Ridge regression onto the rows of pools ``(..., m, d)``, as factors of a ``d x d`` matrix.

    ``(A, None)`` or ``(A, B)``: descriptors ``(..., q, d)`` are reconstructed as ``Q A`` or
    ``Q A B``. With many rows it is Eq. 10, ``A = (S'S + ridge)^-1 S'S``; with few, where ``Q A B``
    is cheaper, Eq. 8: ``A = S'``, ``B = (SS' + ridge)^-1 S``. Rows of zeros change nothing.
    `ridge` is ``(...)``. Solved in float64: pools are far from full rank.
    """
    m, d = pools.shape[-2:]
    wide = pools.double()
    few = 2 * m <= d
    gram = wide @ wide.mT if few else wide.mT @ wide
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + ridge.double()[..., None, None] * eye)
    if few:
        return pools.mT, torch.cholesky_solve(wide, factor).to(pools.dtype)
    return torch.cholesky_solve(gram, factor).to(pools.dtype), None


def overlap(pools: Tensor, norm: AuxiliaryNorm) -> Tensor:
    """How far pools ``(n_way, m, d)`` are from orthogonal: sum of ``|S_i S_j'|^2``, ``i != j``.

    Each row is scaled to unit length first, or all of them together.
    """
    if norm == "rows":
        unit = F.normalize(pools, dim=-1)
    else:
        unit = F.normalize(pools.flatten(), dim=0).view_as(pools)
    # |S_i S_j'|^2 is the inner product of the d x d Gram matrices of i and j.
    grams = unit.mT @ unit
    return grams.sum(0).square().sum() - grams.square().sum()


@final
class FRNPredictor(MapPredictor):
    """Scores classes by how well their pools reconstruct a query's descriptors (Eqs. 5 and 6)."""

    def __init__(
        self, factors: tuple[Tensor, Tensor | None], rho: Tensor, gamma: Tensor, scale: float
    ) -> None:
        a, b = factors
        super().__init__(a, *(() if b is None else (b,)))
        self.rho, self.gamma, self.scale = rho, gamma, scale
        self._size = a.shape[-3] * max(a.shape[-2:])

    def numbers_per_query(self, n_places: int) -> int:
        """One reconstruction for each place and class."""
        return n_places * self._size

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """Minus the mean squared error over places, times gamma."""
        n_query = query.shape[1]
        own = (descriptors(query) * self.scale).flatten(1, 2).unsqueeze(1)
        found = own
        for factor in kept:
            found = found @ factor
        errors = (self.rho.to(own.dtype) * found - own).square().sum(-1)
        by_place = errors.reshape(*errors.shape[:-1], n_query, -1)
        scores: Tensor = -self.gamma.to(own.dtype) * by_place.mean(-1).mT
        return scores


@final
class FRN(Episodic[FRNHead]):
    """Reconstructs a query's map from the descriptors of each class, and takes the best fit.

    The reconstruction is ridge regression in closed form (Eqs. 4, 8 and 10), with penalty
    ``(k r / d) exp(alpha)`` and the result scaled by ``exp(beta)``; both, and the temperature
    gamma, are learned (section 3.3). The loss is the cross-entropy of the queries plus
    ``auxiliary`` times the squared Frobenius norms between the pools of different classes
    (section 3.5, weight 0.03). The paper scales every descriptor to unit length there; the sum
    over all pairs of descriptors then outweighs the cross-entropy many times over. Its code,
    from which the published numbers come, scales all of the support set together, the default
    here (``auxiliary_norm``: all).

    ``rescale`` divides maps by the square root of their channels, as the authors do for ResNet-12.
    """

    view = "maps"

    def __init__(
        self,
        *,
        rescale: bool = False,
        auxiliary: float = 0.03,
        auxiliary_norm: AuxiliaryNorm = "all",
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.rescale = rescale
        self.auxiliary = auxiliary
        self.auxiliary_norm: AuxiliaryNorm = auxiliary_norm

    def build(self, backbone: Backbone) -> FRNHead:
        """Alpha and beta start at zero, gamma at one (section 4, implementation details)."""
        return FRNHead()

    def predictor(self, head: FRNHead, support: Support) -> FRNPredictor:
        """Solve the ridge regression of every class."""
        d, h, w = support.inputs.shape[-3:]
        scale = d**-0.5 if self.rescale else 1.0
        pools, _ = class_pools(support.inputs * scale, support.labels, support.n_way)
        shots = class_masks(support.labels, support.n_way).sum(-1)
        ridge = shots * (h * w / d) * head.alpha.double().exp() + _LEAST_LAMBDA
        return FRNPredictor(reconstruction(pools, ridge), head.beta.exp(), head.gamma, scale)

    def loss(self, head: FRNHead, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """Cross-entropy, and the penalty on what the pools of two classes have in common."""
        pools, _ = class_pools(support.inputs, support.labels, support.n_way)
        penalty = overlap(pools, self.auxiliary_norm)
        return super().loss(head, support, query, query_labels) + self.auxiliary * penalty
