"""Meta-SGD (Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly", 2017)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from medbench.api import Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.adapted import Adapted
from medbench_algorithms.optimisation.by_name import ByName
from medbench_algorithms.optimisation.episodic_head import EpisodicHead, take_rows
from medbench_algorithms.optimisation.gradient_based import (
    BatchNorm,
    GradientBased,
    HeadKind,
    Start,
)
from medbench_algorithms.optimisation.inner_loop import descend_everything


@final
class MetaSGD(GradientBased[ByName]):
    """MAML that also learns a rate for every single weight: how far it moves, and which way.

    The inner step is ``w - alpha * gradient``, element by element (Eq. 2); the outer loop learns
    start and ``alpha`` together (Eq. 3, algorithm 1). Rates may turn negative, which makes
    ``alpha`` a direction too. They all start at one value, drawn uniformly between
    ``inner_lr_min`` and ``inner_lr_max`` (section 4.1).

    Defaults are the paper's: one inner step in training and test; what it does not say is as in
    `MAML`.
    """

    def __init__(
        self,
        *,
        inner_lr_min: float = 0.005,
        inner_lr_max: float = 0.1,
        inner_steps: int = 1,
        inner_steps_test: int = 1,
        first_order: bool = False,
        head: HeadKind = "auto",
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        tasks_at_once: int | None = None,
        recompute: bool = False,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=first_order,
            head=head,
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            tasks_at_once=tasks_at_once,
            recompute=recompute,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
        self.inner_lr_min = inner_lr_min
        self.inner_lr_max = inner_lr_max

    def build(self, body: FunctionalBody, head: EpisodicHead) -> ByName:
        """The rates ``alpha``, shaped like the weights they belong to."""
        first = self.inner_lr_min + (self.inner_lr_max - self.inner_lr_min) * torch.rand(()).item()
        shapes = {f"body.{name}": value for name, value in body.parameters().items()}
        shapes |= {"head.weight": head.weight, "head.bias": head.bias}
        return ByName({name: torch.full_like(value, first) for name, value in shapes.items()})

    def fit(
        self, start: Start[ByName], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt body and head, every weight at its own rate."""
        rates = start.parts
        begin = start.for_each(support)
        alpha: list[Tensor] = [
            *(rates[f"body.{name}"] for name in begin.body),
            *take_rows(rates["head.weight"], rates["head.bias"], support.n_way),
        ]
        return descend_everything(
            start.body,
            begin,
            support,
            alpha,
            n_steps,
            second_order=second_order,
            recompute=self.recompute,
        )
