"""A network with weights of its own for one task, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Predictor, Support
from medbench_algorithms.common.batch_statistics import FunctionalBody, Statistics


@final
@dataclass(frozen=True)
class Adapted:
    """Weights for one task: of the body by name, and of the head, ``(n_way, d)`` and ``(n_way,)``.

    An inner loop starts from one and ends with another. In a batch of tasks each of them may have
    a leading ``n_tasks``.
    """

    body: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor

    def detached(self) -> Adapted:
        """The same values without their history."""
        return Adapted(
            {name: value.detach() for name, value in self.body.items()},
            self.weight.detach(),
            self.bias.detach(),
        )


def support_loss(body: FunctionalBody, adapted: Adapted, support: Support) -> Tensor:
    """The cross-entropy of the support images, normalised by their own batch; see `task_loss`."""
    return task_loss(body.of_batch(adapted.body, support.inputs), adapted, support.labels)


def task_loss(features: Tensor, adapted: Adapted, labels: Tensor) -> Tensor:
    """The mean cross-entropy of features ``(..., n, d)`` and labels ``(..., n)``, a scalar.

    The losses of several tasks are summed: as no task's weights enter the loss of another, the
    gradient of the sum by them is that of their own loss.
    """
    logits = features @ adapted.weight.mT + adapted.bias.unsqueeze(-2)
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / labels.shape[-1]


@final
class AdaptedNetwork(Predictor):
    """A network whose weights an inner loop has fitted to one task.

    Without ``statistics`` BatchNorm uses those of the query images it is given: a transductive
    prediction.
    """

    def __init__(
        self, body: FunctionalBody, adapted: Adapted, statistics: Statistics | None, n_adapted: int
    ) -> None:
        self.body = body
        self.adapted = adapted
        self.statistics = statistics
        self.n_adapted = n_adapted

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(n_query, n_way)`` of images ``(n_query, C, H, W)``."""
        if self.statistics is None:
            features = self.body.of_batch(self.adapted.body, query)
        else:
            features = self.body.given(self.adapted.body, query, self.statistics)
        return F.linear(features, self.adapted.weight, self.adapted.bias)
