"""Transductive fine-tuning (Dhillon, Chaudhari, Ravichandran and Soatto, ICLR 2020).

"A Baseline for Few-Shot Image Classification".
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench_algorithms.transductive.adam import Adam
from medbench_algorithms.transductive.joint import SHORTEST, Joint, Points, means_of, split


def entropy_gradient(log_p: Tensor) -> Tensor:
    """The mean entropy's gradient by logits; classes in dimension -2, queries in -1."""
    p = log_p.exp()
    entropy = -(p * log_p).sum(-2, keepdim=True)
    return p * (log_p + entropy) / -log_p.shape[-1]


@final
class Head:
    """A linear head for each episode, ``(e, k, d)`` and ``(e, k, 1)``, and its Adam."""

    def __init__(self, weight: Tensor, lr: float) -> None:
        self.weight = weight
        self.bias = torch.zeros_like(weight[..., :1])
        self._adams = Adam(self.weight, lr), Adam(self.bias, lr)

    def logits(self, features: Tensor) -> Tensor:
        """``(e, k, n)`` of features ``(e, n, d)``."""
        return torch.baddbmm(self.bias, self.weight, features.mT)

    def step(self, by_logit: Tensor, features: Tensor) -> None:
        """One step of Adam down a loss with this gradient by the logits, ``(e, k, n)``."""
        self._adams[0].step(by_logit @ features)
        self._adams[1].step(by_logit.sum(-1, keepdim=True))


@final
class TransductiveFineTuning(Joint):
    """A linear head, tuned to be right on the support set and sure of the queries.

    The head starts from the class means of the support set, scaled to unit length, on features of
    unit length after a ReLU (support-based initialisation, section 3.1). Each epoch takes one Adam
    step on the support set's cross-entropy and one on ``entropy_weight`` times the mean Shannon
    entropy of the query predictions (section 3.2; two updates, as in the authors' code): 25 epochs
    with rate 5e-5.

    The paper tunes the whole network, and its features are the logits of the source classes; here
    features are frozen and only the head is tuned, so that the paper's small rate moves little.
    """

    def __init__(
        self, *, epochs: int = 25, head_lr: float = 5e-5, entropy_weight: float = 1.0
    ) -> None:
        super().__init__(normalize="none")
        self.epochs = epochs
        self.lr = head_lr
        self.entropy_weight = entropy_weight

    def count_adapted(self, n_way: int, d: int) -> int:
        """Weights and intercepts of the head."""
        return n_way * d + n_way

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Logits ``(e, q, k)``."""
        features = points.scaled().relu_()
        support, _ = split(features, targets)
        head = Head(F.normalize(means_of(support, targets), dim=-1), self.lr)
        features /= torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min_(SHORTEST)
        support, query = split(features, targets)
        n_support = targets.shape[-1]
        for _ in range(self.epochs):
            head.step((head.logits(support).softmax(-2) - targets) / n_support, support)
            by_logit = entropy_gradient(head.logits(query).log_softmax(-2))
            head.step(self.entropy_weight * by_logit, query)
        return head.logits(query).mT
