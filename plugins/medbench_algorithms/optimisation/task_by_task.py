"""The losses of several adapted tasks, one after the other, with their gradients at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def summed_loss(
    loss: Callable[[int, Sequence[Tensor]], Tensor],
    values: Sequence[Tensor],
    by_task: Sequence[bool],
    n_tasks: int,
) -> Tensor:
    """The sum over tasks of ``loss(task, values of that task)``, differentiable once.

    `values` marked in `by_task` lead with ``n_tasks``, and the loss of a task gets its own; the
    others are shared by all. The graph of one task at a time is held: its gradient is taken as
    soon as its loss is known, so the memory is that of one task, and its arrays stay in the caches.
    """
    found: Tensor = _Summed.apply(loss, tuple(by_task), n_tasks, *values)
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[[int, Sequence[Tensor]], Tensor],
        by_task: tuple[bool, ...],
        n_tasks: int,
        *values: Tensor,
    ) -> Tensor:
        total: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(values)
        for i in range(n_tasks):
            own = [v[i] if each else v for v, each in zip(values, by_task, strict=True)]
            with torch.enable_grad():
                leaves = [v.detach().requires_grad_() for v in own]
                one = loss(i, leaves)
                slopes = torch.autograd.grad(one, leaves, allow_unused=True)
            total.append(one.detach())
            for k, slope in enumerate(slopes):
                if slope is not None:
                    gradients[k] = _put(gradients[k], slope, values[k], i if by_task[k] else None)
        ctx.save_for_backward(*gradients)
        return torch.stack(total).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, None, None, *(None if s is None else s * g for s in ctx.saved_tensors)


def _put(into: Tensor | None, slope: Tensor, like: Tensor, task: int | None) -> Tensor:
    if task is None:
        return slope if into is None else into + slope
    if into is None:
        into = torch.zeros_like(like, memory_format=torch.contiguous_format)
    into[task] = slope
    return into
