"""Analogies between source classes, and the generator that learns to complete them."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench_algorithms.common.geometry import squared_distances

_ITERATIONS = 20
# Cosines compared at once.
_AT_ONCE = 1 << 24


@final
class AnalogyGenerator(nn.Module):
    """Completes "a is to b as c is to ...": features ``(..., d)`` three times in, once out.

    Three layers with ReLU after each, as features are not negative (Hariharan and Girshick 2017,
    section 4.1; 512 hidden units in the authors' code). Features that may be negative want
    ``rectified=False``.
    """

    def __init__(self, d: int, *, hidden: int = 512, rectified: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.last = nn.Linear(hidden, d)
        self.rectified = rectified

    def forward(self, seed: Tensor, origin: Tensor, end: Tensor) -> Tensor:
        """What `seed` becomes when it changes as `origin` does on its way to `end`."""
        out: Tensor = self.last(self.layers(torch.cat([seed, origin, end], -1)))
        return out.relu() if self.rectified else out


def cluster(features: Tensor, n_clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids ``(min(n, n_clusters), d)`` of features ``(n, d)``: k-means by Lloyd's iterations.

    It begins at random examples; a cluster that gets no example stays where it is.
    """
    first = torch.randperm(len(features), generator=generator)[:n_clusters]
    centroids = features[first.to(features.device)]
    for _ in range(_ITERATIONS):
        own = squared_distances(features, centroids).argmin(-1)
        sums = torch.zeros_like(centroids).index_add_(0, own, features)
        counts = torch.bincount(own, minlength=len(centroids)).unsqueeze(-1)
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def mine(centroids: Tensor, classes: Tensor) -> Tensor:
    """Analogies ``(n, 4)`` between centroids ``(m, d)`` of the classes ``(m,)``, as their indices.

    For every ordered pair (a, b) of one class, the pair (c, d) of another class whose difference
    has the largest cosine with that of a and b, where it is above zero. Section 4.1.
    """
    found = []
    pairs = {int(c): _pairs(classes, int(c)) for c in torch.unique(classes)}
    for one, own in pairs.items():
        others = [p for other, p in pairs.items() if other != one and len(p)]
        if not len(own) or not others:
            continue
        candidates = torch.cat(others)
        theirs = _directions(centroids, candidates)
        for some in torch.split(own, max(1, _AT_ONCE // len(candidates))):
            best, which = (_directions(centroids, some) @ theirs.mT).max(-1)
            found.append(torch.cat([some, candidates[which]], -1)[best > 0])
    return torch.cat(found) if found else classes.new_zeros(0, 4)


def _pairs(classes: Tensor, one: int) -> Tensor:
    own = torch.nonzero(classes == one).flatten().tolist()
    pairs = list(itertools.permutations(own, 2))
    return torch.tensor(pairs, device=classes.device, dtype=torch.int64).reshape(-1, 2)


def _directions(centroids: Tensor, pairs: Tensor) -> Tensor:
    return F.normalize(centroids[pairs[:, 0]] - centroids[pairs[:, 1]], dim=-1)


def analogy_loss(
    made: Tensor, wanted: Tensor, labels: Tensor, classifier: nn.Linear, mse_weight: float
) -> Tensor:
    """Distance of what was made from what was wanted, and whether its class is still told.

    ``mse_weight * mean squared error + cross-entropy`` under the fixed classifier of the source
    classes: section 4.1, with lambda 10.
    """
    close = F.mse_loss(made, wanted)
    return mse_weight * close + F.cross_entropy(classifier(made), labels)
