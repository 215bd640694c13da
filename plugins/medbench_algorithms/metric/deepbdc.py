"""Meta DeepBDC: Brownian distance covariance between feature maps (Xie et al., CVPR 2022)."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_means, squared_distances
from medbench_algorithms.metric.places import MapPredictor, map_shape

Metric = Literal["auto", "inner", "euclidean"]
_IMAGES_TIMES_NUMBERS = 2**22


def bdc_matrices(maps: Tensor, scale: Tensor) -> Tensor:
    """Brownian distance covariance matrices ``(b, d, d)`` of maps ``(b, d, h, w)`` (Eqs. 4 to 6).

    The channels are the samples, each a vector over places: their distances, double-centred.
    `scale` multiplies the squared distances, and 1e-5 keeps the root's slope finite, as in the
    authors' code.
    """
    channels = maps.flatten(-2)
    distances = (scale * squared_distances(channels, channels) + 1e-5).sqrt()
    by_row = distances.mean(-1, keepdim=True)
    return distances - by_row - by_row.mT + by_row.mean(-2, keepdim=True)


@final
class BDCHead(nn.Module):
    """Fewer channels by a 1x1 convolution where there are many, then the BDC matrix.

    The scale of squared distances is learned; it starts at one half over the places. ``inner``
    notes which comparison the training tasks called for.
    """

    inner: Tensor

    def __init__(self, n_channels: int, n_places: int, reduce_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential()
        if n_channels > reduce_dim:
            convolution = nn.Conv2d(n_channels, reduce_dim, kernel_size=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.reduce = nn.Sequential(convolution, nn.BatchNorm2d(reduce_dim), nn.ReLU())
        self.dim = min(n_channels, reduce_dim)
        self.register_buffer("inner", torch.zeros((), dtype=torch.bool))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(2 * n_places)))

    def forward(self, maps: Tensor) -> Tensor:
        """The upper triangles, ``(b, d (d + 1) / 2)``, of maps ``(b, c, h, w)``."""
        reduced = self.reduce(maps.to(self.log_scale.dtype)).to(maps.dtype) if self.reduce else maps
        matrices = bdc_matrices(reduced, self.log_scale.exp().to(maps.dtype))
        i, j = torch.triu_indices(*matrices.shape[-2:], device=maps.device)
        return matrices[:, i, j]

    def of_many(self, maps: Tensor) -> Tensor:
        """The same of maps ``(..., c, h, w)``, few at a time."""
        size = max(1, _IMAGES_TIMES_NUMBERS // self.dim**2)
        flat = maps.flatten(0, -4)
        found = torch.cat([self(part) for part in torch.split(flat, size)])
        return found.reshape(*maps.shape[:-3], -1)


def bdc_scores(query: Tensor, means: Tensor, *, inner: bool) -> Tensor:
    """Logits ``(..., q, n_way)`` of BDC features ``(..., q, f)`` and ``(..., n_way, f)``.

    Inner products, or minus squared Euclidean distances.
    """
    return query @ means.mT if inner else -squared_distances(query, means)


@final
class BDCPredictor(MapPredictor):
    """Scores classes by the distance covariance of a query with their mean BDC matrix."""

    def __init__(self, head: BDCHead, means: Tensor, *, inner: bool) -> None:
        super().__init__(means)
        self.head = head
        self.inner = inner

    def numbers_per_query(self, n_places: int) -> int:
        """One BDC matrix."""
        return self.head.dim**2

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """See `bdc_scores`."""
        features: Tensor = self.head(query.flatten(0, 1))
        features = features.reshape(*query.shape[:2], -1)
        return bdc_scores(features, kept[0], inner=self.inner)


@final
class MetaDeepBDC(Episodic[BDCHead]):
    """Compares the joint distribution of an image's channels with that of each class.

    An image is the upper triangle of its Brownian distance covariance matrix (Eqs. 4 to 7), a
    class the mean of its images' (Eq. 8). Logits are inner products for one image a class, minus
    squared Euclidean distances for more (``metric``: auto, section 4). The paper trains for every
    shot anew; one training serves all shots here, so that auto goes by the tasks of training: a
    network trained for one comparison does badly at the other.

    A 1x1 convolution, BatchNorm and ReLU reduce maps of more than ``reduce_dim`` channels (the
    authors' 256 for ResNet-18; their ResNet-12 is not reduced). The paper starts from a
    pretrained backbone: hence ``pretrain_share``.
    """

    view = "maps"

    def __init__(
        self,
        *,
        reduce_dim: int = 256,
        metric: Metric = "auto",
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
        self.reduce_dim = reduce_dim
        self.metric: Metric = metric

    def build(self, backbone: Backbone) -> BDCHead:
        """The head for maps of the backbone's shape."""
        c, h, w = map_shape(backbone)
        return BDCHead(c, h * w, self.reduce_dim)

    def predictor(self, head: BDCHead, support: Support) -> BDCPredictor:
        """The mean BDC matrix of every class (Eq. 8)."""
        means = class_means(head.of_many(support.inputs), support.labels, support.n_way)
        inner = bool(head.inner) if self.metric == "auto" else self.metric == "inner"
        return BDCPredictor(head, means, inner=inner)

    def loss(self, head: BDCHead, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """Cross-entropy of the queries; support and query share the head's batch statistics."""
        features = head(torch.cat([support.inputs, query]))
        n = len(support.labels)
        inner = n == support.n_way if self.metric == "auto" else self.metric == "inner"
        head.inner.fill_(inner)
        means = class_means(features[:n], support.labels, support.n_way)
        scores = bdc_scores(features[n:], means, inner=inner)
        return nn.functional.cross_entropy(scores, query_labels)
