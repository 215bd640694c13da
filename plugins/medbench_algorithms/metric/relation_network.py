"""Relation Networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales, CVPR 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.metric.places import class_maps, map_shape

Pooling = Literal["sum", "mean"]

_FILTERS, _HIDDEN = 64, 8
# Maps smaller than this are padded, as the authors' 5x5 for Omniglot; their 19x19 are not.
_PADS_BELOW = 10
# Numbers in the first layer's output for one chunk of pairs: 128 MB of float32.
_CHUNK = 1 << 25


@final
class RelationModule(nn.Module):
    """Scores how well a query's feature map relates to a class's, whatever the maps' size.

    Two blocks of 3x3 convolution with 64 filters, BatchNorm, ReLU and 2x2 max-pooling, then
    layers of 8 units and of one (figure 2 and section 4). A map under 10 places high or wide is
    padded before each convolution, and a side of one place is not pooled any more. Initial
    weights are those of the authors' code.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        padding = int(min(height, width) < _PADS_BELOW)
        self.first = nn.Conv2d(2 * channels, _FILTERS, 3, padding=padding)
        self.first_norm = nn.BatchNorm2d(_FILTERS)
        self.second = nn.Conv2d(_FILTERS, _FILTERS, 3, padding=padding)
        self.second_norm = nn.BatchNorm2d(_FILTERS)
        places = 1
        for side in (height, width):
            for _ in range(2):
                side = max(1, (side - 2 + 2 * padding) // 2)
            places *= side
        self.hidden = nn.Linear(_FILTERS * places, _HIDDEN)
        self.score = nn.Linear(_HIDDEN, 1)
        for convolution in (self.first, self.second):
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * _FILTERS)))
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        for linear in (self.hidden, self.score):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.ones_(linear.bias)

    def of_class(self, maps: Tensor) -> Tensor:
        """The share of class maps ``(b, c, h, w)`` in the first convolution of their pairs."""
        return self._half(maps, self.first.weight[:, : maps.shape[1]], self.first.bias)

    def of_query(self, maps: Tensor) -> Tensor:
        """The share of query maps ``(b, c, h, w)`` in the first convolution of their pairs."""
        return self._half(maps, self.first.weight[:, maps.shape[1] :], None)

    def of_pairs(self, mixed: Tensor) -> Tensor:
        """The scores ``(b,)`` of pairs, given their first convolution ``(b, 64, h', w')``."""
        x = _pool(F.relu(self.first_norm(mixed)))
        x = _pool(F.relu(self.second_norm(self.second(x))))
        scores: Tensor = self.score(F.relu(self.hidden(x.flatten(1))))
        return scores.squeeze(-1)

    def _half(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A convolution of concatenated maps is a sum of two: n + m of them serve n * m pairs.
        return F.conv2d(maps.to(weight.dtype), weight, bias, padding=self.first.padding)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, [min(2, x.shape[-2]), min(2, x.shape[-1])])


@final
class RelationPredictor(Predictor):
    """Relates queries to class maps ``(..., n_way, c, h, w)`` by the learned module."""

    def __init__(self, module: RelationModule, class_maps: Tensor) -> None:
        self.module = module
        self.class_maps = class_maps

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)`` of feature maps ``(..., n_query, c, h, w)``.

        A relation score is the sigmoid of its logit (Eq. 1), so both rank classes alike.
        """
        n_query = query.shape[-4]
        n_way = self.class_maps.shape[-4]
        classes = self.module.of_class(self.class_maps.flatten(0, -4))
        classes = classes.reshape(-1, n_way, *classes.shape[1:])
        asked = self.module.of_query(query.flatten(0, -4))
        scores = [
            self.module.of_pairs((asked[some, None] + classes[of]).flatten(0, 1))
            for some, of in self._chunks(len(asked), n_query, n_way * asked[0].numel())
        ]
        return torch.cat(scores).reshape(*query.shape[:-3], n_way).to(query.dtype)

    def _chunks(self, n: int, n_query: int, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Some queries of all, and the episode of each."""
        # Training's BatchNorm must see all pairs together; there is one episode then.
        step = n if self.module.training else max(1, _CHUNK // size)
        device = self.class_maps.device
        for first in range(0, n, step):
            last = min(first + step, n)
            yield slice(first, last), torch.arange(first, last, device=device) // n_query


@final
class RelationNetwork(Episodic[RelationModule]):
    """Learns to compare: a network scores how a query's feature map relates to each class.

    Class map and query map are concatenated, and a relation module gives a score in 0...1 (Eq. 1).
    Module and backbone are trained so that it be 1 for the right class and 0 for the others, by
    least squares (Eq. 2), with Adam whose rate is halved every 100,000 episodes (section 4).

    A class's map is the mean of its support maps, or with ``pooling`` sum their sum, as in the
    paper (section 3.2). At the shots trained on these differ by a factor that the module learns;
    at others sums are of a size it has never seen, and accuracy falls towards chance. The paper
    trains anew for every number of shots; here one training serves many, hence the mean, as in
    the reimplementation of Chen et al. 2019.

    At test BatchNorm uses running statistics, so that queries are independent of each other; the
    authors' code never leaves training mode, and clips gradients, which the paper does not.
    """

    view = "maps"

    def __init__(
        self,
        *,
        pooling: Pooling = "mean",
        lr: float = 1e-3,
        lr_halve_every: int = 100_000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.pooling: Pooling = pooling

    def build(self, backbone: Backbone) -> RelationModule:
        """The relation module for maps of the backbone's size."""
        return RelationModule(*map_shape(backbone))

    def predictor(self, head: RelationModule, support: Support) -> RelationPredictor:
        """The class maps of support maps ``(..., n_support, c, h, w)``."""
        if self.pooling == "mean":
            maps = class_maps(support.inputs, support.labels, support.n_way)
            return RelationPredictor(head, maps)
        members = class_masks(support.labels, support.n_way).to(support.inputs.dtype)
        sums = members @ support.inputs.flatten(-3)
        return RelationPredictor(head, sums.reshape(*sums.shape[:-1], *support.inputs.shape[-3:]))

    def loss(
        self, head: RelationModule, support: Support, query: Tensor, query_labels: Tensor
    ) -> Tensor:
        """The mean squared error of the relation scores (Eq. 2)."""
        scores = self.predictor(head, support).predict(query).sigmoid()
        return F.mse_loss(scores, F.one_hot(query_labels, support.n_way).to(scores.dtype))
