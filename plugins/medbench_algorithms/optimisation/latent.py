"""The learned parts of LEO: a latent space of classifiers, and gradient steps in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.common.linear import one_hot

_LEAST_DEVIATION = 1e-10
# Numbers in the array of all pairs of support examples that is worked on at once.
_PAIRS = 2**24


@final
@dataclass(frozen=True)
class Sampled:
    """Adapted weights ``(..., n_way, d)`` and what the loss wants to know of the way there."""

    weight: Tensor
    divergence: Tensor
    """Of the latent distribution from a standard normal, by the draw, a mean over its numbers."""
    moved: Tensor
    """Mean squared distance of the first codes from the last, whose gradient is stopped."""


def deviation(raw: Tensor, offset: float) -> Tensor:
    """Standard deviations that are near `offset` where `raw` is near zero, as in LEO's code."""
    return (raw.exp() - (1.0 - offset)).clamp_min(_LEAST_DEVIATION)


def log_ratio(z: Tensor, noise: Tensor, std: Tensor) -> Tensor:
    """Log-density of z under the normal it was drawn from less that under the standard one.

    `noise` is the draw before it was scaled by `std` and shifted: taking it back from z would
    divide rounding by deviations that may be tiny.
    """
    return 0.5 * (z.square() - noise.square()) - std.log()


@final
class LatentHeads(nn.Module):
    """From support features to class codes, from codes to weights; none of the maps has a bias.

    The relation network (three layers of twice ``n_latents``) sees every pair of support
    examples; its outputs are averaged over partners, then over the examples of a class.
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        inner_lr: float,
        finetuning_lr: float,
        dropout: float,
    ) -> None:
        super().__init__()
        wide = 2 * n_latents
        self.encoder = nn.Linear(n_features, n_latents, bias=False)
        self.relation = nn.Sequential(
            nn.Linear(wide, wide, bias=False),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
        )
        self.decoder = nn.Linear(n_latents, 2 * n_features, bias=False)
        for matrix in self._matrices():
            nn.init.xavier_uniform_(matrix)
        self.inner_lr = nn.Parameter(torch.full((n_latents,), inner_lr))
        self.finetuning_lr = nn.Parameter(torch.full((n_features,), finetuning_lr))
        self.dropout = dropout

    def codes(self, x: Tensor, labels: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
        """Means and raw deviations ``(..., n_way, n_latents)`` of the classes' codes."""
        encoded = self.encoder(self._drop(x))
        n, width = encoded.shape[-2:]
        flat = encoded.reshape(-1, n, width)
        at_once = max(1, _PAIRS // (n * n * 2 * width))
        related = torch.cat([self._relate(part) for part in torch.split(flat, at_once)])
        both = class_means(related.reshape(*x.shape[:-1], 2 * width), labels, n_way)
        mean, raw = both.chunk(2, -1)
        return mean, raw

    def _relate(self, encoded: Tensor) -> Tensor:
        n = encoded.shape[-2]
        left = encoded.unsqueeze(-2).expand(-1, -1, n, -1)
        right = encoded.unsqueeze(-3).expand(-1, n, -1, -1)
        found: Tensor = self.relation(torch.cat([left, right], -1)).mean(-2)
        return found

    def scores(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits ``(..., n, n_way)``; in training some features are dropped."""
        return self._drop(x) @ weight.mT

    def adapt(
        self,
        x: Tensor,
        labels: Tensor,
        n_way: int,
        n_inner: int,
        n_finetuning: int,
        latent_noise: Tensor | None = None,
        weight_noise: Tensor | None = None,
    ) -> Sampled:
        """The inner loop on support features ``(..., n, d)``, differentiable to any order.

        `latent_noise` ``(..., n_way, n_latents)`` and `weight_noise` ``(n_inner + 1, ..., n_way,
        d)`` are standard normal draws; without them codes and weights are the means.

        The loss of the inner loop is ``n_way`` times the mean cross-entropy: the authors' code
        sums it over examples, and shares each class's step among its K copies of the code.
        Gradients are written out, since a method may be asked to adapt where autograd is off.
        """
        targets = one_hot(labels, n_way).to(x.dtype)
        mean, raw = self.codes(x, labels, n_way)
        z, divergence = mean, x.new_zeros(())
        if latent_noise is not None:
            std = deviation(raw, 0.0)
            z = mean + std * latent_noise
            divergence = log_ratio(z, latent_noise, std).mean()
        first = z
        # The usual spread of freshly initialised weights.
        offset = math.sqrt(2.0 / (n_way + x.shape[-1]))
        to_mean, to_raw = self.decoder.weight.chunk(2)  # (d, n_latents) each

        def decode(step: int) -> tuple[Tensor, Tensor | None]:
            """Weights, and how they change with their raw deviations."""
            weight = z @ to_mean.mT
            if weight_noise is None:
                return weight, None
            spread = z @ to_raw.mT
            std = deviation(spread, offset)
            slope = spread.exp() * (std > _LEAST_DEVIATION)
            return weight + std * weight_noise[step], slope * weight_noise[step]

        weight, slope = decode(0)
        for step in range(n_inner):
            gradient = self._gradient(x, targets, weight)
            of_code = gradient @ to_mean
            if slope is not None:
                of_code = of_code + (gradient * slope) @ to_raw
            z = z - self.inner_lr * of_code
            weight, slope = decode(step + 1)
        for _ in range(n_finetuning):
            weight = weight - self.finetuning_lr * self._gradient(x, targets, weight)
        return Sampled(weight, divergence, (z.detach() - first).square().mean())

    def squared_size(self) -> Tensor:
        """The sum of squares of all matrices."""
        return torch.stack([m.square().sum() for m in self._matrices()]).sum()

    def correlation(self) -> Tensor:
        """How far the decoder's rows, one a latent, are from orthogonal: a mean square."""
        rows = F.normalize(self.decoder.weight.mT, dim=-1)
        identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        return (rows @ rows.mT - identity).square().mean()

    def _gradient(self, x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        dropped = self._drop(x)
        error = (dropped @ weight.mT).softmax(-1) - targets
        n, n_way = targets.shape[-2:]
        return error.mT @ dropped * (n_way / n)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _matrices(self) -> list[Tensor]:
        layers = [self.encoder, *self.relation, self.decoder]
        return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
