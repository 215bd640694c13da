"""ANIL (Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor
from torch.nn import functional as F

from medbench.api import Support
from medbench_algorithms.batch_statistics import FunctionalBody
from medbench_algorithms.episodic_head import EpisodicHead
from medbench_algorithms.gradient_based import Adapted, BatchNorm, GradientBased, HeadKind
from medbench_algorithms.inner_loop import descend_inner


@final
class ANIL(GradientBased):
    """MAML whose inner loop adapts the head alone; the body is learned in the outer loop only.

    Section 4 of the paper; settings as in MAML, which it follows. The body keeps its weights in
    the inner loop, so support features are computed once; its BatchNorm layers use batch
    statistics as `GradientBased` says, never running ones.
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        inner_steps_test: int = 10,
        first_order: bool = False,
        head: HeadKind = "auto",
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=first_order,
            head=head,
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )

    def fit(
        self,
        body: FunctionalBody,
        head: EpisodicHead,
        support: Support,
        n_steps: int,
        *,
        second_order: bool,
    ) -> Adapted:
        """Adapt the head on the body's features of the support images."""
        weights = body.parameters()
        features = body.of_batch(weights, support.inputs)
        # First order takes gradients as constants, so the inner steps need no graph of the body.
        features = features if second_order else features.detach()

        def loss(values: Sequence[Tensor]) -> Tensor:
            weight, bias = values
            return F.cross_entropy(F.linear(features, weight, bias), support.labels)

        weight, bias = descend_inner(
            loss, head.rows(support.n_way), self.inner_lr, n_steps, second_order=second_order
        )
        return Adapted(weights, weight, bias)

    def count_adapted(self, adapted: Adapted) -> int:
        """The head's rows."""
        return adapted.weight.numel() + adapted.bias.numel()
