"""Feature maps as sets of local descriptors, pooled by class and compared in bounded memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor

from medbench.api import Backbone, Predictor
from medbench_algorithms.common.geometry import class_masks, class_means

_NUMBERS_AT_ONCE: Final = 2**22
"""How many numbers the largest tensor of a comparison may have: 16 MiB in float32."""


def descriptors(maps: Tensor) -> Tensor:
    """The descriptors ``(..., p, c)`` of the ``p = h * w`` places of maps ``(..., c, h, w)``."""
    return maps.flatten(-2).mT


def class_maps(maps: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """The mean map of every class, ``(..., n_way, c, h, w)``, of maps ``(..., n, c, h, w)``."""
    means = class_means(maps.flatten(-3), labels, n_way)
    return means.reshape(*means.shape[:-1], *maps.shape[-3:])


def class_pools(maps: Tensor, labels: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
    """All descriptors of every class, and which of them are there.

    Of maps ``(..., n, c, h, w)``: pools ``(..., n_way, m, c)`` and bool ``(..., n_way, m)``, where
    ``m`` is the number of the class (of any episode) that has most. What is not there is zero.
    """
    masks = class_masks(labels, n_way)
    shots = masks.sum(-1)
    most = int(shots.max())
    own = masks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    rows = own.flatten(-2)
    every = descriptors(maps)
    p, c = every.shape[-2:]
    found = every.gather(-3, rows[..., None, None].expand(*rows.shape, p, c))
    pools = found.reshape(*labels.shape[:-1], n_way, most * p, c)
    there = torch.arange(most, device=labels.device) < shots.unsqueeze(-1)
    there = there.repeat_interleave(p, dim=-1)
    return torch.where(there.unsqueeze(-1), pools, 0), there


def map_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of the backbone's maps, seen on an empty image."""
    spec = backbone.input
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *spec.shape, device=device)
    modes = [(module, module.training) for module in backbone.modules()]
    # In training mode the image would enter the running statistics of BatchNorm layers.
    backbone.eval()
    try:
        with torch.no_grad():
            _, c, h, w = backbone.feature_map(image).shape
    finally:
        for module, mode in modes:
            module.training = mode
    return c, h, w


class MapPredictor(Predictor, ABC):
    """Compares query maps with what adaptation kept of the support set, a few queries at a time.

    ``kept``: tensors whose leading dimensions are the batch of episodes. A subclass says how to
    `score` the queries of a flat batch, and how large its largest tensor is for one query.
    """

    def __init__(self, *kept: Tensor) -> None:
        self.kept = kept

    @abstractmethod
    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """Scores ``(e, q, n_way)`` of query maps ``(e, q, c, h, w)``; `kept` are ``(e, ...)``."""

    @abstractmethod
    def numbers_per_query(self, n_places: int) -> int:
        """The size of the largest tensor that `score` makes, for one query."""

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` of query maps ``(..., n_query, c, h, w)``."""
        lead, n_query = query.shape[:-4], query.shape[-4]
        n_episodes = math.prod(lead)
        flat = query.reshape(n_episodes, *query.shape[-4:])
        kept = [t.reshape(n_episodes, *t.shape[len(lead) :]) for t in self.kept]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (flat, *kept)):
            # The graph keeps every part anyway, and statistics of a batch want all of it.
            scores = self.score(flat, *kept)
        else:
            size = self.numbers_per_query(query.shape[-1] * query.shape[-2])
            n_at_once = max(1, _NUMBERS_AT_ONCE // size)
            n_together = max(1, n_at_once // max(1, n_query))
            scores = torch.cat(
                [
                    self._in_parts(
                        flat[first : first + n_together],
                        [t[first : first + n_together] for t in kept],
                        n_at_once,
                    )
                    for first in range(0, n_episodes, n_together)
                ]
            )
        return scores.reshape(*lead, *scores.shape[1:])

    def _in_parts(self, query: Tensor, kept: list[Tensor], size: int) -> Tensor:
        parts = torch.split(query, size, dim=1)
        return torch.cat([self.score(part, *kept) for part in parts], dim=1)
