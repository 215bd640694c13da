"""BOIL (Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change", ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from medbench.api import Support
from medbench_algorithms.optimisation.adapted import Adapted, support_loss
from medbench_algorithms.optimisation.gradient_based import BatchNorm, PlainStart, Start
from medbench_algorithms.optimisation.inner_loop import descend_inner


@final
class BOIL(PlainStart):
    """MAML whose inner loop adapts the body alone: features move, the head's rows stay.

    The head is learned in the outer loop only (section 3.1: the head's inner rate is zero). It
    needs a row for each class, for with equal rows no feature could tell classes apart; it serves
    tasks of up to as many classes as those of training.

    Defaults are those of the authors' code for Conv-4: one inner step of 0.5 in training and test,
    4 tasks an outer step, Adam at 0.001.
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.5,
        inner_steps: int = 1,
        inner_steps_test: int = 1,
        first_order: bool = False,
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
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=first_order,
            head="per_class",
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            tasks_at_once=tasks_at_once,
            recompute=recompute,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )

    def fit(
        self, start: Start[nn.Identity], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt the body."""
        begin = start.for_each(support)

        def at(values: Sequence[Tensor]) -> Adapted:
            return Adapted(dict(zip(begin.body, values, strict=True)), begin.weight, begin.bias)

        return at(
            descend_inner(
                lambda values: support_loss(start.body, at(values), support),
                list(begin.body.values()),
                self.inner_lr,
                n_steps,
                second_order=second_order,
                recompute=self.recompute,
            )
        )

    def count_adapted(self, start: Start[nn.Identity], adapted: Adapted) -> int:
        """The body's parameters."""
        del start
        return sum(value.numel() for value in adapted.body.values())
