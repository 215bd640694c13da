"""VERSA (Gordon, Bronskill, Bauer, Nowozin and Turner, ICLR 2019)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.optimisation.noise import normals, order_of_classes

# Variances beyond those of any training, so that features far outside it give finite scores.
_LOG_VARIANCE = 20.0


def _block(n_features: int, width: int, n_out: int) -> nn.Sequential:
    """Three dense layers, with Xavier weights and small biases, as in the authors' code."""
    layers = [nn.Linear(n_features, width), nn.Linear(width, width), nn.Linear(width, n_out)]
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-3)
    return nn.Sequential(layers[0], nn.ELU(), layers[1], nn.ELU(), layers[2])


@final
class Amortiser(nn.Module):
    """From the pooled features of a class to a Gaussian over its weights and bias (section 3).

    Each class is seen by itself, so the same network serves any number of classes and shots.
    """

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        self.weight_mean = _block(n_features, width, n_features)
        self.weight_log_variance = _block(n_features, width, n_features)
        self.bias_mean = _block(n_features, width, 1)
        self.bias_log_variance = _block(n_features, width, 1)

    def forward(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(..., n_way, d + 1)``, the bias last."""
        mean = torch.cat([self.weight_mean(means), self.bias_mean(means)], -1)
        log_variance = torch.cat(
            [self.weight_log_variance(means), self.bias_log_variance(means)], -1
        )
        return mean, (0.5 * log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)).exp()


@final
class SampledHeads(Predictor):
    """Averages the probabilities that several linear heads give.

    ``weight`` is ``(..., n_samples, n_way, d)``, ``bias`` ``(..., n_samples, n_way)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias
        n_way, d = weight.shape[-2:]
        self.n_adapted = 2 * n_way * (d + 1)  # means and variances

    def predict(self, query: Tensor) -> Tensor:
        """Log-probabilities ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        logits = query.to(self.weight.dtype).unsqueeze(-3) @ self.weight.mT
        log_p = (logits + self.bias.unsqueeze(-2)).log_softmax(-1)
        mean = log_p.logsumexp(-3) - math.log(self.weight.shape[-3])
        return mean.to(query.dtype)


@final
class Versa(Episodic[Amortiser]):
    """Learns a network that infers the posterior of a task's classifier in one pass.

    The network maps the mean feature of each class to the mean and variance of that class's
    weights and bias (section 3, the "context independent" approximation); the loss is minus the
    log of the mean probability of a query's label over ``samples`` draws (the Monte Carlo
    objective of section 2), and a prediction averages probabilities over as many. Ten samples,
    hidden layers as wide as the authors' features (256) and Adam at 1e-4 are their code's.

    Draws are weights, shared by all queries of an episode, as section 2 writes them. The authors'
    code draws logits anew for each query (local reparameterisation), which is the same for a
    query alone; weights make its scores independent of its company. Departures: one episode a
    step instead of 4 to 16, and their dropout within the backbone is the backbone's affair.
    """

    def __init__(
        self,
        *,
        samples: int = 10,
        width: int = 256,
        lr: float = 1e-4,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.samples = samples
        self.width = width

    def build(self, backbone: Backbone) -> Amortiser:
        """The inference network."""
        return Amortiser(backbone.n_features, self.width)

    def predictor(self, head: Amortiser, support: Support) -> SampledHeads:
        """Draw heads for support features ``(..., n_support, d)``."""
        means = class_means(support.inputs, support.labels, support.n_way)
        # The network has a precision of its own.
        own = means.to(next(head.parameters()).dtype)
        mean, deviation = (t.to(means.dtype).unsqueeze(-3) for t in head(own))
        noise = normals(support, self.samples, support.n_way, means.shape[-1] + 1)
        rank = order_of_classes(means)[..., None, :, None]
        drawn = mean + deviation * noise.take_along_dim(rank, -2)
        return SampledHeads(drawn[..., :-1], drawn[..., -1])
