"""Masked prototypes: the mean feature of each class inside its masks, and of the background."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.dense.pooling import (
    Size,
    against_the_best_other,
    enlarged,
    place_weights,
    with_background,
)


@final
class MaskedPrototypes(Algorithm):
    """PANet's way to segment, on the backbone as it is.

    Wang et al., ICCV 2019, section 3.2 and 3.3; its training (and the alignment regularisation of
    section 3.4) are not part of this method. With `centre` the mean feature of the support's
    places is taken off all features first: those of a network without training, or behind a
    ReLU, all point one way.
    """

    def __init__(self, alpha: float = 20.0, centre: bool = False) -> None:
        self.alpha = alpha
        self.centre = centre

    def adapt(self, support: Support) -> Predictor:
        """Prototypes from maps ``(..., n, c, h, w)`` and masks ``(..., n, n_way, *size)``."""
        assert support.masks is not None
        assert support.size is not None
        middle = centre_of(support.inputs) if self.centre else None
        maps = support.inputs if middle is None else support.inputs - middle
        prototypes = class_prototypes(maps, support.masks, support.size)
        return NearestPrototype(prototypes, self.alpha, support.size, middle)


def centre_of(maps: Tensor) -> Tensor:
    """The mean feature ``(..., 1, c, 1, 1)`` over all places of maps ``(..., n, c, h, w)``."""
    return maps.mean(dim=(-4, -2, -1), keepdim=True)


def class_prototypes(maps: Tensor, masks: Tensor, size: Size) -> Tensor:
    """Prototypes ``(..., n_way + 1, c)``, the background first (equations 1 and 2).

    Of maps ``(..., n, c, h, w)`` and masks ``(..., n, n_way, *size)``.

    The mean, over the images that show a class, of the mean feature inside its mask; for the
    background over all images, outside all masks.
    """
    h, w = maps.shape[-2:]
    weights = place_weights(with_background(masks, size), h, w, size)  # (..., n, n_way + 1, h w)
    area = weights.sum(-1, keepdim=True)
    inside = (weights / area.clamp_min(1e-6)) @ maps.flatten(-2).mT  # (..., n, n_way + 1, c)
    shown = (area > 0).to(inside.dtype)
    means: Tensor = (inside * shown).sum(-3) / shown.sum(-3).clamp_min(1.0)
    return means


def class_scores(maps: Tensor, prototypes: Tensor, alpha: float, size: Size) -> Tensor:
    """Exponents ``alpha cos(f, p)`` of equation 3, ``(..., n, n_way + 1, *size)``.

    Of maps ``(..., n, c, h, w)`` and prototypes ``(..., n_way + 1, c)``; enlarged as the authors'
    code does.
    """
    towards = F.normalize(prototypes, dim=-1).unsqueeze(-3)
    places = F.normalize(maps.flatten(-2), dim=-2)  # (..., n, c, h w)
    cosines = (towards @ places).reshape(*maps.shape[:-3], -1, *maps.shape[-2:])
    return enlarged(alpha * cosines, size)


@final
class NearestPrototype(Predictor):
    """Each pixel is of the class whose prototype is nearest, the background being one of them."""

    def __init__(
        self,
        prototypes: Tensor,
        alpha: float,
        size: Size,
        middle: Tensor | None = None,
    ) -> None:
        self.prototypes = prototypes
        self.middle = middle
        self.alpha = alpha
        self.size = size
        self.n_adapted = prototypes.shape[-2] * prototypes.shape[-1]

    def predict(self, query: Tensor) -> Tensor:
        """Scores of masks ``(..., n_query, n_way, *size)`` (equations 3 and 4).

        The softmax over negative cosine distances, times alpha, is above all others where
        its exponent is: ``alpha cos(f, p)``.
        """
        query = query if self.middle is None else query - self.middle
        scores = class_scores(query, self.prototypes, self.alpha, self.size)
        return against_the_best_other(scores, self.size)
