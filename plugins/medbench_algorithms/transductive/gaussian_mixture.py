"""Semi-supervised EM of a Gaussian mixture (after Nigam, McCallum, Thrun and Mitchell 2000)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from medbench_algorithms.metric.simpleshot import Normalize
from medbench_algorithms.transductive.joint import Joint, Points, means_of, split

Covariance = Literal["spherical", "diag"]
# Variances keep at least this share of the variance of all points.
_FLOOR = 1e-6


@final
@dataclass(frozen=True)
class Mixture:
    """Gaussians with means ``(e, k, d)``, variances ``(e, 1 or k, 1 or d)``, weights ``(e, k)``.

    Variances and weights are in float64. Means have the precision of the points, which they are
    multiplied with: what is small here costs nothing, and features are large.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def log_joint(self, points: Tensor, squares: Tensor | None = None) -> Tensor:
        """``log p(x, class)`` of points ``(e, n, d)``, ``(e, n, k)``.

        `squares`, if known, are theirs in float64, as `squares_of` gives them.
        """
        spherical = self.variances.shape[-1] == 1
        squares = squares_of(points, spherical=spherical) if squares is None else squares
        precision = 1 / self.variances
        if spherical:
            found = squares - 2 * (points @ self.means.mT).double()
            found = found + squares_of(self.means, spherical=True).mT
            found = found.clamp_min(0) * precision.mT
        else:
            found = squares @ precision.mT - 2 * (points @ (self.means * precision).mT)
            found = found + (self.means.square() * precision).sum(-1).unsqueeze(-2)
            found = found.clamp_min(0)
        spread = self.variances.log().mean(-1).unsqueeze(-2)
        constant = points.shape[-1] * (math.log(2 * math.pi) + spread)
        return self.log_weights.unsqueeze(-2) - 0.5 * (found + constant)


def squares_of(points: Tensor, *, spherical: bool) -> Tensor:
    """Squares ``(e, n, d)`` in float64, or their sums ``(e, n, 1)`` for a spherical mixture."""
    if not spherical:
        return points.double().square()
    lengths: Tensor = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    return lengths.double().square_()


@final
class GaussianMixture(Joint):
    """A Gaussian for each class, fitted by EM to support and query features together.

    Support images belong to their class; query images belong to classes as far as the model says
    (E step), and means, variances and class weights follow (M step), until the objective gains
    less than ``tolerance`` an image, or ``steps`` times. It is Nigam et al.'s EM with another
    density: their equations 6 to 8, and section 5.2's weight of an unlabelled example,
    ``query_weight``. EM starts from the class means and shares of the support set, and from the
    variance of all features about their mean.

    ``covariance``: ``spherical`` or ``diag``; with ``shared`` one for all classes. Variances keep
    at least a millionth of that of all features. ``learn_weights``: classes need not be equally
    frequent. Ren et al.'s soft k-means (2018) is one such step with variances held fixed.
    """

    def __init__(
        self,
        *,
        covariance: Covariance = "spherical",
        shared: bool = True,
        learn_weights: bool = True,
        query_weight: float = 1.0,
        steps: int = 100,
        tolerance: float = 1e-4,
        normalize: Normalize = "cl2",
    ) -> None:
        super().__init__(normalize=normalize)
        self.covariance: Covariance = covariance
        self.shared = shared
        self.learn_weights = learn_weights
        self.query_weight = query_weight
        self.steps = steps
        self.tolerance = tolerance

    def count_adapted(self, n_way: int, d: int) -> int:
        """Means, variances and, if learned, class weights."""
        n_variances = (1 if self.shared else n_way) * (d if self.covariance == "diag" else 1)
        return n_way * d + n_variances + (n_way if self.learn_weights else 0)

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Log posteriors ``(e, q, k)``."""
        features = points.scaled()
        # Products of centred features lose no digits to what all have in common.
        features -= features.mean(-2, keepdim=True)
        if self.covariance == "diag":
            features = features.double()
        support, query = split(features, targets)
        # Examples by classes, as responsibilities go.
        targets = targets.mT.double()
        mixture, _ = self.fit(self.start(support, query, targets), support, query, targets)
        return mixture.log_joint(query).log_softmax(-1)

    def start(self, support: Tensor, query: Tensor, targets: Tensor) -> Mixture:
        """The mixture before the first E step; `targets` are ``(e, s, k)`` one-hot rows."""
        points = torch.cat([support, query], dim=-2)
        variances = self._squares(points - points.mean(-2, keepdim=True)).mean(-2, keepdim=True)
        if self.covariance == "spherical":
            variances = variances / points.shape[-1]
        if not self.shared:
            variances = variances.expand(-1, targets.shape[-1], -1)
        shares = targets.mean(-2)
        if not self.learn_weights:
            shares = torch.full_like(shares, 1 / targets.shape[-1])
        means = means_of(support, targets.mT.to(support.dtype))
        return Mixture(means, variances.maximum(_floor(points)), shares.log())

    def fit(
        self, mixture: Mixture, support: Tensor, query: Tensor, targets: Tensor
    ) -> tuple[Mixture, list[Tensor]]:
        """EM from `mixture`, and the objective ``(e,)`` before every M step, per image.

        It does without support images, too.
        """
        n_support, history = targets.shape[-2], []
        points = torch.cat([support, query], dim=-2)
        squares, floor = self._squares(points), _floor(points)
        total = n_support + self.query_weight * query.shape[-2]
        going = torch.ones(len(query), dtype=torch.bool, device=query.device)
        for _ in range(self.steps):
            joint = mixture.log_joint(points, squares)
            known = (targets * joint[:, :n_support]).sum((-2, -1))
            joint = joint[:, n_support:]
            evidence = joint.logsumexp(-1, keepdim=True)
            history.append((known + self.query_weight * evidence.sum((-2, -1))) / total)
            if len(history) > 1:
                going &= history[-1] - history[-2] > self.tolerance
                if not going.any():
                    break
            shares = torch.cat([targets, self.query_weight * (joint - evidence).exp()], dim=-2)
            updated = self._maximised(points, squares, shares, floor)
            mixture = _choose(going, updated, mixture)
        return mixture, history

    def _maximised(self, points: Tensor, squares: Tensor, shares: Tensor, floor: Tensor) -> Mixture:
        """The M step: the best mixture for responsibilities `shares` ``(e, n, k)``."""
        counts = shares.sum(-2).clamp_min(1e-10).unsqueeze(-1)
        means = (shares / counts.mT).mT.to(points.dtype) @ points
        spread = shares.mT @ squares - counts * self._squares(means)
        of = counts
        if self.shared:
            spread, of = spread.sum(-2, keepdim=True), counts.sum(-2, keepdim=True)
        if self.covariance == "spherical":
            spread = spread / points.shape[-1]
        log_weights = (counts / counts.sum(-2, keepdim=True)).squeeze(-1).log()
        if not self.learn_weights:
            log_weights = torch.full_like(log_weights, -math.log(shares.shape[-1]))
        return Mixture(means, (spread / of).maximum(floor), log_weights)

    def _squares(self, points: Tensor) -> Tensor:
        return squares_of(points, spherical=self.covariance == "spherical")


def _floor(points: Tensor) -> Tensor:
    """The smallest variance allowed, ``(e, 1, 1)``; above rounding even for equal points."""
    n_numbers = points.shape[-2] * points.shape[-1]
    size = squares_of(points, spherical=True).sum(-2, keepdim=True) / n_numbers
    deviations = points - points.mean(-2, keepdim=True)
    variance = squares_of(deviations, spherical=True).sum(-2, keepdim=True) / n_numbers
    return _FLOOR * variance + 1e-12 * size + 1e-100


def _choose(going: Tensor, updated: Mixture, kept: Mixture) -> Mixture:
    """The updated mixture for episodes still going; converged ones rest."""
    where = going[:, None, None]
    return Mixture(
        torch.where(where, updated.means, kept.means),
        torch.where(where, updated.variances, kept.variances),
        torch.where(going[:, None], updated.log_weights, kept.log_weights),
    )
