"""PANet: features learned so that masked prototypes segment (Wang et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbench.api import Backbone, Predictor, Support, Task
from medbench_algorithms.dense.episodic import DenseEpisodic
from medbench_algorithms.dense.masked_prototypes import (
    NearestPrototype,
    class_prototypes,
    class_scores,
)
from medbench_algorithms.dense.pooling import Size, with_background


@final
class PANet(DenseEpisodic):
    """Masked prototypes on a backbone that source episodes have trained for them, end to end.

    The loss of an episode is that of its queries (Eq. 5) plus `align` times the prototype
    alignment regularisation (Eqs. 6 and 7; lambda is 1 in the paper), by stochastic gradient
    descent with momentum 0.9 and weight decay, the rate divided by ten every `lr_decay_every`
    steps of one episode (section 4.1). The paper starts from VGG-16 trained on ImageNet, this from
    the backbone as it is given.
    """

    def __init__(
        self,
        *,
        alpha: float = 20.0,
        align: float = 1.0,
        lr: float = 1e-3,
        lr_decay_every: int = 10_000,
        weight_decay: float = 5e-4,
        meta_batch: int = 1,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, meta_batch=meta_batch)
        self.alpha = alpha
        self.align = align
        self.lr_decay_every = lr_decay_every
        self.weight_decay = weight_decay

    def network(self, backbone: Backbone) -> nn.Module:
        """The backbone."""
        return backbone

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Stochastic gradient descent, as section 4.1 has it."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)

    def rate(self, step: int, n_steps: int) -> float:
        """A tenth of the rate after every `lr_decay_every` steps."""
        del n_steps
        return self.lr * 0.1 ** (step // self.lr_decay_every)

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """Segmentation and alignment loss of one episode (Eq. 7)."""
        masks, truth = task.support.masks, task.query_masks
        assert masks is not None
        assert truth is not None
        n, size = len(masks), tuple(masks.shape[2:])
        # Support and query share one pass, hence one set of batch statistics.
        images = torch.cat([task.support.inputs, task.query])
        maps = cast("Backbone", network).feature_map(images)
        maps, asked = maps[:n], maps[n:]
        scores = class_scores(asked, class_prototypes(maps, masks, size), self.alpha, size)
        loss = F.cross_entropy(scores, _shares(truth, size))
        if self.align:
            loss = loss + self.align * alignment_loss(maps, masks, asked, scores, self.alpha)
        return loss

    def answers(self, network: nn.Module, support: Support) -> Predictor:
        """Prototypes from images ``(n_support, C, *size)``."""
        backbone = cast("Backbone", network)
        assert support.masks is not None
        assert support.size is not None
        maps = backbone.feature_map(support.inputs)
        prototypes = class_prototypes(maps, support.masks, support.size)
        return _OfImages(backbone, NearestPrototype(prototypes, self.alpha, support.size))

    def adapt(self, support: Support) -> Predictor:
        """Prototypes from maps ``(..., n, c, h, w)`` and masks ``(..., n, n_way, *size)``."""
        assert support.masks is not None
        assert support.size is not None
        prototypes = class_prototypes(support.inputs, support.masks, support.size)
        return NearestPrototype(prototypes, self.alpha, support.size)


def _shares(masks: Tensor, size: Size) -> Tensor:
    """What each pixel is, ``(n, n_way + 1, *size)``, the background first; sums to one.

    A pixel of several classes is shared between them: the paper's pixels have one.
    """
    whole = with_background(masks, size).float()
    return whole / whole.sum(dim=1, keepdim=True)


def alignment_loss(
    maps: Tensor, masks: Tensor, asked: Tensor, scores: Tensor, alpha: float
) -> Tensor:
    """Prototype alignment regularisation (Eq. 6): the queries, as predicted, segment the support.

    `maps` ``(n, c, h, w)`` and `masks` ``(n, n_way, *size)`` of the support, `asked`
    ``(q, c, h, w)`` and `scores` ``(q, n_way + 1, *size)`` of the queries. Each class that some
    query is predicted to show makes, with the background, a one-way task of the support images
    that have it (as in the authors' code, pixels of other classes are left out and a class
    predicted nowhere adds zero); losses are means over pixels, images and classes.
    """
    n_classes, size = scores.shape[1], tuple(scores.shape[2:])
    predicted = F.one_hot(scores.argmax(dim=1), n_classes).movedim(-1, 1)[:, 1:].bool()
    prototypes = class_prototypes(asked, predicted, size)
    background = ~masks.any(dim=1)
    total = maps.new_zeros(())
    for k in range(n_classes - 1):
        own = masks[:, k].flatten(1).any(dim=1)
        if not predicted[:, k].any() or not own.any():
            continue
        found = class_scores(maps[own], prototypes[[0, k + 1]], alpha, size)
        inside, outside = masks[own, k], background[own]
        by_pixel = F.cross_entropy(found, inside.long(), reduction="none")
        counts = inside | outside
        by_image = (by_pixel * counts).flatten(1).sum(1) / counts.flatten(1).sum(1)
        total = total + by_image.mean()
    return total / (n_classes - 1)


@final
class _OfImages(Predictor):
    def __init__(self, backbone: Backbone, inner: NearestPrototype) -> None:
        self.backbone = backbone
        self.inner = inner

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, *size)`` of images ``(n_query, C, *size)``."""
        return self.inner.predict(self.backbone.feature_map(query))
