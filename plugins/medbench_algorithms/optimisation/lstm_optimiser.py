"""A learned optimiser (Andrychowicz et al., NeurIPS 2016) in its few-shot use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.optimisation.clipping import clip_gradients

_HIDDEN = 20
# Coordinates worked on at once: a processor's cache holds so many, a GPU wants more work.
_BLOCK_CPU, _BLOCK_GPU = 2**13, 2**20
_MAX_NORM = 1.0

State = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def preprocess(gradient: Tensor, p: float) -> Tensor:
    """Gradients of any shape as two numbers each, ``(..., 2)``: size and sign.

    ``(log|g| / p, sign g)`` where ``|g| >= e^-p``, else ``(-1, e^p g)`` (Andrychowicz et al. 2016,
    appendix A): gradients of very different sizes become inputs of one size.
    """
    size = gradient.abs()
    small = size < math.exp(-p)
    log = size.clamp_min(math.exp(-p)).log() / p
    sign = torch.where(small, math.exp(p) * gradient, gradient.sign())
    return torch.stack([log, sign], -1)


@final
class CoordinateLSTM(nn.Module):
    """The optimiser: two LSTM layers of 20 and a linear output, the same for every coordinate.

    Each coordinate has a state of its own (section 2.1). The output times ``scale`` is added to
    the coordinate.
    """

    def __init__(self, p: float, scale: float) -> None:
        super().__init__()
        self.first = nn.LSTMCell(2, _HIDDEN)
        self.second = nn.LSTMCell(_HIDDEN, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, 1)
        self.p = p
        self.scale = scale

    def start(self, n: int) -> State:
        """The state of `n` coordinates before their first step."""
        zero = self.output.weight.new_zeros(n, _HIDDEN)
        return (zero, zero), (zero, zero)

    def forward(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The update ``(n,)`` for gradients ``(n,)``, and the next state."""
        first = self.first(preprocess(gradient, self.p), state[0])
        second = self.second(first[0], state[1])
        return self.scale * self.output(second[0]).squeeze(-1), (first, second)


def unroll(
    optimiser: CoordinateLSTM, features: Tensor, targets: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Train linear heads from zero on features ``(e, n, d)``.

    Returns weight ``(e, c, d)`` and bias ``(e, c)``. The loss is the mean cross-entropy of
    `targets` ``(e, n, c)``; its gradients are constants to whoever differentiates the steps
    (section 2).
    """
    e, n, d = features.shape
    c = targets.shape[-1]
    x = torch.cat([features, features.new_ones(e, n, 1)], -1).detach()
    head = x.new_zeros(e, c, d + 1)
    state = optimiser.start(head.numel())
    for _ in range(n_steps):
        error = (x @ head.detach().mT).softmax(-1) - targets
        gradient = error.mT @ x / n
        update, state = optimiser(gradient.flatten(), state)
        head = head + update.reshape(head.shape)
    return head[..., :d], head[..., d]


@final
class LSTMOptimiser(Episodic[CoordinateLSTM]):
    """Learns the update rule that fits a linear head to a support set.

    An LSTM reads the gradient of each coordinate of the head, in the form of appendix A with
    p = 10, and says how to change it (Eq. 3); it is trained through the unrolled steps, with the
    gradients it reads taken as constants (section 2). The loss is the queries' after the last
    step, as in the few-shot use of Ravi and Larochelle 2017 (section 3), where Andrychowicz et al.
    sum the training loss over all steps; features are learned from the queries alone. Heads start
    at zero, which treats all classes alike.

    ``update_scale`` is a fixed factor of the network's output, which without it would begin with
    steps of any size. Meta-gradients are clipped to norm 1.
    """

    def __init__(
        self,
        *,
        inner_steps: int = 8,
        inner_steps_test: int = 8,
        p: float = 10.0,
        update_scale: float = 0.1,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        self.p = p
        self.update_scale = update_scale
        self._prepared = False

    def build(self, backbone: Backbone) -> CoordinateLSTM:
        """The optimiser."""
        return CoordinateLSTM(self.p, self.update_scale)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned optimiser; from here on, tasks are learned in the steps of a test."""
        super().prepare(backbone, learned)
        self._prepared = True
        if self._head is not None:
            self._head.double()

    def optimiser(self, head: CoordinateLSTM, learned: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam on clipped gradients: those through many steps may be huge."""
        found = super().optimiser(head, learned)
        clip_gradients(found, head.parameters(), norm=_MAX_NORM)
        return found

    def predictor(self, head: CoordinateLSTM, support: Support) -> LinearPredictor:
        """Train a head on support features ``(..., n_support, d)``."""
        n_way, d = support.n_way, support.inputs.shape[-1]
        lead, dtype = support.labels.shape[:-1], head.output.weight.dtype
        x = support.inputs.reshape(-1, *support.inputs.shape[-2:]).to(dtype)
        targets = one_hot(support.labels, n_way).reshape(*x.shape[:2], n_way).to(dtype)
        # Validation takes the steps of training: a setting of the test must not change what is
        # learned.
        n_steps = self.inner_steps_test if self._prepared else self.inner_steps
        block = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_GPU
        at_once = max(1, block // (n_way * (d + 1)))
        parts = [
            unroll(head, f, t, n_steps)
            for f, t in zip(torch.split(x, at_once), torch.split(targets, at_once), strict=True)
        ]
        weight, bias = (torch.cat(p) for p in zip(*parts, strict=True))
        return LinearPredictor(weight.reshape(*lead, n_way, d), bias.reshape(*lead, n_way))
