"""What every task kind tells the checks: which tasks to give, and how to read what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from medbench.api import Backbone, Dataset, Detector, Predictor, Support
from medbench.conformance.check import Broken
from medbench.conformance.material import Episode

Answer = TypeVar("Answer")
"""What predict returned for the queries of one episode, free of its history."""
CPU = torch.device("cpu")
# What guessing does by chance so rarely that it is not guessing.
_SIGMAS = 5.0


class Form(ABC, Generic[Answer]):
    """How checks speak with the methods of one task kind."""

    n_classes: ClassVar[int]
    """How many classes there are, all of which one task may ask about."""
    image_size: ClassVar[int]
    """Side of the images in pixels, where the spec does not say."""
    n_episodes: ClassVar[int]
    """On how many tasks it is seen whether a method learns."""

    # --- what is asked ---------------------------------------------------------------------------

    @abstractmethod
    def dataset(self) -> Dataset:
        """All images, for meta-training."""

    @abstractmethod
    def episode(
        self,
        number: int = 0,
        shots: Sequence[int] = (3, 3, 3),
        n_query: int = 9,
        *,
        noise: bool = False,
    ) -> Episode:
        """Task `number` of a shape; with `noise` pixels are random, and say nothing."""

    def easy(self, number: int) -> Episode:
        """A task that whoever learns anything does well in."""
        return self.episode(number, (5, 5, 5), 9)

    @abstractmethod
    def uninformed(self, number: int, way: int) -> Episode:
        """A task whose support set says nothing of classes; queries come ordered by class."""

    @abstractmethod
    def renamed(self, one: Episode, names: Tensor) -> Episode:
        """The same task with class c called ``names[c]``."""

    @abstractmethod
    def reordered(self, one: Episode) -> Episode:
        """The same task with its support images in another order."""

    @abstractmethod
    def given(
        self, one: Episode, backbone: Backbone, works_on: str, device: torch.device = CPU
    ) -> tuple[Support, Tensor]:
        """Support set and queries of a task, as a method that works so gets them."""

    # --- what comes back -------------------------------------------------------------------------

    def adapted(self, found: object) -> Predictor | Detector:
        """`found`, when it is what `adapt` must return."""
        if not isinstance(found, Predictor):
            raise Broken(
                f"adapt returned {type(found).__name__}, and a medbench.api.Predictor is needed."
            )
        return found

    @abstractmethod
    def answer(self, found: object, support: Support) -> Answer:
        """`found`, when it is of the type that `predict` must return after this support set."""

    @abstractmethod
    def check_shape(self, answer: Answer, query: Tensor, support: Support, words: str) -> None:
        """Raise `Broken` where an answer for `query` has the wrong shape; `words` name the task."""

    @abstractmethod
    def check_finite(self, answer: Answer, where: str) -> None:
        """Raise `Broken` for what is NaN or infinite."""

    @abstractmethod
    def equal(self, first: Answer, second: Answer) -> bool:
        """Whether two answers are the same to the last bit."""

    @abstractmethod
    def gap(self, found: Answer, expected: Answer) -> float:
        """How far two answers are apart, as a share of the range of the expected scores."""

    @abstractmethod
    def called(self, answer: Answer, names: Tensor) -> Answer:
        """An answer to a `renamed` task, with its classes called as before."""

    @abstractmethod
    def joined(self, answers: Sequence[Answer]) -> Answer:
        """Answers for some queries each, as one for all of them."""

    # --- how good it is --------------------------------------------------------------------------

    @abstractmethod
    def right(self, answer: Answer, one: Episode) -> Tensor:
        """Whether each thing in the queries is given its class, (n,) of 0 to 1.

        Where it lies is told, so that a guess is right once in as many times as there are classes.
        """

    @abstractmethod
    def score(self, answers: Sequence[Answer], episodes: Sequence[Episode]) -> float:
        """How good answers are, 0 to 1, in the measure of which `enough` speaks."""

    @abstractmethod
    def enough(self, episodes: Sequence[Episode]) -> float:
        """The score above which a method has learned something from easy tasks."""

    @abstractmethod
    def told(self, score: float, episodes: Sequence[Episode], after: str) -> str:
        """A score that is not enough, in words, reached `after` which training."""

    def share_right(self, answers: Sequence[Answer], episodes: Sequence[Episode]) -> float:
        """The mean of `right` over episodes."""
        parts = [self.right(a, one) for a, one in zip(answers, episodes, strict=True)]
        return float(torch.cat(parts).double().mean())


def above(n: int, chance: float) -> float:
    """The share right that guessing `n` times independently exceeds by chance only."""
    return float(chance + _SIGMAS * np.sqrt(chance * (1 - chance) / n))


def tensor(found: object) -> Tensor:
    """`found` without its history. Raises `Broken` when it is no tensor."""
    if not isinstance(found, Tensor):
        raise Broken(f"predict returned {type(found).__name__}, and a torch.Tensor is needed.")
    return found.detach()


def tensor_gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the range of the expected scores.

    Of scores that are nearly alike, of a hundredth of their size: rounding is by that.
    """
    least = max(1e-2 * float(expected.abs().max()), 1e-6)
    scale = (expected.max() - expected.min()).clamp_min(least)
    return float(((found - expected).abs().max() / scale).cpu())


def check_scores(scores: Tensor, want: Sequence[int], query: Tensor, words: str) -> None:
    """Raise `Broken` for scores of another shape or type."""
    if tuple(scores.shape) != tuple(want):
        raise Broken(
            f"predict returned {tuple(scores.shape)} for {words}, and {tuple(want)} is needed."
        )
    if scores.dtype != query.dtype:
        raise Broken(f"scores are {scores.dtype}, and the queries were {query.dtype}.")


def check_scores_finite(scores: Tensor, where: str) -> None:
    """Raise `Broken` for NaN in scores ``(n_query, ...)``."""
    bad = ~torch.isfinite(scores)
    if bad.any():
        raise Broken(
            f"{int(bad.sum())} of {bad.numel()} scores are NaN or infinite {where}; the first is "
            f"that of query {int(bad.flatten(1).any(1).nonzero()[0, 0])}."
        )
