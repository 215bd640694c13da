"""Meta-Baseline (Chen, Liu, Xu, Darrell and Wang, ICCV 2021)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_means, cosine_similarities


@final
class Scale(nn.Module):
    """One learned number: how sharply similarities are told apart, tau in the paper."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))


@final
class ScaledCosines(Predictor):
    """Classifies by the cosine to the class means, times a scale."""

    def __init__(self, means: Tensor, scale: Tensor) -> None:
        self.means = means
        self.scale = scale

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)`` of features ``(..., n_query, d)`` (Eq. 3)."""
        return self.scale.to(query.dtype) * cosine_similarities(query, self.means)


@final
class MetaBaseline(Episodic[Scale]):
    """Trains a classifier of all source classes, then its features on episodes by cosine.

    The first stage (Classifier-Baseline, section 3.2) takes ``pretrain_share`` of the budget, half
    by default: the paper gives each stage a number of epochs of its own, a benchmark must divide
    one budget. In the second (section 3.3) a query's logits are its cosines to the means of the
    support features (Eq. 3), times a learned scale that starts at ``initial_scale``, 10.

    Departures: one task a step where the authors take four, and Adam in both stages where they
    take SGD, as all methods trained by episodes here do.
    """

    def __init__(
        self,
        *,
        initial_scale: float = 10.0,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.5,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.initial_scale = initial_scale

    def build(self, backbone: Backbone) -> Scale:
        """The scale of the cosines."""
        return Scale(self.initial_scale)

    def predictor(self, head: Scale, support: Support) -> ScaledCosines:
        """The class means of the support features ``(..., n_support, d)``."""
        means = class_means(support.inputs, support.labels, support.n_way)
        return ScaledCosines(means, head.value)
