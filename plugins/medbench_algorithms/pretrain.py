"""The training that SimpleShot, linear-probe, nearest-neighbour and Baseline share."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, ContractError, Source, Support, TrainingRun
from medbench_algorithms.geometry import class_means, squared_distances
from medbench_algorithms.training import descend


@final
class Supervised:
    """Trains a backbone to tell all source classes apart, as plain classification.

    ``pretrain``: ``supervised`` minimises the cross-entropy of a linear classifier on top, with
    Adam; ``none`` leaves the backbone as it is. Both give the mean source feature ``mean (d,)``,
    which centres features in several methods. The classifier is thrown away.

    Chen et al. 2019 ("A Closer Look at Few-shot Classification"), section 3.2, training stage.
    """

    def __init__(
        self,
        *,
        pretrain: Literal["supervised", "none"] = "supervised",
        lr: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        self.pretrain = pretrain
        self.lr = lr
        self.batch_size = batch_size

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train, keep the state best at validation tasks, and take the mean feature with it."""
        if self.pretrain == "none":
            return {"mean": mean_feature(backbone, source)}
        classifier = nn.Linear(backbone.n_features, source.n_classes).to(run.device)
        parameters = [*backbone.parameters(), *classifier.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.lr)

        @torch.no_grad()
        def validate(support: Support, query: Tensor) -> Tensor:
            # Nearest centroid on unit features: what suits features of this training best
            # (Wang et al. 2019, table 1) without any state of its own.
            backbone.eval()
            features = F.normalize(backbone(support.inputs), dim=-1)
            means = class_means(features, support.labels, support.n_way)
            return -squared_distances(F.normalize(backbone(query), dim=-1), means)

        state = {"backbone": backbone, "classifier": classifier, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=self.batch_size, validate=validate):
            backbone.train()
            images, labels = source.batch(step, self.batch_size)
            loss = F.cross_entropy(classifier(backbone(images)), labels)
            descend(loss, optimiser, run)
        learned = {k: v for k, v in run.best().items() if k.startswith("backbone.")}
        return {**learned, "mean": mean_feature(backbone, source)}


@torch.no_grad()
def mean_feature(backbone: Backbone, source: Source) -> Tensor:
    """The mean feature ``(d,)`` over every source image, in eval mode, on the CPU.

    Raises `ContractError` when the source has no images.
    """
    backbone.eval()
    # Float64: a float32 sum over a hundred thousand images would lose digits.
    total: Tensor | None = None
    count = 0
    for images in source.sweep():
        features = backbone(images).double()
        total = features.sum(0) if total is None else total + features.sum(0)
        count += len(images)
    if total is None:
        raise ContractError("The source gave no images to take the mean feature of.")
    return (total / count).float().cpu()
