"""Relation Networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales, CVPR 2018)."""

from __future__ import annotations

import math
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
# Numbers in the first layer's pooled output for one chunk of pairs: 4 MB of float32.
_CHUNK = 1 << 20
# Maps of so few numbers take the second convolution as a matrix.
_DENSE = 512


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

    def forward(self, query: Tensor, classes: Tensor) -> Tensor:
        """Scores ``(e, q, n_way)`` of maps ``(e, q, c, h, w)`` and ``(e, n_way, c, h, w)``."""
        return self._in_training(query, classes) if self.training else self._at_test(query, classes)

    def _in_training(self, query: Tensor, classes: Tensor) -> Tensor:
        # BatchNorm must see all pairs together.
        c = query.shape[2]
        pad = self.first.padding
        # A convolution of concatenated maps is a sum of two: n + m of them serve n * m pairs.
        asked = F.conv2d(query.flatten(0, 1), self.first.weight[:, c:], padding=pad)
        weight, bias = self.first.weight[:, :c], self.first.bias
        of_class = F.conv2d(classes.flatten(0, 1), weight, bias, padding=pad)
        asked = asked.reshape(*query.shape[:2], *asked.shape[1:])
        of_class = of_class.reshape(*classes.shape[:2], *of_class.shape[1:])
        pairs = (asked.unsqueeze(2) + of_class.unsqueeze(1)).flatten(0, 2)
        x = _pool(F.relu(self.first_norm(pairs)))
        x = _pool(F.relu(self.second_norm(self.second(x))))
        return self._scores(x).view(*query.shape[:2], -1)

    def _at_test(self, query: Tensor, classes: Tensor) -> Tensor:
        """The same with BatchNorm folded into the convolutions, and ReLU after the pooling.

        A pair's first convolution is a sum of two, and of its sums exist only the four (of all
        pairs) that a pooled one is made of: ``4 x (q, n_way, 64, h' / 2, w' / 2)``.
        """
        c = query.shape[2]
        weight, bias = _folded(self.first, self.first_norm)
        asked = self._corners(query, weight[:, c:], None)
        of_class = self._corners(classes, weight[:, :c], bias)
        _, _, filters, h, w = asked[0].shape
        second, second_bias = _folded(self.second, self.second_norm)
        size = filters * h * w
        n_pairs = query.shape[0] * query.shape[1] * classes.shape[1]
        dense = size <= _DENSE and n_pairs > size
        if dense:
            # On maps this small most of a convolution is padding; as a matrix it is all product.
            basis = torch.eye(size, dtype=second.dtype, device=second.device)
            images = F.conv2d(basis.view(-1, filters, h, w), second, padding=self.second.padding)
            shape, matrix = images.shape[1:], images.flatten(1)
            second_bias = second_bias.repeat_interleave(shape[1:].numel())
        at_once = max(1, _CHUNK // (size * classes.shape[1]))
        found = []
        for e in range(len(query)):
            for some in range(0, query.shape[1], at_once):
                x: Tensor | None = None
                for q, k in zip(asked, of_class, strict=True):
                    pairs = q[e, some : some + at_once, None] + k[e]
                    x = pairs if x is None else torch.maximum(x, pairs)
                assert x is not None
                x = F.relu(x).flatten(0, 1)
                if dense:
                    x = torch.addmm(second_bias, x.flatten(1), matrix).view(-1, *shape)
                else:
                    x = F.conv2d(x, second, second_bias, padding=self.second.padding)
                found.append(self._scores(F.relu(_pool(x))))
        return torch.cat(found).view(*query.shape[:2], -1)

    def _corners(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """A convolution of maps ``(e, n, c, h, w)``, apart by place in the 2x2 to be pooled."""
        pad = int(self.first.padding[0])
        h, w = (side - 2 + 2 * pad for side in maps.shape[-2:])
        rows, columns = min(2, h), min(2, w)
        # Pooling drops an odd last row or column: it is not made.
        flat = F.pad(maps.flatten(0, 1), (pad, pad - w % columns, pad, pad - h % rows))
        out = F.conv2d(flat, weight, bias)
        out = out.view(*maps.shape[:2], *out.shape[1:])
        return [
            out[..., i::rows, j::columns].contiguous() for i in range(rows) for j in range(columns)
        ]

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(F.relu(self.hidden(x.flatten(1))))
        return scores.squeeze(-1)


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what `norm` would do after it, in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert convolution.bias is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = (convolution.bias - norm.running_mean) * scale + norm.bias
    return convolution.weight * scale[:, None, None, None], bias


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
        dtype = self.module.first.weight.dtype
        shapes = query.shape[-4:], self.class_maps.shape[-4:]
        asked, classes = query.reshape(-1, *shapes[0]), self.class_maps.reshape(-1, *shapes[1])
        scores: Tensor = self.module(asked.to(dtype), classes.to(dtype))
        return scores.reshape(*query.shape[:-3], -1).to(query.dtype)


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
