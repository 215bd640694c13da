"""How many tasks of a meta-batch are vectorised together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medbench.api import Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody

_SHARE = 0.4  # of a GPU's memory; the rest is for gradients, workspaces and whoever else is there
# What one stack of support sets and weights may hold on a CPU: conv4-64 on images of 28 pixels was
# faster up to 40 images at once, and neither faster nor slower from 25 a task on.
_PIXELS, _WEIGHTS = 1 << 15, 1 << 20


def task_batches(tasks: Sequence[Task], at_once: int) -> Iterator[Task]:
    """The tasks in order, neighbours of one shape stacked, at most `at_once` of them.

    A stack is a task whose tensors have a leading ``n_tasks``; one task alone stays as it is.
    """
    waiting: list[Task] = []
    for task in tasks:
        if waiting and (len(waiting) == at_once or _shape(waiting[0]) != _shape(task)):
            yield _stacked(waiting)
            waiting = []
        waiting.append(task)
    if waiting:
        yield _stacked(waiting)


def fitting(body: FunctionalBody, support: Support, loss: Callable[[], Tensor]) -> int:
    """How many tasks to vectorise where their images are; `loss` makes the graph of one.

    On a GPU as many as a share of its memory holds: kernels of one task leave it idle. On a CPU
    as many as make its inner steps large enough: of a few small images and weights the calls take
    longer than the arithmetic, and beyond that the arrays of several tasks miss its caches.
    """
    device = support.inputs.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return max(1, int(_SHARE * total / max(1, graph_bytes(loss))))
    pixels = support.inputs.numel() // support.inputs.shape[1]
    weights = sum(value.numel() for value in body.parameters().values())
    return max(1, min(_PIXELS // max(1, pixels), _WEIGHTS // max(1, weights)))


def graph_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes that the graph of a loss keeps for its gradient, counting each memory block once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        block = tensor.untyped_storage()
        kept[block.data_ptr()] = block.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def can_vectorise(body: FunctionalBody, task: Task) -> bool:
    """Whether two tasks at once have the features they have one by one.

    Not so for networks that draw random numbers, or decide by what they see.
    """
    # Two images of each half, so that a task's statistics would show in the other's features.
    images = torch.cat([task.support.inputs, task.query])
    half = min(4, len(images) // 2)
    pair = torch.stack([images[:half], images[-half:]])
    weights = body.parameters()
    with torch.no_grad():
        try:
            found = body.of_batch({k: v.expand(2, *v.shape) for k, v in weights.items()}, pair)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # what vmap raises for all it cannot do
            return False
        one_by_one = torch.stack([body.of_batch(weights, one) for one in pair])
    return torch.allclose(found, one_by_one, rtol=1e-3, atol=1e-3 * float(one_by_one.abs().max()))


def one_task(tasks: Task, i: int) -> Task:
    """One of the tasks that `task_batches` has stacked."""
    support = tasks.support
    n_seeds = len(support.seeds) // len(tasks.query)
    return Task(
        Support(
            support.inputs[i],
            support.labels[i],
            support.n_way,
            support.seeds[i * n_seeds : (i + 1) * n_seeds],
        ),
        tasks.query[i],
        tasks.query_labels[i],
    )


def _shape(task: Task) -> tuple[object, ...]:
    return task.support.inputs.shape, task.query.shape, task.support.n_way


def _stacked(tasks: Sequence[Task]) -> Task:
    if len(tasks) == 1:
        return tasks[0]
    supports = [task.support for task in tasks]
    return Task(
        Support(
            torch.stack([support.inputs for support in supports]),
            torch.stack([support.labels for support in supports]),
            supports[0].n_way,
            tuple(seed for support in supports for seed in support.seeds),
        ),
        torch.stack([task.query for task in tasks]),
        torch.stack([task.query_labels for task in tasks]),
    )
