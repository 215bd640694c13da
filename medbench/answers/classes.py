"""Answers that are classes, or several labels: scores ``(n_query, n_way)`` of each episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbench import metrics
from medbench.answers.base import Answers, ByGroup, Floats


class ClassAnswers(Answers[Tensor, Floats]):
    """One class for each query."""

    def checked(self, found: Any, query: Tensor, first: int) -> Tensor:
        """Scores ``(..., n_query, n_way)`` float64."""
        return self._tensor(found, query, first).to("cpu", torch.float64)

    def reduced(self, first: int, answers: Tensor, *, batched: bool) -> Tensor:
        """The scores themselves, ``(n, n_query, n_way)``."""
        return answers if batched else answers[None]

    def joined(self, parts: list[Tensor]) -> Floats:
        """Scores of every episode, ``(n, n_query, n_way)``."""
        found: Floats = torch.cat(parts).numpy()
        return found

    def stacked(self, answers: list[Tensor]) -> Floats:
        """Scores ``(n, n_query, n_way)``."""
        found: Floats = torch.stack(answers).numpy()
        return found

    def concatenated(self, answers: list[Tensor]) -> Floats:
        """Scores ``(n, n_query, n_way)``."""
        return self.joined(answers)

    def agreement(self, fast: Floats, slow: Floats) -> float:
        """The share of queries with the same best class."""
        return float((fast[: len(slow)].argmax(-1) == slow.argmax(-1)).mean())

    def measured(self, found: Floats) -> dict[str, Floats]:
        """Metrics of classes, and of grades where classes are ordered."""
        labels = self._bench.target.query_labels(self._block)
        measured = metrics.classification(found, labels)
        if self._bench.target.opened.dataset.info.ordinal:
            measured |= metrics.ordinal(found, labels, self._block.classes)
        return measured

    def by_group(self, found: Floats) -> ByGroup:
        """Right answers of every patient where the data know them, else of every image.

        A patient is a number in the order of the dataset's identities, which stay untold; an image
        is its row.
        """
        target, rows = self._bench.target, self._block.query
        patients = target.opened.dataset.patients
        if patients is not None:
            rows = np.unique(patients, return_inverse=True)[1].reshape(-1)[rows]
        counts = metrics.by_group(found, target.query_labels(self._block), rows)
        return "image" if patients is None else "patient", counts


class LabelAnswers(ClassAnswers):
    """Several labels for each query, or none."""

    def measured(self, found: Floats) -> dict[str, Floats]:
        """Metrics of labels."""
        return metrics.multilabel(found, self._bench.target.query_labels(self._block))
