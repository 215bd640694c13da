"""Source-only: a classifier of the source's classes, as it is, on images of another site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Source, Support, TrainingRun
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.common.training import descend
from medbench_algorithms.references.asked import asked_classes


@final
class SourceOnly(Algorithm):
    """Trains backbone and linear head on all source images, and asks the head about a new site.

    It learns as the shared `Supervised` trainer does (cross-entropy over all source classes, Adam),
    but keeps the head, and the state whose head is best at validation tasks of the sources
    (training-domain validation, Gulrajani and Lopez-Paz 2021, section 3). At test time the head's
    rows of the task's classes answer; the support set is not looked at. What domain adaptation
    calls the source-only model.
    """

    def __init__(self, *, lr: float = 1e-3, batch_size: int = 64) -> None:
        self.lr = lr
        self.batch_size = batch_size
        self._head: tuple[Tensor, Tensor] | None = None

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train both; what is learned are the backbone and ``head.weight``, ``head.bias``."""
        head = nn.Linear(backbone.n_features, source.n_classes).to(run.device)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.lr)

        @torch.no_grad()
        def validate(support: Support, query: Tensor) -> Tensor:
            backbone.eval()
            scores: Tensor = head(backbone(query))
            return scores[:, asked_classes(support, "source-only")]

        state = {"backbone": backbone, "head": head, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=self.batch_size, validate=validate):
            backbone.train()
            images, labels = source.batch(step, self.batch_size)
            descend(F.cross_entropy(head(backbone(images)), labels), optimiser, run)
        return run.best()

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the head. Raises `ContractError` when it is missing."""
        if not {"head.weight", "head.bias"} <= learned.keys():
            raise ContractError(
                "source-only needs the head that its training learns, and was given "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        self._head = learned["head.weight"], learned["head.bias"]

    def adapt(self, support: Support) -> LinearPredictor:
        """The head's rows of the task's classes. Raises `ContractError` before `prepare`."""
        if self._head is None:
            raise ContractError("source-only: adapt was called before prepare.")
        classes = asked_classes(support, "source-only")
        weight, bias = (part.to(support.inputs)[classes] for part in self._head)
        predictor = LinearPredictor(weight, bias)
        predictor.n_adapted = 0
        return predictor
