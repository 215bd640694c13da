"""MAML (Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017), in both orders."""

from __future__ import annotations

from abc import ABC
from typing import final

from torch import nn

from medbench.api import Support
from medbench_algorithms.optimisation.adapted import Adapted
from medbench_algorithms.optimisation.gradient_based import (
    BatchNorm,
    HeadKind,
    PlainStart,
    Start,
)
from medbench_algorithms.optimisation.inner_loop import descend_everything


class AllWeights(PlainStart, ABC):
    """A method whose inner loop is plain gradient descent on all weights."""

    def fit(
        self, start: Start[nn.Identity], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt body and head; support images are normalised by their own batch."""
        return descend_everything(
            start.body,
            start.for_each(support),
            support,
            self.inner_lr,
            n_steps,
            second_order=second_order,
            recompute=self.recompute,
        )


@final
class MAML(AllWeights):
    """Learns weights of the whole network from which a few gradient steps solve a new task.

    Defaults are the paper's for miniImageNet: 5 inner steps of 0.01 in training and 10 at test,
    4 tasks an outer step, Adam at 0.001. On Omniglot it takes 1 step of 0.4 (5-way; 3 steps at
    test) and 32 tasks. After a short meta-training larger inner rates (0.1 to 0.4) do better.
    """


@final
class FOMAML(AllWeights):
    """MAML whose outer gradient is the one at the adapted weights, taken for that at the start.

    Inner gradients count as constants in the outer one (Finn et al. 2017, section 5.2; Nichol,
    Achiam and Schulman 2018, section 2), which saves the second derivatives. All else, defaults
    included, is as in `MAML`.
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        inner_steps_test: int = 10,
        head: HeadKind = "auto",
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        tasks_at_once: int | None = None,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=True,
            head=head,
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            tasks_at_once=tasks_at_once,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
