"""A cosine classifier fitted to the support set by SGD, for many episodes in step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Support
from medbench_algorithms.common.linear import LinearPredictor, one_hot


@final
@dataclass(frozen=True, kw_only=True)
class CosineHead:
    """Fine-tunes fresh class directions v, and class factors g with ``class_norms``, by SGD.

    A feature's logit for a class is ``scale * g * cos(v, feature)`` (g is 1 without
    ``class_norms``): Chen et al. 2019, section 3. SGD runs over random batches of the support
    set, with torch's momentum, dampening and weight decay (on v and g). v starts as
    `torch.nn.Linear` draws it and g as its length.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    scale: float
    class_norms: bool

    def fit(self, support: Support) -> LinearPredictor:
        """One head an episode on features ``(..., n_support, d)``; it acts on unit features."""
        lead = support.inputs.shape[:-2]
        n, d = support.inputs.shape[-2:]
        # Float64 keeps a batch of episodes equal to the same episodes one by one.
        features = F.normalize(support.inputs.reshape(-1, n, d).double(), dim=-1)
        targets = one_hot(support.labels.reshape(-1, n), support.n_way)
        start, orders = self.draw(support)
        weight = self.descend(features, targets, start.double(), orders)
        weight = weight.reshape(*lead, support.n_way, d).to(support.inputs.dtype)
        predictor = LinearPredictor(weight, torch.zeros_like(weight[..., 0]), unit_length=True)
        predictor.n_adapted = support.n_way * (d + self.class_norms)
        return predictor

    def draw(self, support: Support) -> tuple[Tensor, Tensor]:
        """First directions ``(e, n_way, d)`` and orders of the examples ``(epochs, e, n)``."""
        n, d = support.inputs.shape[-2:]
        starts, orders = [], []
        for episode in range(len(support.seeds)):
            generator = support.generator(episode)
            starts.append(torch.rand(support.n_way, d, generator=generator))
            # Sorting random keys gives all permutations of an episode in one call.
            orders.append(torch.rand(self.epochs, n, generator=generator).argsort(-1))
        device = support.inputs.device
        start = (torch.stack(starts) * 2 - 1) / math.sqrt(d)
        return start.to(device), torch.stack(orders, 1).to(device)

    def descend(self, x: Tensor, targets: Tensor, start: Tensor, orders: Tensor) -> Tensor:
        """The weights ``scale * g * v / |v|``, ``(e, n_way, d)``, after SGD from `start`.

        Every iterate is ``v = keep * start + mix @ x``: the gradient of a class lies in the span
        of its v and the examples. Stepping in ``keep (e, n_way, 1)`` and ``mix (e, n_way, n)`` is
        the same SGD with n in place of d numbers a class.
        """
        kernel, along = x @ x.mT, start @ x.mT
        length_of_start = start.square().sum(-1, keepdim=True)
        n_episodes, n_way, _ = start.shape
        keep = torch.ones_like(length_of_start)
        mix = x.new_zeros(n_episodes, n_way, x.shape[1])
        g = length_of_start.sqrt() if self.class_norms else keep.clone()
        values = [keep, mix, g]
        velocities: list[Tensor] | None = None
        for order in orders:
            for batch in order.split(self.batch_size, dim=1):
                keep, mix, g = values
                dots = mix @ kernel + keep * along  # v . x_i, (e, n_way, n)
                mixed = (mix * along).sum(-1, keepdim=True)
                squared = (mix * dots).sum(-1, keepdim=True)
                squared = squared + keep * (keep * length_of_start + mixed)
                length = squared.clamp_min(1e-24).sqrt()
                columns = batch.unsqueeze(1).expand(-1, n_way, -1)
                cosines = dots.gather(2, columns) / length
                error = (self.scale * g * cosines).softmax(1)
                error = error - targets.mT.gather(2, columns)
                # d loss / d(g cosine), (e, n_way, batch).
                error = error * (self.scale / batch.shape[1])
                g_grad = (error * cosines).sum(-1, keepdim=True)
                # d cosine_i / dv = (x_i - cosine_i v / |v|) / |v|.
                shrink = self.weight_decay - g * g_grad / squared.clamp_min(1e-24)
                mix_grad = (shrink * mix).scatter_add(2, columns, g * error / length)
                gradients = [shrink * keep, mix_grad, g_grad + self.weight_decay * g]
                if velocities is None:
                    # torch.optim.SGD does not dampen the first gradient.
                    velocities = gradients
                else:
                    velocities = [
                        self.momentum * v + (1 - self.dampening) * new
                        for v, new in zip(velocities, gradients, strict=True)
                    ]
                values = [w - self.lr * v for w, v in zip(values, velocities, strict=True)]
                if not self.class_norms:
                    values[2] = g
        keep, mix, g = values
        return self.scale * g * F.normalize(keep * start + mix @ x, dim=-1)
