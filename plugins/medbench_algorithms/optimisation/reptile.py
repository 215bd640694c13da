"""Reptile (Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.adapted import Adapted
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import BatchNorm, GradientBased, Start

_BETA2, _EPS = 0.999, 1e-8


def mini_batches(
    n_images: int, size: int, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """`count` batches of `size` image numbers: shuffled passes, one after the other, cut up.

    A batch may reach from one pass into the next, as in the authors' code; with fewer images than
    `size` it holds some twice.
    """
    if not count:
        return
    n_passes = -(-size * count // n_images)
    passes = [torch.randperm(n_images, generator=generator) for _ in range(n_passes)]
    yield from torch.cat(passes)[: size * count].view(count, size)


@final
class SecondMoments(nn.Module):
    """What the inner Adam remembers: a running mean of squared gradients, and its steps so far."""

    steps: Tensor

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for i, weight in enumerate(weights):
            self.register_buffer(f"squares_{i}", torch.zeros_like(weight, requires_grad=False))

    def squares(self) -> list[Tensor]:
        """The running means, in the order of the weights."""
        return [value for name, value in self.named_buffers() if name != "steps"]


@final
class Reptile(GradientBased[SecondMoments]):
    """Learns a start that lies near the solutions of all tasks, by moving towards each of them.

    A task is solved by ``inner_steps`` of Adam without momentum (beta1 = 0, section 6.1) on
    batches of ``inner_batch`` images. Then the start moves by a fraction, which falls linearly
    from ``meta_lr`` to 0, towards the mean of the solutions of ``meta_batch`` tasks (algorithm 2).
    Training has no query set: all images of a task are one pool (section 6.1: more shots in
    training than at test). The head has a row for each class and serves tasks of up to as many
    classes as those of training.

    Adam's second moments go on from task to task and into the test, as in the authors' code, so
    steps are in the scale of gradients seen in training. ``batch_norm``: ``query`` is the paper's
    transductive setting; for ``support`` the paper adds each query to the support batch, here the
    statistics are of the support set alone.

    Defaults are the paper's for Omniglot 5-way (table 6): in training 5 steps of 0.001 with
    batches of 10, at test 50 steps with batches of 5; 5 tasks an outer step. Its training tasks
    have 10 images a class. Validation adapts as the test does.
    """

    vectorises: ClassVar[bool] = False  # second moments go from task to task

    def __init__(
        self,
        *,
        inner_lr: float = 1e-3,
        inner_steps: int = 5,
        inner_batch: int = 10,
        inner_steps_test: int = 50,
        inner_batch_test: int = 5,
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1.0,
        meta_batch: int = 5,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            head="per_class",
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
        self.inner_batch = inner_batch
        self.inner_batch_test = inner_batch_test
        # A tenth of the steps says little of where the start leads.
        self.inner_steps_val = inner_steps_test

    def build(self, body: FunctionalBody, head: EpisodicHead) -> SecondMoments:
        """The memory of the inner optimiser, empty."""
        return SecondMoments([*body.parameters().values(), head.weight, head.bias])

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Plain descent: a step of 1 along ``start - solution`` ends at the solution."""
        return torch.optim.SGD(parameters, lr=self.meta_lr)

    def meta_rate(self, step: int, n_steps: int) -> float:
        """Falls linearly to zero."""
        return self.meta_lr * (1 - step / n_steps)

    def accumulate(self, start: Start[SecondMoments], task: Task, progress: float) -> float:
        """Solve the task, and add its share of ``start - solution`` to the gradients."""
        del progress
        pool = Support(
            torch.cat([task.support.inputs, task.query]),
            torch.cat([task.support.labels, task.query_labels]),
            task.support.n_way,
            task.support.seeds,
        )
        weights = _weights(start)
        memory = start.parts
        solved, squares, loss = self._solve(start, pool, self.inner_steps, self.inner_batch)
        for square, now in zip(memory.squares(), squares, strict=True):
            square.copy_(now)
        memory.steps += self.inner_steps
        for weight, end in zip(weights, solved, strict=True):
            share = (weight.detach() - end) / self.meta_batch
            weight.grad = share if weight.grad is None else weight.grad + share
        return loss

    def fit(
        self, start: Start[SecondMoments], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Solve a task as at test; the way there is forgotten."""
        del second_order
        start.head.rows(support.n_way)  # refuses more classes than there are rows
        solved, _, _ = self._solve(start, support, n_steps, self.inner_batch_test)
        return _adapted(start, solved, support.n_way)

    def _solve(
        self, start: Start[SecondMoments], pool: Support, n_steps: int, size: int
    ) -> tuple[list[Tensor], list[Tensor], float]:
        """Weights and second moments after `n_steps` of Adam, and the mean loss on the way.

        Rows of classes the task lacks have no gradient and stay.
        """
        current = [weight.detach() for weight in _weights(start)]
        squares = start.parts.squares()
        before = int(start.parts.steps)
        total = 0.0
        batches = mini_batches(len(pool.labels), size, n_steps, pool.generator())
        for step, chosen in enumerate(batches, before + 1):
            chosen = chosen.to(pool.labels.device)
            with torch.enable_grad():
                leaves = [value.requires_grad_() for value in current]
                at = _adapted(start, leaves, pool.n_way)
                features = start.body.of_batch(at.body, pool.inputs[chosen])
                logits = F.linear(features, at.weight, at.bias)
                loss = F.cross_entropy(logits, pool.labels[chosen])
                slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            total += loss.item()
            with torch.no_grad():
                gradients = [
                    torch.zeros_like(v) if g is None else g
                    for g, v in zip(slopes, leaves, strict=True)
                ]
                squares = [
                    _BETA2 * s + (1 - _BETA2) * g.square()
                    for s, g in zip(squares, gradients, strict=True)
                ]
                correction = 1 - _BETA2**step
                current = [
                    v.detach() - self.inner_lr * g / ((s / correction).sqrt() + _EPS)
                    for v, g, s in zip(leaves, gradients, squares, strict=True)
                ]
        return current, squares, total / max(1, n_steps)


def _weights(start: Start[SecondMoments]) -> list[Tensor]:
    return [*start.body.parameters().values(), start.head.weight, start.head.bias]


def _adapted(start: Start[SecondMoments], values: list[Tensor], n_way: int) -> Adapted:
    *weights, weight, bias = values
    body = dict(zip(start.body.parameters(), weights, strict=True))
    return Adapted(body, weight[:n_way], bias[:n_way])
