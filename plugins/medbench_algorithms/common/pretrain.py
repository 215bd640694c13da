"""The training that SimpleShot, linear-probe, nearest-neighbour and Baseline share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, ContractError, Source, Support, TrainingRun
from medbench_algorithms.common.geometry import class_means, squared_distances
from medbench_algorithms.common.training import descend

# 64 MB of float32: base covariances of 256 classes in 256 dimensions.
_MOST_NUMBERS = 1 << 24


@final
class Supervised:
    """Trains a backbone to tell all source classes apart, as plain classification.

    ``pretrain``: ``supervised`` minimises the cross-entropy of a linear classifier on top, with
    Adam; ``none`` leaves the backbone as it is. Both give the statistics of the source's features
    (`source_statistics`), which several methods use. The classifier is thrown away.

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
            return source_statistics(backbone, source)
        classifier = nn.Linear(backbone.n_features, source.n_classes).to(run.device)
        parameters = [*backbone.parameters(), *classifier.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.lr)
        validate = nearest_unit_centroid(backbone)

        state = {"backbone": backbone, "classifier": classifier, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=self.batch_size, validate=validate):
            backbone.train()
            images, labels = source.batch(step, self.batch_size)
            loss = F.cross_entropy(classifier(backbone(images)), labels)
            descend(loss, optimiser, run)
        return pretrained(backbone, source, run)


def nearest_unit_centroid(backbone: Backbone) -> Callable[[Support, Tensor], Tensor]:
    """How pretrained features are judged at validation tasks: by nearest centroid, unit length.

    That suits features of plain classification best (Wang et al. 2019, table 1) and has no state
    of its own.
    """

    @torch.no_grad()
    def validate(support: Support, query: Tensor) -> Tensor:
        backbone.eval()
        features = F.normalize(backbone(support.inputs), dim=-1)
        means = class_means(features, support.labels, support.n_way)
        return -squared_distances(F.normalize(backbone(query), dim=-1), means)

    return validate


def pretrained(backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
    """What a pretraining hands on: the best state of the backbone, and `source_statistics` of it.

    Whatever else the training learned (classifiers, teachers) is dropped.
    """
    learned = {k: v for k, v in run.best().items() if k.startswith("backbone.")}
    return {**learned, **source_statistics(backbone, source)}


@torch.no_grad()
def source_statistics(backbone: Backbone, source: Source) -> dict[str, Tensor]:
    """What methods ask of the source's features, over every source image once, in eval mode.

    ``mean (d,)``; ``base_means (c, d)``, those of the source classes that have images; and
    ``base_covariances (c, d, d)``, unbiased (of classes with one image: null), unless they would
    take over 64 MB. On the CPU. Raises `ContractError` when the source has no images.
    """
    backbone.eval()
    d, c = backbone.n_features, source.n_classes
    keeps_squares = c * d * d <= _MOST_NUMBERS
    # Float64: a float32 sum over a hundred thousand images would lose digits.
    counts = torch.zeros(c, dtype=torch.float64)
    sums = torch.zeros(c, d, dtype=torch.float64)
    squares = torch.zeros((c, d, d) if keeps_squares else (0,), dtype=torch.float64)
    for images, labels in source.sweep():
        features, classes = backbone(images).double().cpu(), labels.cpu()
        counts += torch.bincount(classes, minlength=c)
        sums.index_add_(0, classes, features)
        if keeps_squares:
            for one in torch.unique(classes):
                rows = features[classes == one]
                squares[one] += rows.mT @ rows
    if not counts.any():
        raise ContractError("The source gave no images to take the mean feature of.")
    here = counts > 0
    counts, sums = counts[here], sums[here]
    means = sums / counts[:, None]
    found = {"mean": (sums.sum(0) / counts.sum()).float(), "base_means": means.float()}
    if keeps_squares:
        outer = means[:, :, None] * means[:, None, :]
        scatter = squares[here] - counts[:, None, None] * outer
        found["base_covariances"] = (scatter / (counts - 1).clamp_min(1)[:, None, None]).float()
    return found
