"""How an algorithm behaves: what it is given to meta-train and to adapt, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from medbench.api.datasets import Boxes, Detections
from medbench.errors import ContractError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medbench.network import Backbone


@dataclass(frozen=True)
class Support:
    """The labelled side of an episode, all that adaptation may see.

    ``inputs``: features ``(..., n_support, d)``, maps ``(..., n_support, c, h, w)`` or images
    ``(n_support, C, H, W)``, volumes ``(n_support, C, D, H, W)``;
    ``labels``: ``(..., n_support)`` int64 in ``0 ... n_way - 1``; where images have several labels,
    masks or boxes, ``(..., n_support, n_way)`` int64, 1 where an image shows the class; ``seeds``:
    one integer for each episode of the batch, the only source of randomness, so that a batch of
    episodes draws what the same episodes draw one by one.

    ``size``: height and width of the images as the network sees them (of volumes depth, height and
    width), in whose pixels masks and boxes are given; ``masks`` (task kind ``segmentation``): bool
    ``(..., n_support, n_way, *size)``, classes may overlap; ``boxes`` (``detection``): those of
    each support image of the one episode, with labels in ``0 ... n_way - 1``.

    ``classes``: ``(..., n_way)`` int64, which of the source's classes labels ``0 ... n_way - 1``
    stand for, numbered as `Source.batch` numbers them. Source tasks have it; of test episodes only
    those of a method with the trait ``knows_classes``.
    """

    inputs: Tensor
    labels: Tensor
    n_way: int
    seeds: tuple[int, ...]
    size: tuple[int, ...] | None = None
    masks: Tensor | None = None
    boxes: tuple[Boxes, ...] | None = None
    classes: Tensor | None = None

    def generator(self, episode: int = 0) -> torch.Generator:
        """A fresh CPU generator for one episode of the batch (0 when there is but one)."""
        import torch

        return torch.Generator().manual_seed(self.seeds[episode])


class Predictor(ABC):
    """What adaptation returns: a classifier for one task, or for a batch of tasks."""

    n_adapted: int = 0
    """How many parameters adaptation set or changed, for one episode."""

    @abstractmethod
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` for query inputs shaped like the support's.

        Scores are logits: their softmax over the last dimension is read as probabilities.
        For the task kind ``segmentation`` they are ``(..., n_query, n_way, *size)``, as large as
        the support's masks: a pixel belongs to every class whose score there is above zero.
        Inductive methods must give each query the scores it would get alone.
        """


class Detector(ABC):
    """What adaptation returns for the task kind ``detection``: it finds objects in one task."""

    n_adapted: int = 0
    """How many parameters adaptation set or changed."""

    @abstractmethod
    def predict(self, query: Tensor) -> list[Detections]:
        """What is found in each of ``n_query`` inputs, in pixels of images of the support's size.

        Labels are ``0 ... n_way - 1``. Inductive methods must find in each query what they would
        find in it alone.
        """


@dataclass(frozen=True)
class Task:
    """One source task for meta-training, the truth of its queries included.

    ``query_labels``: ``(n_query,)`` as the support's, or ``(n_query, n_way)`` where targets are
    masks or boxes; ``query_masks``: bool ``(n_query, n_way, *size)`` and ``query_boxes``, as the
    support's.
    """

    support: Support
    query: Tensor
    query_labels: Tensor
    query_masks: Tensor | None = None
    query_boxes: tuple[Boxes, ...] | None = None


class Source(Protocol):
    """The meta-training side of a protocol; every draw is a pure function of its arguments.

    Images come as float32 ``(b, C, H, W)`` (volumes ``(b, C, D, H, W)``) on the training device, in
    the backbone's normalisation.
    """

    n_classes: int
    """Classes over all source datasets together."""
    ways: tuple[int, ...]
    """The numbers of classes that tasks of the protocol's training shape have, ascending."""

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        """`count` tasks of the training shape for outer-loop step `step`.

        With `only`, those of them with these numbers (0 to ``count - 1``); no others are read.
        """

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images ``(size, C, H, W)`` and labels ``(size,)`` in ``0 ... n_classes - 1``.

        Datasets are drawn uniformly, then their classes, then images. Where images have masks or
        boxes, the class is the one that tasks draw an image by, of those it shows.
        """

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Every meta-training image once, in batches: for statistics of the source data.

        Images ``(b, C, H, W)`` and labels ``(b,)`` as `batch` gives them; the order is fixed.
        """

    images_per_task: int
    """Images in one task of the training shape (the largest, where tasks differ)."""


@dataclass(frozen=True)
class Budget:
    """How much meta-training may look at.

    ``images`` counts every image each time it is seen; ``episodes`` is how many tasks of the
    training shape that makes.
    """

    images: int
    episodes: int


class TrainingRun(Protocol):
    """The core's side of a meta-training: steps, validation, checkpoints, progress.

    Several processes, each with a GPU say, may share the tasks of every step, with the result of
    one process to rounding. A trainer whose spec claims ``parallel`` does so with three calls:

        for step in run.steps(state, images_per_step=n * source.images_per_task):
            optimiser.zero_grad()
            total, mine = 0.0, run.share(n)
            for number, task in zip(mine, source.tasks(step, n, mine)):
                run.reseed(number)
                loss = self.loss(task) / n
                loss.backward()
                total += loss.item()
            run.log(run.together(parameters, total))
            optimiser.step()

    All else is the same in all processes, and in one.
    """

    budget: Budget
    seed: int
    device: torch.device

    def steps(
        self,
        state: Mapping[str, Any],
        *,
        images_per_step: int,
        validate: Callable[[Support, Tensor], Tensor | list[Detections]] | None = None,
    ) -> Iterator[int]:
        """Yield outer-loop steps until the budget of images is used up.

        `state` names everything that training changes: modules, optimisers, parameters. It is
        restored from a checkpoint if there is one, so the first step may be greater than zero.
        Between steps the run writes checkpoints, reports progress, and every so often scores
        validation episodes with `validate(support, query_images) -> scores` (by accuracy; masks by
        Dice, and boxes, for which it returns detections, by AP50); the best state is
        kept. Torch's global random state is seeded anew for every step, so that a resumed
        training equals an undisturbed one.
        """

    def log(self, loss: float) -> None:
        """The loss of the current step. Raises `NonFinite`, naming the step, when it is not."""

    def share(self, count: int) -> range:
        """Which of the `count` tasks of a step this process learns from; all if it is alone.

        There may be none.
        """

    def reseed(self, number: int) -> None:
        """Seed torch's global random state for task `number` of the current step.

        What the task draws then does not depend on the tasks before it, nor on the process.
        """

    def together(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Add up, over processes, gradients of `parameters` in place, and `loss`; returns its sum.

        Once a step, before the optimiser's. Running statistics of BatchNorm layers in the state are
        merged too, as if one process had seen all tasks in order. Alone it changes nothing.
        """

    def best(self) -> dict[str, Tensor]:
        """The state of the best validation (the last one without), as tensors on the CPU.

        The names are ``"<name in state>.<tensor>"``; optimisers are left out. The modules and
        parameters in `state` are set to these values too.
        """


class Algorithm(ABC):
    """A few-shot learner. Instances hold their parameters and what `prepare` gave them, no more."""

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Learn across source tasks; returns what was learned, as named tensors.

        Tensors named ``backbone.*`` are loaded into the backbone before `prepare`; the others are
        given to `prepare` as they are. Needed only with the trait ``meta_trains``.
        """
        raise ContractError(
            f"{type(self).__name__} declares the trait meta_trains but has no meta_train method: "
            "write one, name a trainer in the spec, or set meta_trains to False."
        )

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Called once, before any episode, with the network in eval mode and what was learned.

        Methods that work on features may ignore the backbone.
        """
        return

    @abstractmethod
    def adapt(self, support: Support) -> Predictor | Detector:
        """Learn one task from its support set; must change nothing it was given.

        Returns a `Detector` for the task kind ``detection``, a `Predictor` for all others.
        """
