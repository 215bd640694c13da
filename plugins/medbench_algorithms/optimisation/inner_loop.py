"""The inner loop of MAML's family: a few gradient steps that can be differentiated through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from medbench.api import Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.adapted import Adapted, support_loss


def descend_inner(
    loss: Callable[[Sequence[Tensor]], Tensor],
    start: Sequence[Tensor],
    lr: float | Sequence[Tensor],
    n_steps: int,
    *,
    second_order: bool,
) -> list[Tensor]:
    """Take `n_steps` gradient steps on `loss` from `start`, changing nothing in place.

    `lr` is one rate for all, or for each tensor of `start` one that broadcasts to its shape.
    With `second_order` the result depends on `start` through the gradients too; without, each step
    is as if the gradient were a constant, which is first-order MAML. Tensors of `start` must
    require gradients; those the loss does not use stay as they are.

    Finn et al. 2017, Eq. 1.
    """
    current = list(start)
    rates: Sequence[float | Tensor] = [lr] * len(current) if isinstance(lr, float) else lr
    for _ in range(n_steps):
        gradients = torch.autograd.grad(
            loss(current), current, create_graph=second_order, allow_unused=True
        )
        current = [
            value if gradient is None else value - rate * gradient
            for value, rate, gradient in zip(current, rates, gradients, strict=True)
        ]
    return current


def descend_everything(
    body: FunctionalBody,
    start: Adapted,
    support: Support,
    lr: float | Sequence[Tensor],
    n_steps: int,
    *,
    second_order: bool,
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
    )
    return at(end)
