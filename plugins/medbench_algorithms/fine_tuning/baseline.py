"""Baseline (Chen, Liu, Kira, Wang and Huang, "A Closer Look at Few-shot Classification", 2019)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Support
from medbench_algorithms.common.linear import LinearPredictor, one_hot


@final
class Baseline(Algorithm):
    """Trains on all source classes, then fine-tunes a fresh linear head on the support set.

    Section 3.2, with the settings of the authors' code as defaults: 100 passes over the support
    set in random batches of 4, SGD with learning rate 0.01, momentum and dampening 0.9, weight
    decay 0.001 (on the bias too). The backbone stays frozen; it comes from the shared `Supervised`
    trainer.
    """

    def __init__(
        self,
        *,
        head_epochs: int = 100,
        head_batch_size: int = 4,
        head_lr: float = 0.01,
        head_momentum: float = 0.9,
        head_dampening: float = 0.9,
        head_weight_decay: float = 0.001,
    ) -> None:
        self.epochs = head_epochs
        self.batch_size = head_batch_size
        self.lr = head_lr
        self.momentum = head_momentum
        self.dampening = head_dampening
        self.weight_decay = head_weight_decay

    def adapt(self, support: Support) -> LinearPredictor:
        """Fine-tune one head an episode on support features ``(..., n_support, d)``."""
        lead = support.inputs.shape[:-2]
        n, d = support.inputs.shape[-2:]
        features = support.inputs.reshape(-1, n, d)
        labels = support.labels.reshape(-1, n)
        weight, bias, orders = self._draw(support, n, d)
        weight, bias = self._descend(features, one_hot(labels, support.n_way), weight, bias, orders)
        return LinearPredictor(
            weight.reshape(*lead, support.n_way, d).to(support.inputs.dtype),
            bias.reshape(*lead, support.n_way).to(support.inputs.dtype),
        )

    def _draw(self, support: Support, n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """Initial heads ``(e, n_way, d)``, ``(e, n_way)`` and orders ``(epochs, e, n)``."""
        bound = 1 / math.sqrt(d)  # as torch.nn.Linear
        heads, orders = [], []
        for episode in range(len(support.seeds)):
            generator = support.generator(episode)
            heads.append(torch.rand(support.n_way, d + 1, generator=generator))
            # Sorting random keys gives all permutations of an episode in one call.
            orders.append(torch.rand(self.epochs, n, generator=generator).argsort(-1))
        device = support.inputs.device
        head = (torch.stack(heads) * 2 - 1).mul_(bound).to(device)
        return head[..., :d], head[..., d], torch.stack(orders, 1).to(device)

    def _descend(
        self, features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, orders: Tensor
    ) -> tuple[Tensor, Tensor]:
        """SGD on cross-entropy, all episodes in step; returns float64 weights and biases.

        Every iterate is ``keep * weight + mix @ features``: gradients lie in the span of the
        support set. Stepping in ``mix (e, n_way, n)`` is the same SGD with n in place of d
        numbers a class. Float64 keeps a batch of episodes equal to the same episodes one by one
        also where large features make SGD oscillate.
        """
        x = features.double()
        kernel = x @ x.mT
        start = x @ weight.double().mT
        mix = x.new_zeros(len(x), weight.shape[1], x.shape[1])
        bias = bias.to(torch.float64, copy=True)
        keep = 1.0
        mix_velocity, bias_velocity, keep_velocity = mix.clone(), torch.zeros_like(bias), 0.0
        first = True
        for order in orders:
            for batch in order.split(self.batch_size, dim=1):
                # A batch of everything needs no gathering: its order changes nothing.
                whole = batch.shape[1] == x.shape[1]
                parts: tuple[Tensor, ...] = (kernel, start, targets)
                if not whole:
                    parts = tuple(t.take_along_dim(batch.unsqueeze(-1), 1) for t in parts)
                inner, first_logits, wanted = parts
                logits = torch.baddbmm(bias.unsqueeze(1), inner, mix.mT)
                logits += keep * first_logits
                error = (logits.softmax(-1) - wanted) / batch.shape[1]
                mix_grad = self.weight_decay * mix
                if whole:
                    mix_grad += error.mT
                else:
                    index = batch.unsqueeze(1).expand(-1, mix.shape[1], -1)
                    mix_grad.scatter_add_(2, index, error.mT)
                bias_grad = error.sum(1) + self.weight_decay * bias
                keep_grad = self.weight_decay * keep
                # torch.optim.SGD does not dampen the first gradient.
                share = 1.0 if first else 1 - self.dampening
                first = False
                mix_velocity.mul_(self.momentum).add_(mix_grad, alpha=share)
                bias_velocity.mul_(self.momentum).add_(bias_grad, alpha=share)
                keep_velocity = self.momentum * keep_velocity + share * keep_grad
                mix.sub_(mix_velocity, alpha=self.lr)
                bias.sub_(bias_velocity, alpha=self.lr)
                keep = keep - self.lr * keep_velocity
        return keep * weight.double() + mix @ x, bias
