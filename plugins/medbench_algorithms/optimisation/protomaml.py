"""Proto-MAML (Triantafillou et al., "Meta-Dataset", ICLR 2020)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from medbench.api import Source, Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.optimisation.adapted import Adapted
from medbench_algorithms.optimisation.gradient_based import BatchNorm, PlainStart, Start
from medbench_algorithms.optimisation.inner_loop import descend_everything


def prototype_head(features: Tensor, labels: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
    """The linear layer that a Prototypical Network is: ``W = 2 c``, ``b = -|c|^2`` (section 3).

    Its logits are minus the squared distances to the class means ``c`` of `features`
    ``(n_support, d)``, but for a constant of each query.
    """
    means = class_means(features, labels, n_way)
    return 2 * means, -means.square().sum(-1)


@final
class ProtoMAML(PlainStart):
    """MAML whose head starts, in each task, as the Prototypical Network of its support set.

    The head then needs no learned rows and serves any number of classes. The outer gradient flows
    through the prototypes, in first order too (section 3). Scales and shifts of BatchNorm
    are not adapted, as in the authors' code.

    Defaults are the authors' best configuration for training on ImageNet: first order, 6 inner
    steps of 0.0054, one task an outer step, Adam at 0.00036 that falls to 0.65 of that every 2500
    steps. They normalise queries by the support set's statistics.
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.0054,
        inner_steps: int = 6,
        inner_steps_test: int = 6,
        first_order: bool = True,
        batch_norm: BatchNorm = "support",
        meta_lr: float = 3.6e-4,
        meta_lr_decay: float = 0.65,
        meta_lr_decay_every: int = 2500,
        meta_batch: int = 1,
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
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            tasks_at_once=tasks_at_once,
            recompute=recompute,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
        self.meta_lr_decay = meta_lr_decay
        self.meta_lr_decay_every = meta_lr_decay_every

    def n_rows(self, source: Source) -> int:
        """None: every task's rows come from its prototypes."""
        del source
        return 0

    def meta_rate(self, step: int, n_steps: int) -> float:
        """Falls in steps."""
        del n_steps
        return self.meta_lr * self.meta_lr_decay ** (step // self.meta_lr_decay_every)

    def fit(
        self, start: Start[nn.Identity], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt body and head from the prototypes of the unadapted body."""
        learned = start.body.parameters()
        features = start.body.of_batch(learned, support.inputs)
        weight, bias = prototype_head(features, support.labels, support.n_way)
        # The inner gradient takes the head as it is, whatever it was made of: the body's weights
        # enter the loop as copies, from which no way leads to the prototypes.
        lead = support.labels.shape[:-1]
        own = {name: value.expand((*lead, *value.shape)).clone() for name, value in learned.items()}
        return descend_everything(
            start.body,
            Adapted(own, weight, bias),
            support,
            self.inner_lr,
            n_steps,
            second_order=second_order,
            recompute=self.recompute,
            fixed=_norms(start.body),
        )

    def count_adapted(self, start: Start[nn.Identity], adapted: Adapted) -> int:
        """All parameters but the norms' scales and shifts."""
        fixed = sum(adapted.body[name].numel() for name in _norms(start.body))
        return super().count_adapted(start, adapted) - fixed


def _norms(body: FunctionalBody) -> frozenset[str]:
    return frozenset(name for pair in body.affine() for name in pair)
