"""Bounds on the gradients that an optimiser follows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def clip_gradients(
    optimiser: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    norm: float,
    value: float | None = None,
) -> None:
    """From now on clip gradients of `parameters` before every step of `optimiser`.

    Every number to `value`, if given, and then all together to a Euclidean length of `norm`.
    """
    own = list(parameters)

    def clip(*_: object) -> None:
        having = [p for p in own if p.grad is not None]
        if not having:
            return
        if value is not None:
            nn.utils.clip_grad_value_(having, value)
        nn.utils.clip_grad_norm_(having, norm)

    optimiser.register_step_pre_hook(clip)
