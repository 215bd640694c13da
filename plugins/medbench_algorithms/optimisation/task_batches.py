"""How many tasks of a meta-batch are vectorised together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medbench.api import Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody

_SHARE = 0.4  # of a GPU's memory; the rest is for gradients, workspaces and whoever else is there


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


def fitting(loss: Callable[[], Tensor], device: torch.device) -> int:
    """How many tasks to vectorise on a device; `loss` makes the graph of one.

    On a GPU as many as a share of its memory holds: kernels of one task leave it idle. On a CPU
    one: its kernels are busy with one task, and the arrays of several miss its caches.
    """
    if device.type != "cuda":
        return 1
    total = torch.cuda.get_device_properties(device).total_memory
    return max(1, int(_SHARE * total / max(1, graph_bytes(loss))))


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
