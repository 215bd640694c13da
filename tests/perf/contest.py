"""Episodes of features in memory, run as the accuracy lane does and as the field's loops do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from plain_metric import Labelled, Method, Task, TaskSampler, collate
from torch import Tensor
from torch.utils.data import DataLoader

from medbench.api import Algorithm, Support
from medbench.draws import Ints
from medbench.episodes import Pool, Shape
from medbench.lanes import EPISODES_PER_BLOCK

N_CLASSES, PER_CLASS, D = 64, 100, 512


@dataclass(frozen=True)
class Images:
    """What is known of 100 images of each of 64 classes: features or maps ``(6400, ...)``."""

    inputs: Tensor

    def in_blocks(self, algorithm: Algorithm, shape: Shape, n: int) -> tuple[Tensor, float]:
        """Draws `n` episodes, and scores them as the accuracy lane does: many at a time.

        Returns scores ``(n, n_query, n_way)`` and the accuracy.
        """
        block = _pool().draw(shape, "perf", 0, n)
        labels = torch.from_numpy(block.support_labels)
        scores = []
        for first in range(0, n, EPISODES_PER_BLOCK):
            last = min(first + EPISODES_PER_BLOCK, n)
            given = Support(
                self._gather(block.support[first:last]),
                labels.expand(last - first, -1).contiguous(),
                shape.way,
                tuple(range(first, last)),
            )
            predictor = algorithm.adapt(given)
            scores.append(predictor.predict(self._gather(block.query[first:last])))
        found = torch.cat(scores)
        right = found.argmax(-1) == torch.from_numpy(block.query_labels)
        return found, float(right.float().mean())

    def one_by_one(self, method: Method, tasks: Iterable[Task]) -> tuple[Tensor, float]:
        """The same of a plain method, one task after the other."""
        scores, right, total = [], 0, 0
        with torch.no_grad():
            for support, labels, query, asked in tasks:
                found = method(support, labels, query)
                right += int((found.argmax(1) == asked).sum())
                total += len(asked)
                scores.append(found)
        return torch.stack(scores), right / total

    def loader(self, shape: Shape, n: int) -> DataLoader[Task]:
        """`n` tasks from a data loader, as the field draws them."""
        by_class = [range(i * PER_CLASS, (i + 1) * PER_CLASS) for i in range(N_CLASSES)]
        labels = torch.arange(N_CLASSES).repeat_interleave(PER_CLASS).tolist()
        return DataLoader(
            Labelled(self.inputs, labels),
            batch_sampler=TaskSampler(by_class, shape, n),
            collate_fn=partial(collate, shape=shape),
        )

    def tasks(self, shape: Shape, n: int) -> Iterator[Task]:
        """The first `n` episodes of medbench, for a plain method."""
        block = _pool().draw(shape, "perf", 0, n)
        for i in range(n):
            yield (
                self.inputs[block.support[i]],
                torch.from_numpy(block.support_labels),
                self.inputs[block.query[i]],
                torch.from_numpy(block.query_labels[i]),
            )

    def _gather(self, rows: Ints) -> Tensor:
        found = self.inputs.index_select(0, torch.from_numpy(rows).flatten())
        return found.unflatten(0, rows.shape)


@dataclass(frozen=True)
class Contest:
    """A method in both forms, on episodes of one shape.

    `as_ours`: the loop that finds what medbench finds in episode i, where `loop` draws otherwise
    or stops earlier; by default `loop` itself. Scores may differ by a constant a query and by
    rounding; with `scores_alike` False only nearly all predictions are equal. `probabilities`:
    by how much the softmax of scores may differ.
    """

    images: Images
    shape: Shape
    ours: Algorithm
    loop: Method
    as_ours: Callable[[int], Any] | None = None
    scores_alike: bool = True
    probabilities: float = 1e-3
    n_check: int = 3

    def run(
        self,
        race: Any,
        case: str,
        n_loop: int,
        n_ours: int,
        goal: float | None,
        floor: Callable[[Shape], dict[str, float]] | None = None,
    ) -> None:
        """Check that both find the same; then race `n_loop` against `n_ours` episodes."""
        self._check()
        if race.quick:
            n_loop = n_ours = 1
        race(
            case,
            ours=lambda: self.images.in_blocks(self.ours, self.shape, n_ours),
            loop=lambda: self.images.one_by_one(self.loop, self.images.loader(self.shape, n_loop)),
            n_ours=n_ours,
            n_loop=n_loop,
            goal=goal,
            floor_s=None if floor is None else lambda m: m.floor_s(**floor(self.shape)),
        )

    def _check(self) -> None:
        found, _ = self.images.in_blocks(self.ours, self.shape, self.n_check)
        for i, task in enumerate(self.images.tasks(self.shape, self.n_check)):
            loop = self.loop if self.as_ours is None else self.as_ours(i)
            expected, _ = self.images.one_by_one(loop, [task])
            same = (found[i].argmax(-1) == expected[0].argmax(-1)).float().mean()
            assert same >= 0.97
            if self.scores_alike:
                p, wanted = found[i].double().softmax(-1), expected[0].double().softmax(-1)
                assert float((p - wanted).abs().max()) <= self.probabilities


@cache
def _pool() -> Pool:
    return Pool(list(np.arange(N_CLASSES * PER_CLASS).reshape(N_CLASSES, PER_CLASS)))


@cache
def features(d: int = D) -> Images:
    """Positive, with a large common part, as behind a ReLU; classes overlap."""
    return Images(_relu_of_clusters((d,)))


@cache
def maps() -> Images:
    """Feature maps of 64 channels and 5x5 places."""
    return Images(_relu_of_clusters((64, 5, 5)))


def _relu_of_clusters(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 0.25 * torch.randn(N_CLASSES, 1, *shape, generator=generator)
    noise = torch.randn(N_CLASSES, PER_CLASS, *shape, generator=generator)
    return (centres + noise).relu().flatten(0, 1)
