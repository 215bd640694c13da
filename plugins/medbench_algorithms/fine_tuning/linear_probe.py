"""Logistic regression on frozen features, solved to convergence."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Support
from medbench_algorithms.common.geometry import few_at_a_time
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.common.logistic import solve


@final
class LinearProbe(Algorithm):
    """The linear classifier that scikit-learn's ``LogisticRegression(C=C)`` would fit.

    It minimises ``||W||^2 / 2 + C * (sum of log losses)`` with a free intercept. ``normalize``:
    ``none`` takes features as they are; ``l2`` scales them to unit length first, after which
    ``C`` wants to be larger. The backbone comes from the shared `Supervised` trainer.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        normalize: Literal["none", "l2"] = "none",
    ) -> None:
        self.C = C
        self.normalize = normalize

    def adapt(self, support: Support) -> LinearPredictor:
        """Fit one classifier an episode on support features ``(..., n_support, d)``."""
        features = support.inputs
        if self.normalize == "l2":
            features = F.normalize(features, dim=-1)
        # In float64, and only there, badly scaled features still give six digits.
        centre = features.mean(-2, keepdim=True, dtype=torch.float64)
        gram = few_at_a_time(_gram, features, centre)
        # Two classes have one weight vector w = w1 - w0 there; the penalty on the pair
        # w1 = -w0 = w / 2 is half of that on w.
        C = self.C / 2 if support.n_way == 2 else self.C
        dual, bias = solve(gram, one_hot(support.labels, support.n_way), C)
        weight = few_at_a_time(_weights, features, centre, dual)
        return LinearPredictor(weight, bias, centre, unit_length=self.normalize == "l2")


def _gram(features: Tensor, centre: Tensor) -> Tensor:
    """Inner products ``(e, n, n)`` of features ``(e, n, d)`` less their centre ``(e, 1, d)``."""
    x = features - centre
    return x @ x.mT


def _weights(features: Tensor, centre: Tensor, dual: Tensor) -> Tensor:
    """Weights ``(e, n_way, d)`` of the dual solution ``(e, n, n_way)``."""
    return dual.mT @ (features - centre)
