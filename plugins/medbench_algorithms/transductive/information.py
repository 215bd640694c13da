"""The objective of TIM and alpha-TIM, and their two ways to minimise it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from medbench_algorithms.transductive.adam import Adam


@final
@dataclass(frozen=True, kw_only=True)
class Information:
    """``support * CE(S) - marginal * H(Y) + conditional * H(Y | X)`` over one episode.

    Class posteriors are ``softmax(-tau / 2 |z - w_k|^2)`` (Boudiaf et al. 2020, Eq. 1); the
    objective is its Eq. 4, where the two entropies of the queries make their mutual information
    (Eq. 3). With ``alpha`` other than one both entropies are Tsallis's (Veilleux et al. 2021).

    Inside, arrays are ``(e, k, n)``: a softmax over few classes is fast along a middle dimension.
    """

    tau: float
    support: float
    marginal: float
    conditional: float
    alpha: float = 1.0

    def logits(self, weights: Tensor, features: Tensor) -> Tensor:
        """``(e, k, n)``, less the term ``|z|^2`` that all classes share."""
        norms = weights.square().sum(-1, keepdim=True)
        return self.tau * torch.baddbmm(norms, weights, features.mT, beta=-0.5)

    def gradient(self, weights: Tensor, features: Tensor, targets: Tensor) -> Tensor:
        """The objective's, with respect to `weights` ``(e, k, d)``.

        `features` ``(e, n, d)`` are those of the support set, then those of the queries; `targets`
        ``(e, k, s)`` one-hot.
        """
        n_support = targets.shape[-1]
        log_p = self.logits(weights, features).log_softmax(-2)
        by_logit = log_p.exp()
        known, p = by_logit[..., :n_support], by_logit[..., n_support:]
        shares = p.mean(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        # Derivatives by probabilities, up to what is the same for all classes: that cancels.
        by_p = self.marginal * self._slope(shares.log())
        by_p = by_p - self.conditional * self._slope(log_p[..., n_support:])
        by_p = by_p - (p * by_p).sum(-2, keepdim=True)
        p.mul_(by_p).div_(p.shape[-1])
        known.sub_(targets).mul_(self.support / n_support)
        pull = by_logit.sum(-1, keepdim=True) * weights
        return torch.baddbmm(pull, by_logit, features, beta=-self.tau, alpha=self.tau)

    def _slope(self, log_p: Tensor) -> Tensor:
        """Minus the derivative of the entropy's summand at p, up to a constant."""
        if self.alpha == 1.0:
            return log_p
        # expm1 keeps the digits where alpha is close to one, and goes to log p there.
        power = self.alpha - 1
        return torch.expm1(power * log_p) * (self.alpha / power)

    def descend(
        self, weights: Tensor, features: Tensor, targets: Tensor, *, n_steps: int, lr: float
    ) -> Tensor:
        """Weights ``(e, k, d)`` after `n_steps` steps of Adam (TIM-GD)."""
        weights = weights.clone()
        adam = Adam(weights, lr)
        for _ in range(n_steps):
            adam.step(self.gradient(weights, features, targets))
        return weights

    def alternate(
        self, weights: Tensor, features: Tensor, targets: Tensor, *, n_steps: int
    ) -> Tensor:
        """Weights after `n_steps` updates of auxiliary posteriors q and weights (TIM-ADM).

        Proposition 1, in the form of the authors' code, whose second exponent generalises the
        square root of Eq. 9 to weights of H(Y) other than one.
        """
        n_support, n_query = targets.shape[-1], features.shape[-2] - targets.shape[-1]
        for_support = self.support / (1 + self.conditional)
        for_query = n_support / n_query
        beta = self.marginal / (1 + self.marginal)
        for _ in range(n_steps):
            log_p = self.logits(weights, features).log_softmax(-2)
            q = self.auxiliary(log_p[..., n_support:], beta)
            p = log_p.exp()
            # Eq. 10, its sums over support and query features as one matrix product.
            wanted = torch.cat([for_support * targets, for_query * q], dim=-1)
            given = torch.cat(
                [for_support * p[..., :n_support], for_query * p[..., n_support:]], dim=-1
            )
            total = given.sum(-1, keepdim=True) * weights + (wanted - given) @ features
            weights = total / wanted.sum(-1, keepdim=True)
        return weights

    def auxiliary(self, log_p: Tensor, beta: float) -> Tensor:
        """Posteriors q ``(e, k, q)`` that are best for the present p (Eq. 9)."""
        sharper = (1 + self.conditional) * log_p
        return (sharper - beta * sharper.logsumexp(-1, keepdim=True)).softmax(-2)
