"""The inner loop of MAML's family: a few gradient steps that can be differentiated through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def descend_inner(
    loss: Callable[[Sequence[Tensor]], Tensor],
    start: Sequence[Tensor],
    lr: float,
    n_steps: int,
    *,
    second_order: bool,
) -> list[Tensor]:
    """Take `n_steps` gradient steps on `loss` from `start`, changing nothing in place.

    With `second_order` the result depends on `start` through the gradients too; without, each step
    is as if the gradient were a constant, which is first-order MAML. Tensors of `start` must
    require gradients; those the loss does not use stay as they are.

    Finn et al. 2017, Eq. 1.
    """
    current = list(start)
    for _ in range(n_steps):
        gradients = torch.autograd.grad(
            loss(current), current, create_graph=second_order, allow_unused=True
        )
        current = [
            value if gradient is None else value - lr * gradient
            for value, gradient in zip(current, gradients, strict=True)
        ]
    return current
