"""Semi-supervised EM of a Gaussian mixture (after Nigam, McCallum, Thrun and Mitchell 2000)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from medbench_algorithms.metric.simpleshot import Normalize
from medbench_algorithms.transductive.joint import Joint, compact, means_of, split

Covariance = Literal["spherical", "diag"]
# Variances keep at least this share of the variance of all points.
_FLOOR = 1e-6


@final
@dataclass(frozen=True)
class Mixture:
    """Gaussians with means ``(e, k, d)``, variances ``(e, 1 or k, 1 or d)``, weights ``(e, k)``.

    ``d`` is how many dimensions the points have: a spherical mixture may look at them in fewer
    (`compact`) where the rest is null.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    d: int

    def log_joint(self, points: Tensor) -> Tensor:
        """``log p(x, class)`` of points ``(e, n, d)``, ``(e, n, k)``."""
        precision = (1 / self.variances).expand_as(self.means)
        squares = points.square() @ precision.mT - 2 * (points @ (self.means * precision).mT)
        squares = squares + (self.means.square() * precision).sum(-1).unsqueeze(-2)
        spread = self.variances.log().mean(-1).unsqueeze(-2)
        constant = self.d * (math.log(2 * math.pi) + spread)
        return self.log_weights.unsqueeze(-2) - 0.5 * (squares.clamp_min(0) + constant)


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

    def solve(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log posteriors ``(e, q, k)``."""
        d = features.shape[-1]
        points = features.double()
        # Products of centred points lose no digits to what all have in common.
        points = points - points.mean(-2, keepdim=True)
        if self.covariance == "spherical":
            points = compact(points)
        support, query = split(points, targets)
        # Examples by classes, as responsibilities go.
        targets = targets.mT.double()
        mixture = self.start(support, query, targets, d)
        mixture, _ = self.fit(mixture, support, query, targets)
        return mixture.log_joint(query).log_softmax(-1)

    def start(self, support: Tensor, query: Tensor, targets: Tensor, d: int) -> Mixture:
        """The mixture before the first E step; `targets` are ``(e, s, k)`` one-hot rows."""
        points = torch.cat([support, query], dim=-2)
        variances = self._reduced(points - points.mean(-2, keepdim=True), d).mean(-2, keepdim=True)
        if not self.shared:
            variances = variances.expand(-1, targets.shape[-1], -1)
        shares = targets.mean(-2)
        if not self.learn_weights:
            shares = torch.full_like(shares, 1 / targets.shape[-1])
        floor = self._floor(support, query, d)
        return Mixture(means_of(support, targets.mT), variances.maximum(floor), shares.log(), d)

    def fit(
        self, mixture: Mixture, support: Tensor, query: Tensor, targets: Tensor
    ) -> tuple[Mixture, list[Tensor]]:
        """EM from `mixture`, and the objective ``(e,)`` before every M step, per image.

        It does without support images, too.
        """
        d, history = mixture.d, []
        floor = self._floor(support, query, d)
        points = torch.cat([support, query], dim=-2)
        total = targets.shape[-2] + self.query_weight * query.shape[-2]
        going = torch.ones(len(query), dtype=torch.bool, device=query.device)
        for _ in range(self.steps):
            joint = mixture.log_joint(query)
            known = (targets * mixture.log_joint(support)).sum((-2, -1))
            history.append((known + self.query_weight * joint.logsumexp(-1).sum(-1)) / total)
            if len(history) > 1:
                going &= history[-1] - history[-2] > self.tolerance
                if not going.any():
                    break
            shares = torch.cat([targets, self.query_weight * joint.softmax(-1)], dim=-2)
            mixture = _choose(going, self._maximised(points, shares, floor, d), mixture)
        return mixture, history

    def _maximised(self, points: Tensor, shares: Tensor, floor: Tensor, d: int) -> Mixture:
        """The M step: the best mixture for responsibilities `shares` ``(e, n, k)``."""
        counts = shares.sum(-2).clamp_min(1e-10).unsqueeze(-1)
        means = (shares.mT @ points) / counts
        squares = shares.mT @ points.square() - counts * means.square()
        if self.shared:
            squares, of = squares.sum(-2, keepdim=True), counts.sum(-2, keepdim=True)
        else:
            of = counts
        if self.covariance == "spherical":
            squares = squares.sum(-1, keepdim=True) / d
        log_weights = (counts / counts.sum(-2, keepdim=True)).squeeze(-1).log()
        if not self.learn_weights:
            log_weights = torch.full_like(log_weights, -math.log(shares.shape[-1]))
        return Mixture(means, (squares / of).maximum(floor), log_weights, d)

    def _reduced(self, deviations: Tensor, d: int) -> Tensor:
        """Squares ``(e, n, d)``, or their mean over d dimensions ``(e, n, 1)``."""
        squares = deviations.square()
        return squares if self.covariance == "diag" else squares.sum(-1, keepdim=True) / d

    def _floor(self, support: Tensor, query: Tensor, d: int) -> Tensor:
        """The smallest variance allowed, ``(e, 1, 1)``; above rounding even for equal points."""
        points = torch.cat([support, query], dim=-2)
        deviations = points - points.mean(-2, keepdim=True)
        size = points.square().sum((-2, -1)) / (points.shape[-2] * d)
        variance = deviations.square().sum((-2, -1)) / (points.shape[-2] * d)
        return (_FLOOR * variance + 1e-12 * size + 1e-100)[:, None, None]


def _choose(going: Tensor, updated: Mixture, kept: Mixture) -> Mixture:
    """The updated mixture for episodes still going; converged ones rest."""
    where = going[:, None, None]
    return Mixture(
        torch.where(where, updated.means, kept.means),
        torch.where(where, updated.variances, kept.variances),
        torch.where(going[:, None], updated.log_weights, kept.log_weights),
        kept.d,
    )
