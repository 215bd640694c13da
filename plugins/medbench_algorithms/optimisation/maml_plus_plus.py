"""MAML++ (Antoniou, Edwards and Storkey, "How to train your MAML", ICLR 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.adapted import Adapted
from medbench_algorithms.optimisation.by_name import ByName
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import (
    BatchNorm,
    GradientBased,
    HeadKind,
    Start,
)
from medbench_algorithms.optimisation.inner_loop import descend_everything

_LEAST = 0.03  # of an equal share, for the losses of all steps but the last (the authors' code)


@final
class Stepwise(nn.Module):
    """What is learned for each inner step apart: rates ``(n_steps,)``, norms ``(n_steps, c)``."""

    def __init__(self, rates: ByName, norms: ByName) -> None:
        super().__init__()
        self.rates = rates
        self.norms = norms


def loss_weights(n_steps: int, done: float) -> list[float]:
    """What the query loss after each inner step counts; the weights sum to one (section 4, MSL).

    `done` says how far the annealing is, from 0 to 1: from equal shares to nearly all weight on
    the last step.
    """
    others = max(1 - done, _LEAST) / n_steps
    return [others] * (n_steps - 1) + [1 - (n_steps - 1) * others]


@final
class MAMLPlusPlus(GradientBased[Stepwise]):
    """MAML with the five stabilisers of "How to train your MAML", each of which can be left out.

    - Multi-step loss: the query losses after all inner steps count, by weights that are annealed
      towards the last step during the first ``multi_step_share`` of training; then it counts alone.
    - Derivative-order annealing: the first ``first_order_share`` of training is first-order.
    - Batch normalisation by step (``per_step_norm``): every inner step has scales and shifts of its
      own, learned in the outer loop and not adapted. Whose mean and variance are used is up to
      ``batch_norm``, as in `GradientBased`. The running statistics by step that the paper
      describes are not kept: the authors' code accumulates but never uses them; it normalises
      by the batch, in training and test.
    - ``learned_rates``: a learned inner rate for every tensor of weights and every step.
    - ``cosine``: the outer rate falls from ``meta_lr`` to ``meta_lr_min`` along half a cosine.

    With all five left out this is `MAML`. More steps at test than in training use what was learned
    for the last step. Defaults follow the paper where it gives numbers (50 of 150 epochs first
    order; 4 tasks an outer step), else the authors' code (multi-step loss for 15 of 100 epochs,
    inner rate 0.01, 5 steps); gradients are not clipped, as they are there at 10.
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        inner_steps_test: int = 5,
        multi_step_share: float = 0.15,
        first_order_share: float = 0.33,
        per_step_norm: bool = True,
        learned_rates: bool = True,
        cosine: bool = True,
        meta_lr_min: float = 1e-5,
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
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
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
        self.multi_step_share = multi_step_share
        self.first_order_share = first_order_share
        self.per_step_norm = per_step_norm
        self.learned_rates = learned_rates
        self.cosine = cosine
        self.meta_lr_min = meta_lr_min

    def build(self, body: FunctionalBody, head: EpisodicHead) -> Stepwise:
        """A rate for each tensor the inner loop moves, and the norms' own values for each step."""
        n = self.inner_steps
        weights = body.parameters()
        norms = self._norms(body)
        moving = [f"body.{name}" for name in weights if name not in norms]
        like = head.bias
        rates = {
            name: torch.full((n,), self.inner_lr, dtype=like.dtype, device=like.device)
            for name in (*moving, "head.weight", "head.bias")
            if self.learned_rates
        }
        own = {name: weights[name].detach().expand(n, -1).clone() for name in norms}
        return Stepwise(ByName(rates), ByName(own))

    def fit(
        self, start: Start[Stepwise], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """The last stop of `trajectory`."""
        *_, last = self.trajectory(start, support, n_steps, second_order=second_order)
        return last

    def trajectory(
        self, start: Start[Stepwise], support: Support, n_steps: int, *, second_order: bool
    ) -> Iterator[Adapted]:
        """The weights before the first inner step, and after each."""
        norms = self._norms(start.body)
        current = self._at_step(start, start.for_each(support), 0)
        yield current
        for i in range(n_steps):
            step = min(i, self.inner_steps - 1)
            current = self._at_step(start, current, step)
            current = descend_everything(
                start.body,
                current,
                support,
                self._rates(start, current, step),
                1,
                second_order=second_order,
                recompute=self.recompute,
                fixed=norms,
            )
            yield current

    def outer_loss(self, start: Start[Stepwise], task: Task, progress: float = 0.0) -> Tensor:
        """The weighted query losses along the trajectory, as a function of what is learned."""
        if progress < self.multi_step_share:
            weights = loss_weights(self.inner_steps, progress / self.multi_step_share)
        else:
            weights = [0.0] * (self.inner_steps - 1) + [1.0]
        _, *stops = self.trajectory(
            start, task.support, self.inner_steps, second_order=progress >= self.first_order_share
        )
        losses = [
            weight * self.query_loss(start.body, stop, task)
            for weight, stop in zip(weights, stops, strict=True)
            if weight
        ]
        return torch.stack(losses).sum()

    def meta_rate(self, step: int, n_steps: int) -> float:
        """Half a cosine from ``meta_lr`` down to ``meta_lr_min``, without restarts."""
        least = min(self.meta_lr_min, self.meta_lr)
        if not self.cosine:
            return self.meta_lr
        return least + (self.meta_lr - least) * (1 + math.cos(math.pi * step / n_steps)) / 2

    def count_adapted(self, start: Start[Stepwise], adapted: Adapted) -> int:
        """All parameters but the norms' that are learned by step."""
        fixed = sum(adapted.body[name].numel() for name in self._norms(start.body))
        return super().count_adapted(start, adapted) - fixed

    def _norms(self, body: FunctionalBody) -> frozenset[str]:
        if not self.per_step_norm:
            return frozenset()
        return frozenset(name for pair in body.affine() for name in pair)

    def _at_step(self, start: Start[Stepwise], current: Adapted, step: int) -> Adapted:
        own = {name: start.parts.norms[name][step] for name in self._norms(start.body)}
        return Adapted({**current.body, **own}, current.weight, current.bias)

    def _rates(self, start: Start[Stepwise], current: Adapted, step: int) -> float | list[Tensor]:
        if not self.learned_rates:
            return self.inner_lr
        norms = self._norms(start.body)
        moving = [f"body.{name}" for name in current.body if name not in norms]
        return [start.parts.rates[name][step] for name in (*moving, "head.weight", "head.bias")]
