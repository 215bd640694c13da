"""The inner loop of MAML's family: a few gradient steps that can be differentiated through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medbench.api import Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.common.twice_differentiable import CheapSecondDerivatives
from medbench_algorithms.optimisation.adapted import Adapted, support_loss


def descend_inner(
    loss: Callable[[Sequence[Tensor]], Tensor],
    start: Sequence[Tensor],
    lr: float | Sequence[Tensor],
    n_steps: int,
    *,
    second_order: bool,
    recompute: bool = False,
) -> list[Tensor]:
    """Take `n_steps` gradient steps on `loss` from `start`, changing nothing in place.

    `lr` is one rate for all, or for each tensor of `start` one that broadcasts to its shape.
    With `second_order` the result depends on `start` through the gradients too; without, each step
    is as if the gradient were a constant, which is first-order MAML. Tensors of `start` must
    require gradients; those the loss does not use stay as they are. With `recompute` a step keeps
    nothing but the weights it starts from and is taken once more when it is differentiated.

    Finn et al. 2017, Eq. 1.
    """
    rates: Sequence[float | Tensor] = [lr] * len(start) if isinstance(lr, float) else lr

    def step(*current: Tensor) -> list[Tensor]:
        with CheapSecondDerivatives() if second_order else nullcontext():
            now = loss(current)
        gradients = torch.autograd.grad(now, current, create_graph=second_order, allow_unused=True)
        return [
            value if gradient is None else _moved(value, gradient, rate)
            for value, rate, gradient in zip(current, rates, gradients, strict=True)
        ]

    current = list(start)
    for _ in range(n_steps):
        if recompute and second_order:
            current = checkpoint(step, *current, use_reentrant=False)
        else:
            current = step(*current)
    return current


def _moved(value: Tensor, gradient: Tensor, rate: float | Tensor) -> Tensor:
    if isinstance(rate, float):
        return value.sub(gradient, alpha=rate)
    return value - rate * gradient


def descend_everything(
    body: FunctionalBody,
    start: Adapted,
    support: Support,
    lr: float | Sequence[Tensor],
    n_steps: int,
    *,
    second_order: bool,
    recompute: bool = False,
    fixed: Collection[str] = (),
) -> Adapted:
    """Take `n_steps` steps with body and head; the body's weights named in `fixed` stay.

    Rates in `lr` follow the order of the body's weights that move, then the head's weight and bias.
    """
    names = [name for name in start.body if name not in fixed]

    def at(values: Sequence[Tensor]) -> Adapted:
        *weights, weight, bias = values
        return Adapted({**start.body, **dict(zip(names, weights, strict=True))}, weight, bias)

    end = descend_inner(
        lambda values: support_loss(body, at(values), support),
        [*(start.body[name] for name in names), start.weight, start.bias],
        lr,
        n_steps,
        second_order=second_order,
        recompute=recompute,
    )
    return at(end)
