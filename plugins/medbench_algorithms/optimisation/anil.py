"""ANIL (Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from medbench.api import Support
from medbench_algorithms.optimisation.adapted import Adapted, task_loss
from medbench_algorithms.optimisation.gradient_based import PlainStart, Start
from medbench_algorithms.optimisation.inner_loop import descend_inner


@final
class ANIL(PlainStart):
    """MAML whose inner loop adapts the head alone; the body is learned in the outer loop only.

    Section 4 of the paper; settings as in MAML, which it follows. The body keeps its weights in
    the inner loop, so support features are computed once; its BatchNorm layers use batch
    statistics as `GradientBased` says, never running ones.
    """

    def fit(
        self, start: Start[nn.Identity], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt the head on the body's features of the support images."""
        weights = start.body.parameters()
        features = start.body.of_batch(weights, support.inputs)
        # First order takes gradients as constants, so the inner steps need no graph of the body.
        features = features if second_order else features.detach()

        def loss(values: Sequence[Tensor]) -> Tensor:
            return task_loss(features, Adapted(weights, *values), support.labels)

        begin = start.for_each(support)
        weight, bias = descend_inner(
            loss,
            [begin.weight, begin.bias],
            self.inner_lr,
            n_steps,
            second_order=second_order,
            recompute=self.recompute,
        )
        return Adapted(weights, weight, bias)

    def count_adapted(self, start: Start[nn.Identity], adapted: Adapted) -> int:
        """The head's rows."""
        del start
        return adapted.weight.numel() + adapted.bias.numel()
