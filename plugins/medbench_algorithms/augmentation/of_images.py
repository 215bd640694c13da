"""Frozen features of images, and heads on them, for methods that change support images."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Backbone, Predictor
from medbench_algorithms.common.geometry import squared_distances
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.common.logistic import solve

Head = Literal["logistic", "prototypes"]

_AT_ONCE = 256


@torch.no_grad()
def embed(backbone: Backbone, images: Tensor) -> Tensor:
    """Features ``(n, d)`` of images ``(n, C, H, W)``, some at a time."""
    return torch.cat([backbone(part) for part in torch.split(images, _AT_ONCE)])


@final
class UnitCentroids(Predictor):
    """Scores unit features by their squared distance to centroids ``(n_way, d)``."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        # Prototypes count as no parameters, as with every other nearest-centroid method.
        self.n_adapted = 0

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way)`` of features ``(n_query, d)``."""
        return -squared_distances(F.normalize(query, dim=-1), self.centroids)


def soft_logistic(features: Tensor, targets: Tensor, C: float) -> LinearPredictor:
    """Logistic regression on unit features ``(n, d)`` for soft labels ``(n, n_way)``.

    For one-hot labels it is `LinearProbe` with ``normalize: l2``.
    """
    x = F.normalize(features, dim=-1).double()
    centre = x.mean(-2, keepdim=True)
    x = x - centre
    # Two classes have one weight vector in scikit-learn: see `LinearProbe`.
    cost = C / 2 if targets.shape[-1] == 2 else C
    dual, bias = solve(x @ x.mT, targets.double(), cost)
    return LinearPredictor(dual.mT @ x, bias, centre, unit_length=True)


def soft_centroids(features: Tensor, targets: Tensor) -> UnitCentroids:
    """Means of unit features ``(n, d)``, weighted by soft labels ``(n, n_way)``."""
    shares = (targets / targets.sum(0)).to(features.dtype)
    return UnitCentroids(shares.mT @ F.normalize(features, dim=-1))


@final
class OfImages(Predictor):
    """What a predictor on features says of images, through a frozen backbone."""

    def __init__(self, backbone: Backbone, inner: Predictor) -> None:
        self.backbone = backbone
        self.inner = inner
        self.n_adapted = inner.n_adapted

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way)`` of images ``(n_query, C, H, W)``."""
        return self.inner.predict(embed(self.backbone, query))
