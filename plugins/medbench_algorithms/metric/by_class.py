"""Support sets laid out class by class, for methods that look at how a class is spread."""

from __future__ import annotations

import torch
from torch import Tensor

from medbench_algorithms.common.geometry import class_masks


def by_class(features: Tensor, labels: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
    """Features ``(..., n_way, k, d)`` of every class, and which of them are there.

    `features` are ``(..., n, d)``, `labels` ``(..., n)``; ``k`` is the most shots that a class
    has, and the bool mask ``(..., n_way, k)`` says which rows are members. The other rows hold
    features of other classes: mask them.
    """
    masks = class_masks(labels, n_way)
    most = int(masks.sum(-1).max())
    order = masks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    n, d = features.shape[-2:]
    spread = features.unsqueeze(-3).expand(*features.shape[:-2], n_way, n, d)
    members = spread.gather(-2, order.unsqueeze(-1).expand(*order.shape, d))
    return members, masks.gather(-1, order)
