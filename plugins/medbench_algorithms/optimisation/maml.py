"""MAML (Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor
from torch.nn import functional as F

from medbench.api import Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import (
    Adapted,
    GradientBased,
)
from medbench_algorithms.optimisation.inner_loop import descend_inner


@final
class MAML(GradientBased):
    """Learns weights of the whole network from which a few gradient steps solve a new task.

    Defaults are the paper's for miniImageNet: 5 inner steps of 0.01 in training and 10 at test,
    4 tasks an outer step, Adam at 0.001. On Omniglot it takes 1 step of 0.4 (5-way; 3 steps at
    test) and 32 tasks. After a short meta-training larger inner rates (0.1 to 0.4) do better.
    """

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
