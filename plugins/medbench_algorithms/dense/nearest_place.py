"""Nearest places: every place of a query takes the masks of the most similar support places."""

from __future__ import annotations

from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.dense.pooling import Size, enlarged, place_weights, share_of_place

_NUMBERS_AT_ONCE: Final = 2**23


@final
class NearestPlaces(Algorithm):
    """The floor among methods on maps: k nearest neighbours by cosine, place by place."""

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def adapt(self, support: Support) -> Predictor:
        """Remember places ``(..., n h w, c)`` and the share of each that every class covers."""
        assert support.masks is not None
        assert support.size is not None
        maps, masks = support.inputs, support.masks
        h, w = maps.shape[-2:]
        places = maps.flatten(-2).mT.flatten(-3, -2)
        cover = place_weights(masks, h, w, support.size) / share_of_place(h, w, support.size)
        cover = cover.mT.flatten(-3, -2)  # (..., n h w, n_way)
        return _Neighbours(F.normalize(places, dim=-1), cover, self.k, support.size)


@final
class _Neighbours(Predictor):
    def __init__(self, places: Tensor, cover: Tensor, k: int, size: Size) -> None:
        self.places = places
        self.cover = cover
        self.k = min(k, places.shape[-2])
        self.size = size

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way, *size)``: the neighbours' mean cover, less one half."""
        lead, (c, h, w) = query.shape[:-4], query.shape[-3:]
        n_query, n_way = query.shape[-4], self.cover.shape[-1]
        asked = query.flatten(-2).mT.reshape(-1, n_query * h * w, c)
        places = self.places.reshape(-1, *self.places.shape[-2:])
        cover = self.cover.reshape(-1, *self.cover.shape[-2:])
        step = max(1, _NUMBERS_AT_ONCE // places.shape[-2])
        found = cover.new_empty(*asked.shape[:2], n_way)
        # One block of memory for all cosines: a fresh one each time leaves gaps that add up.
        cosines = asked.new_empty(min(step, asked.shape[1]), places.shape[-2])
        for one, own, shares, answer in zip(asked, places, cover, found, strict=True):
            for part, into in zip(torch.split(one, step), torch.split(answer, step), strict=True):
                # The length of a query's feature does not change which places are nearest.
                near = torch.matmul(part, own.mT, out=cosines[: len(part)]).topk(self.k, dim=-1)
                torch.mean(shares[near.indices], dim=-2, out=into)
        scores = found.reshape(*lead, n_query, h, w, n_way).movedim(-1, -3) - 0.5
        return enlarged(scores, self.size)
