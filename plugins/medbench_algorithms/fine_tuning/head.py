"""The linear head that is tuned together with a network, and where it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Support
from medbench_algorithms.common.geometry import class_means

HeadStart = Literal["normalised", "prototype", "random"]


@final
@dataclass(frozen=True)
class Head:
    """``weight (n_way, d)`` and ``bias (n_way,)``; ``unit_length`` scales features to one first."""

    weight: Tensor
    bias: Tensor
    unit_length: bool

    def __call__(self, features: Tensor) -> Tensor:
        """Logits ``(b, n_way)``."""
        if self.unit_length:
            features = F.normalize(features, dim=-1)
        return F.linear(features, self.weight, self.bias)

    def detached(self) -> Head:
        """The same head, out of the reach of gradients."""
        return Head(self.weight.detach(), self.bias.detach(), self.unit_length)


def start_head(
    kind: HeadStart, features: Tensor, support: Support, generator: torch.Generator
) -> Head:
    """A head for support features ``(n_support, d)``.

    ``normalised``: on features of unit length; rows are the class means scaled to unit length,
    biases null: cosines to the class means (Dhillon et al. 2020, section 3.1).
    ``prototype``: rows ``2 c``, biases ``-|c|^2`` for class means c: Prototypical Networks'
    logits up to a constant (Triantafillou et al. 2020, section 3, ProtoMAML).
    ``random``: as `torch.nn.Linear` starts.
    """
    d = features.shape[-1]
    if kind == "random":
        bound = 1 / math.sqrt(d)
        drawn = torch.rand(support.n_way, d + 1, generator=generator) * (2 * bound) - bound
        drawn = drawn.to(features)
        return Head(drawn[:, :d].clone(), drawn[:, d].clone(), unit_length=False)
    means = class_means(features, support.labels, support.n_way)
    if kind == "prototype":
        return Head(2 * means, -means.square().sum(-1), unit_length=False)
    return Head(F.normalize(means, dim=-1), means.new_zeros(support.n_way), unit_length=True)
