"""The Mahalanobis head of Simple CNAPS (Bateni, Goyal, Masrani, Wood and Sigal, CVPR 2020)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.common.geometry import (
    class_masks,
    class_means,
    few_at_a_time,
    squared_distances,
)


@final
class MahalanobisPredictor(Predictor):
    """Classifies by the Mahalanobis distance to each class, under that class's covariance.

    ``centred`` ``(..., n, d)`` are the support features less their mean ``centre`` ``(..., 1, d)``,
    ``means`` ``(..., n_way, d)`` those of the classes less the same; ``root``
    ``(..., n_way, n, n)`` is the symmetric R_k with ``Q_k = beta I + X^T R_k R_k X``. All float64.
    """

    def __init__(
        self, centre: Tensor, centred: Tensor, means: Tensor, root: Tensor, beta: float
    ) -> None:
        self.centre = centre
        self.centred = centred
        self.means = means
        self.root = root
        self.beta = beta
        n_way, n = root.shape[-3:-1]

        def factor(centred: Tensor, root: Tensor) -> Tensor:
            root = root.reshape(*root.shape[:-2], n_way, n, n)
            inner = root @ (centred @ centred.mT).unsqueeze(-3) @ root
            inner.diagonal(dim1=-2, dim2=-1).add_(beta)
            lower: Tensor = torch.linalg.cholesky(inner)
            return lower.flatten(-3, -2)

        found = few_at_a_time(factor, centred, root.flatten(-3, -2))
        self.factor = found.reshape(root.shape)

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)``: minus half the squared distances.

        The inverse of Q_k is applied in the span of the support set, by Woodbury's identity: with
        v the query less the class mean and B = R_k X,
        ``v^T Q_k^-1 v = (|v|^2 - |L^-1 B v|^2) / beta`` where ``L L^T = beta I + B B^T``.
        """
        of_means = (self.centred @ self.means.mT).mT  # (..., n_way, n)
        n_way, n = of_means.shape[-2:]

        def scores(query: Tensor, *kept: Tensor) -> Tensor:
            centre, centred, means, of_means, root, factor = kept
            q = query.double() - centre
            along = (centred @ q.mT).unsqueeze(-3) - of_means.unsqueeze(-1)
            root, factor = (t.reshape(*t.shape[:-2], n_way, n, n) for t in (root, factor))
            inside: Tensor = torch.linalg.solve_triangular(factor, root @ along, upper=False)
            whole = squared_distances(q, means)
            squared = (whole - inside.square().sum(-2).mT).clamp_min(0) / self.beta
            return (-0.5 * squared).to(query.dtype)

        kept = self.centre, self.centred, self.means, of_means
        by_class = self.root.flatten(-3, -2), self.factor.flatten(-3, -2)
        return few_at_a_time(scores, query, *kept, *by_class)


@final
class SimpleCNAPS(Algorithm):
    """Classifies by Mahalanobis distances under class covariances drawn to the task's.

    ``Q_k = l_k S_k + (1 - l_k) S + beta I`` with ``l_k = n_k / (n_k + 1)`` (section 4), where
    S_k and S are the unbiased covariances of the support features of class k and of all of them;
    S_k is null for a class of one image. Logits are ``-1/2 (f - m_k)^T Q_k^-1 (f - m_k)``;
    the authors' code leaves the half out, which changes no decision.

    This is the head alone. Simple CNAPS also modulates its network for every task by learned FiLM
    layers; here the backbone stays as the shared `Supervised` trainer left it.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        self.beta = beta

    def adapt(self, support: Support) -> MahalanobisPredictor:
        """Means and covariances of support features ``(..., n_support, d)``."""
        x = support.inputs.double()
        centre = x.mean(-2, keepdim=True)
        x = x - centre
        means = class_means(x, support.labels, support.n_way)
        root = covariance_roots(support.labels, support.n_way)
        return MahalanobisPredictor(centre, x, means, root, self.beta)


def covariance_roots(labels: Tensor, n_way: int) -> Tensor:
    """R_k ``(..., n_way, n, n)``, symmetric, with ``X^T R_k R_k X = l_k S_k + (1 - l_k) S``.

    X are the ``n`` support features less their common mean. Centring the members of a class is
    then a projector C_k among the n examples, so that ``S_k = X^T C_k X / (n_k - 1)`` and the
    whole is ``X^T (a I + b C_k) X``, whose root is known.
    """
    member = class_masks(labels, n_way).double()
    n = labels.shape[-1]
    shots = member.sum(-1)[..., None, None]
    share = shots / (shots + 1)
    a = (1 - share) / max(n - 1, 1)
    # A class of one has C_k = 0: whatever it is divided by, its covariance is null.
    b = share / (shots - 1).clamp_min(1)
    centring = torch.diag_embed(member) - member.unsqueeze(-1) * member.unsqueeze(-2) / shots
    identity = torch.eye(n, dtype=member.dtype, device=labels.device)
    return a.sqrt() * identity + ((a + b).sqrt() - a.sqrt()) * centring
