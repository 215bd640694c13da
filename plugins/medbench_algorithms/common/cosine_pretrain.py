"""Pretraining with a cosine classifier, with or without a margin."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Source, TrainingRun
from medbench_algorithms.common.pretrain import nearest_unit_centroid, pretrained
from medbench_algorithms.common.training import descend


@final
class CosineClassifier(nn.Module):
    """Cosines between features and one direction for each class, ``(b, n_classes)``.

    With ``class_norms`` each class's cosine is multiplied by a learned factor: the length of its
    weight vector, which weight normalisation makes a parameter of its own (Salimans and Kingma
    2016). Directions, and these lengths, start as `torch.nn.Linear` draws them.
    """

    def __init__(self, n_features: int, n_classes: int, *, class_norms: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(n_features, n_classes, bias=False).weight.detach())
        self.norms = nn.Parameter(self.weight.detach().norm(dim=1)) if class_norms else None

    def forward(self, features: Tensor) -> Tensor:
        """Cosines of features ``(b, d)``, times the class's factor where there is one."""
        cosines = F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))
        return cosines if self.norms is None else cosines * self.norms


def margin_loss(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Cross-entropy of ``scale * (cosine - margin)`` for the true class, ``scale * cosine`` else.

    A negative margin makes the task easier than it is: Liu et al. 2020, section 3.1.
    """
    if margin:
        cosines = cosines - margin * F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    return F.cross_entropy(scale * cosines, labels)


@final
class CosinePretraining:
    """Trains a backbone to tell all source classes apart by their cosines to class directions.

    Chen et al. 2019, section 3: Baseline++ (margin 0); Liu et al. 2020: a negative margin.
    Optimiser, batches and validation are those of `Supervised`. The classifier is thrown away.
    """

    def __init__(
        self,
        *,
        scale: float = 2.0,
        margin: float = 0.0,
        class_norms: bool = True,
        lr: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        self.scale = scale
        self.margin = margin
        self.class_norms = class_norms
        self.lr = lr
        self.batch_size = batch_size

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train; keeps the state best at validation tasks, and `source_statistics` of it."""
        classifier = CosineClassifier(
            backbone.n_features, source.n_classes, class_norms=self.class_norms
        ).to(run.device)
        parameters = [*backbone.parameters(), *classifier.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.lr)
        validate = nearest_unit_centroid(backbone)
        state = {"backbone": backbone, "classifier": classifier, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=self.batch_size, validate=validate):
            backbone.train()
            images, labels = source.batch(step, self.batch_size)
            cosines = classifier(backbone(images))
            descend(margin_loss(cosines, labels, self.scale, self.margin), optimiser, run)
        return pretrained(backbone, source, run)
