"""Random numbers that an episode draws for itself, however it is batched."""

from __future__ import annotations

import torch
from torch import Tensor

from medbench.api import Support


def normals(support: Support, *shape: int) -> Tensor:
    """Standard normal numbers ``(..., *shape)``, those of every episode from its own generator.

    In the precision of the support set's inputs, on their device.
    """
    drawn = [
        torch.randn(shape, generator=support.generator(i), dtype=torch.float64)
        for i in range(len(support.seeds))
    ]
    lead = support.labels.shape[:-1]
    return torch.stack(drawn).to(support.inputs).reshape(*lead, *shape)


def order_of_classes(means: Tensor) -> Tensor:
    """The rank ``(..., n_way)`` of every class by the sum of its mean feature ``(..., n_way, d)``.

    Draws that follow it do not depend on which class is called the first.
    """
    return means.sum(-1).argsort(-1).argsort(-1)
