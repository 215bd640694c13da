"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022): a cache of the support set."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.common.linear import one_hot

_BETAS, _EPS, _WEIGHT_DECAY = (0.9, 0.999), 1e-4, 0.01


@final
class CachePredictor(Predictor):
    """A cache of support features beside a nearest-centroid classifier.

    ``keys (..., n_support, d)``, ``values (..., n_support, n_way)``, ``centroids (..., n_way, d)``;
    all float64.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        centroids: Tensor,
        settings: tuple[float, float, float],
        n_adapted: int = 0,
    ) -> None:
        self.keys = keys
        self.values = values
        self.centroids = centroids
        self.alpha, self.beta, self.scale = settings
        self.n_adapted = n_adapted

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        kept = (t.to(query.dtype) for t in (self.keys, self.values, self.centroids))
        keys, values, centroids = kept
        unit = F.normalize(query, dim=-1)
        return self.logits(self.affinity(unit, keys), values, self.scale * (unit @ centroids.mT))

    def logits(self, affinity: Tensor, values: Tensor, known: Tensor) -> Tensor:
        """Logits ``alpha * affinity @ values + known``; `known` are scaled cosines (Eq. 4 to 6)."""
        return self.alpha * (affinity @ values) + known

    def affinity(self, unit: Tensor, keys: Tensor) -> Tensor:
        """``exp(-beta (1 - f k))``, ``(..., n, n_support)`` (Eq. 4)."""
        return (unit @ keys.mT).sub_(1).mul_(self.beta).exp_()


def _cache(support: Support, settings: tuple[float, float, float]) -> CachePredictor:
    unit = F.normalize(support.inputs.double(), dim=-1)
    means = class_means(unit, support.labels, support.n_way)
    values = one_hot(support.labels, support.n_way)
    return CachePredictor(unit, values, F.normalize(means, dim=-1), settings)


@final
class TipAdapter(Algorithm):
    """Blends the nearest centroid with a cache: support images vote by their nearness.

    Eq. 2 to 6 with alpha 1.0 and beta 5.5 (section 4.1). There is no text encoder here: in the
    place of CLIP's zero-shot logits stand the cosines to the class means of unit features. CLIP
    scales by 100 the cosines of images to texts, which differ by hundredths; those to means of
    images differ by tenths, and ``logit_scale`` is 10. Without augmentation of the cached images,
    and without the search of alpha and beta on validation images that the authors' code makes.
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 5.5, logit_scale: float = 10.0) -> None:
        self.settings = (alpha, beta, logit_scale)

    def adapt(self, support: Support) -> CachePredictor:
        """Cache the support features ``(..., n_support, d)``."""
        return _cache(support, self.settings)


@final
class TipAdapterF(Algorithm):
    """Tip-Adapter whose cached keys are fine-tuned on the support set.

    Section 3.3 and the authors' code: from the keys of `TipAdapter`, 20 epochs of AdamW with
    learning rate 1e-3, epsilon 1e-4 and weight decay 0.01, the rate falling along a cosine. Their
    batches hold 256 images, so an epoch is one step on the whole support set. They keep the epoch
    best on test images; here it is the last.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 5.5,
        logit_scale: float = 10.0,
        tune_epochs: int = 20,
        tune_lr: float = 1e-3,
    ) -> None:
        self.settings = (alpha, beta, logit_scale)
        self.epochs = tune_epochs
        self.lr = tune_lr

    def adapt(self, support: Support) -> CachePredictor:
        """Cache the support features ``(..., n_support, d)`` and tune the keys."""
        cache = _cache(support, self.settings)
        unit, keys = cache.keys, cache.keys
        n = keys.shape[-2]
        known = cache.scale * (unit @ cache.centroids.mT)
        first, second = torch.zeros_like(keys), torch.zeros_like(keys)
        for step in range(self.epochs):
            affinity = cache.affinity(unit, keys)
            error = (cache.logits(affinity, cache.values, known).softmax(-1) - cache.values) / n
            # d logits / d key_j = alpha beta a_ij values_j unit_i
            slope = cache.alpha * cache.beta * affinity * (error @ cache.values.mT)
            gradient = slope.mT @ unit
            # In place: the arrays are large, and what counts is how often they are passed over.
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            root = (second / (1 - _BETAS[1] ** (step + 1))).sqrt_().add_(_EPS)
            lr = self.lr * (1 + math.cos(math.pi * step / self.epochs)) / 2
            keys = keys * (1 - lr * _WEIGHT_DECAY)
            keys.addcdiv_(first, root, value=-lr / (1 - _BETAS[0] ** (step + 1)))
        return CachePredictor(
            keys, cache.values, cache.centroids, self.settings, n * keys.shape[-1]
        )
