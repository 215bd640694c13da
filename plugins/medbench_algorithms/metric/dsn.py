"""Deep Subspace Networks (Simon, Koniusz, Nock and Harandi, CVPR 2020)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import few_at_a_time, squared_distances
from medbench_algorithms.metric.by_class import by_class
from medbench_algorithms.metric.subspace import truncated_inverse

# Squared length, relative to the longest feature's, below which a direction is rounding: float32
# features differ by 1e-7 of their length, that is 1e-14 squared.
_ROUNDING = 1e-12


@final
class SubspacePredictor(Predictor):
    """Classifies by the distance to the affine subspace that each class spans.

    ``means`` ``(..., n_way, d)``; ``spread`` ``(..., n_way, k, d)``, the support features less
    their class mean, null where a class has fewer than ``k``; ``inverse`` ``(..., n_way, k, k)``,
    the truncated inverse of their Gram matrix. All float64.
    """

    def __init__(self, means: Tensor, spread: Tensor, inverse: Tensor, temperature: float) -> None:
        self.means = means
        self.spread = spread
        self.inverse = inverse
        self.temperature = temperature

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)``: minus the squared distances to the subspaces.

        With v the query less the class mean and P an orthonormal basis of the subspace,
        ``|v - P P^T v|^2 = |v|^2 - (X v)^T (X X^T)^+ (X v)``.
        """
        n_way, k = self.spread.shape[-3:-1]
        of_means = (self.spread @ self.means.unsqueeze(-1)).flatten(-3, -2).mT

        def scores(
            query: Tensor, means: Tensor, spread: Tensor, of_means: Tensor, inverse: Tensor
        ) -> Tensor:
            q = query.double()
            along = (q @ spread.mT - of_means).reshape(*q.shape[:-1], n_way, k).transpose(-3, -2)
            inverse = inverse.reshape(*inverse.shape[:-2], n_way, k, k)
            inside = ((along @ inverse) * along).sum(-1).mT
            squared = (squared_distances(q, means) - inside).clamp_min(0)
            return (-squared / self.temperature).to(query.dtype)

        rows = self.spread.flatten(-3, -2), of_means, self.inverse.flatten(-3, -2)
        return few_at_a_time(scores, query, self.means, *rows)

    def overlap(self) -> Tensor:
        """How much the subspaces share ``(...)``: ``sum_{i != j} |P_i^T P_j|_F^2``.

        A term is ``trace(M_i M_j)`` of the projectors ``M = X^T (X X^T)^+ X``.
        """
        products = torch.einsum("...iad,...jbd->...iajb", self.spread, self.spread)
        half = torch.einsum("...iab,...ibjc->...iajc", self.inverse, products)
        shared = torch.einsum("...iajc,...jcia->...ij", half, half)
        of_itself: Tensor = shared.diagonal(dim1=-2, dim2=-1).sum(-1)
        return shared.sum((-2, -1)) - of_itself


@final
class DSN(Episodic[nn.Identity]):
    """Learns features in which every class lies near a subspace through its mean.

    A class's subspace is spanned by the leading left-singular vectors of its support features less
    their mean (section 3.1): one fewer than its shots, or ``subspace_dim`` if that is less; always
    fewer than the features have dimensions, as nothing is off the whole space. A query's logits
    are minus its squared distances to the subspaces, divided by ``temperature``.
    Training adds to the queries' cross-entropy ``overlap_weight`` (lambda) times the overlap of the
    subspaces. As in the authors' Conv-4 code lambda is 0.03 and the rate of Adam, 1e-3, is
    halved every 5000 episodes; that code also takes the distance for its square, which the paper
    does not, and their ResNet-12 code leaves lambda out.

    One image spans nothing: with one shot the distance is that to the image itself, as ProtoNet's.
    The authors add its mirror image and so get a line; a method on features has no images to
    mirror. Directions that are null up to rounding, as those of repeated images, are left out,
    where a singular value decomposition would give any.
    """

    def __init__(
        self,
        *,
        subspace_dim: int | None = None,
        temperature: float = 1.0,
        overlap_weight: float = 0.03,
        lr: float = 1e-3,
        lr_halve_every: int = 5000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.subspace_dim = subspace_dim
        self.temperature = temperature
        self.overlap_weight = overlap_weight

    def build(self, backbone: Backbone) -> nn.Identity:
        """Nothing is learned beside the backbone."""
        return nn.Identity()

    def predictor(self, head: nn.Identity, support: Support) -> SubspacePredictor:
        """The means and subspaces of support features ``(..., n_support, d)``."""
        members, there = by_class(support.inputs.double(), support.labels, support.n_way)
        weights = there.to(members.dtype).unsqueeze(-1)
        shots = there.sum(-1)
        means = (members * weights).sum(-2) / shots.unsqueeze(-1)
        spread = (members - means.unsqueeze(-2)) * weights
        most = members.shape[-1] - 1
        if self.subspace_dim is not None:
            most = min(most, self.subspace_dim)
        longest = (members * weights).square().sum(-1).amax(-1)
        inverse = truncated_inverse(
            spread @ spread.mT, (shots - 1).clamp_max(most), _ROUNDING * longest.detach()
        )
        return SubspacePredictor(means, spread, inverse, self.temperature)

    def loss(
        self, head: nn.Identity, support: Support, query: Tensor, query_labels: Tensor
    ) -> Tensor:
        """Cross-entropy of the queries, and the overlap of the subspaces."""
        predictor = self.predictor(head, support)
        classification = F.cross_entropy(predictor.predict(query), query_labels)
        return classification + self.overlap_weight * predictor.overlap().to(classification.dtype)
