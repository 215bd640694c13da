"""What answers made of scores have in common: one tensor for all queries of a task."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from medbench.api import Support
from medbench.conformance.forms.base import Form, check_scores_finite, tensor, tensor_gap


class ScoreForm(Form[Tensor], ABC):
    """Answers are scores ``(n_query, n_way, ...)``."""

    def answer(self, found: object, support: Support) -> Tensor:
        """See `Form`."""
        return tensor(found)

    def check_finite(self, answer: Tensor, where: str) -> None:
        """See `Form`."""
        check_scores_finite(answer, where)

    def equal(self, first: Tensor, second: Tensor) -> bool:
        """See `Form`."""
        return torch.equal(first, second)

    def gap(self, found: Tensor, expected: Tensor) -> float:
        """See `Form`."""
        return tensor_gap(found, expected)

    def joined(self, answers: Sequence[Tensor]) -> Tensor:
        """See `Form`."""
        return torch.cat(list(answers))
