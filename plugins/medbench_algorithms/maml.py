"""MAML (Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017)."""

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
class MAML(GradientBased):
    """Learns weights of the whole network from which a few gradient steps solve a new task.

    Defaults are the paper's for miniImageNet: 5 inner steps of 0.01 in training and 10 at test,
    4 tasks an outer step, Adam at 0.001. On Omniglot it takes 1 step of 0.4 (5-way; 3 steps at
    test) and 32 tasks. After a short meta-training larger inner rates (0.1 to 0.4) do better.
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
        """Adapt body and head; support images are normalised by their own batch."""
        start = body.parameters()

        def loss(values: Sequence[Tensor]) -> Tensor:
            *weights, weight, bias = values
            features = body.of_batch(dict(zip(start, weights, strict=True)), support.inputs)
            return F.cross_entropy(F.linear(features, weight, bias), support.labels)

        *weights, weight, bias = descend_inner(
            loss,
            [*start.values(), *head.rows(support.n_way)],
            self.inner_lr,
            n_steps,
            second_order=second_order,
        )
        return Adapted(dict(zip(start, weights, strict=True)), weight, bias)

    def count_adapted(self, adapted: Adapted) -> int:
        """All parameters of the network, and the head's rows."""
        body = sum(value.numel() for value in adapted.body.values())
        return body + adapted.weight.numel() + adapted.bias.numel()
