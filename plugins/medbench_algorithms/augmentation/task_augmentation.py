"""Task augmentation by rotating (Liu, Chao and Lin, 2020), applied to Prototypical Networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from medbench.api import (
    Algorithm,
    Backbone,
    Source,
    Support,
    Task,
    TrainingRun,
    derive_seed,
)
from medbench_algorithms.metric.protonet import Distance, ProtoNet, PrototypePredictor


def turn_classes(task: Task, turns: Tensor) -> Task:
    """The task in which the images of class c are turned by ``turns[c]`` quarters; labels stay."""

    def turned(images: Tensor, labels: Tensor) -> Tensor:
        # Images are square, as every backbone's input is.
        out = images.clone()
        for k in range(1, 4):
            rows = (turns.to(labels.device)[labels] % 4) == k
            out[rows] = torch.rot90(images[rows], k, (-2, -1))
        return out

    s = task.support
    support = Support(turned(s.inputs, s.labels), s.labels, s.n_way, s.seeds)
    return Task(support, turned(task.query, task.query_labels), task.query_labels)


@final
class TurningSource:
    """A source in whose tasks a class may stand for itself or for its turned images.

    Each class of a task is turned with probability ``probability * min(1, step / n_ramp)``, by
    90, 180 or 270 degrees alike. Batches and sweeps are the source's own.
    """

    def __init__(self, source: Source, probability: float, n_ramp: float, seed: int) -> None:
        self.n_classes, self.ways = source.n_classes, source.ways
        self.images_per_task = source.images_per_task
        self._source, self._probability = source, probability
        self._n_ramp, self._seed = n_ramp, seed

    def turns(self, step: int, task: int, n_way: int) -> Tensor:
        """By how many quarters each class of a task is turned: ``(n_way,)`` in 0...3."""
        reached = min(1.0, step / self._n_ramp) if self._n_ramp > 0 else 1.0
        seed = derive_seed("turned classes", self._seed, step, task)
        generator = torch.Generator().manual_seed(seed)
        is_turned = torch.rand(n_way, generator=generator) < self._probability * reached
        return is_turned * torch.randint(1, 4, (n_way,), generator=generator)

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        """See `Source.tasks`."""
        found = self._source.tasks(step, count, only)
        numbers = range(count) if only is None else only
        return [
            turn_classes(task, self.turns(step, i, task.support.n_way))
            for i, task in zip(numbers, found, strict=True)
        ]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """See `Source.batch`."""
        return self._source.batch(step, size)

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source.sweep`."""
        return self._source.sweep(size)


@final
class ProtoNetRotations(Algorithm):
    """Prototypical Networks trained on tasks some of whose classes are turned images.

    A class turned by 90, 180 or 270 degrees counts as a new class (as in Santoro et al. 2016 on
    Omniglot). New classes come into tasks with a probability that grows linearly from 0 to
    ``rotation_p`` over the first ``ramp_share`` of training: the authors' code has 0.25 for
    miniImageNet and FC100 (CIFAR-FS: 0.5), reached after 80,000 of 480,000 tasks. There a class
    may meet its own turned images in one task; here the classes of a task stay distinct.
    Where a class has no upright orientation (cells, tissue), turned images are the same class
    under another name: expect less of it there. Everything else is `ProtoNet`.
    """

    def __init__(
        self,
        *,
        rotation_p: float = 0.25,
        ramp_share: float = 1 / 6,
        distance: Distance = "euclidean",
        temperature: float = 1.0,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        self.rotation_p = rotation_p
        self.ramp_share = ramp_share
        self._protonet = ProtoNet(
            distance=distance,
            temperature=temperature,
            lr=lr,
            lr_halve_every=lr_halve_every,
            pretrain_share=pretrain_share,
        )

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train as `ProtoNet` does, on turned tasks; validation tasks are not turned."""
        n_steps = math.ceil(run.budget.images / source.images_per_task)
        turning = TurningSource(source, self.rotation_p, self.ramp_share * n_steps, run.seed)
        return self._protonet.meta_train(backbone, turning, run)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """See `ProtoNet`."""
        self._protonet.prepare(backbone, learned)

    def adapt(self, support: Support) -> PrototypePredictor:
        """The class means of the support features ``(..., n_support, d)``."""
        return self._protonet.predictor(torch.nn.Identity(), support)
