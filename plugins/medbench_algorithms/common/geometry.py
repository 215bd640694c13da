"""Class means and distances for any number of episodes at once.

Everything is a matrix product over the last two dimensions, so that one episode and ten thousand
take the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F


def class_masks(labels: Tensor, n_way: int) -> Tensor:
    """Which support example belongs to which class: bool ``(..., n_way, n_support)``."""
    classes = torch.arange(n_way, device=labels.device)
    return labels.unsqueeze(-2) == classes.unsqueeze(-1)


def class_means(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """The mean feature of every class, ``(..., n_way, d)``, whatever its shots and their order.

    `features` are ``(..., n_support, d)``, `labels` ``(..., n_support)``.
    """
    masks = class_masks(labels, n_way).to(features.dtype)
    # Dividing the weights rather than the sums touches n_support instead of d numbers a class.
    return (masks / masks.sum(-1, keepdim=True)) @ features


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances ``(..., n, m)`` between rows ``(..., n, d)`` and ``(..., m, d)``.

    Expanded into one matrix product. Rows are first centred on the mean of `b`: features with a
    large common offset would otherwise cancel in float32. What a row of `a` gets does not depend
    on the other rows of `a`.
    """
    centre = b.mean(-2, keepdim=True)
    a, b = a - centre, b - centre
    squared = _squared_lengths(a).unsqueeze(-1) + _squared_lengths(b).unsqueeze(-2)
    return (squared - 2 * (a @ b.mT)).clamp_min(0)


def _squared_lengths(x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return x.square().sum(-1)  # the root of zero has no slope
    # Reads x once and writes nothing of its size.
    length: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return length.square()


def cosine_similarities(a: Tensor, b: Tensor) -> Tensor:
    """Cosines ``(..., n, m)`` between rows ``(..., n, d)`` and ``(..., m, d)``; 0 for null rows."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


_NUMBERS_AT_ONCE: Final = 2**16


def few_at_a_time(work: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``work(*tensors)``, a few episodes at a time, so that what it makes stays in the cache.

    The last two dimensions of all `tensors` and of the result are an episode's; the others are
    the same ones in all of them.
    """
    lead = tensors[0].shape[:-2]
    if not lead:
        return work(*tensors)
    flat = [t.reshape(-1, *t.shape[-2:]) for t in tensors]
    n_at_once = max(1, _NUMBERS_AT_ONCE // max(t.shape[-2] * t.shape[-1] for t in flat))
    parts = zip(*(torch.split(t, n_at_once) for t in flat), strict=True)
    found = torch.cat([work(*part) for part in parts])
    return found.reshape(*lead, *found.shape[1:])
