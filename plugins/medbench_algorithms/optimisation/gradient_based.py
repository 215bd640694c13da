"""What MAML's family has in common: the outer loop, and prediction with adapted weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Source, Support, Task, TrainingRun
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.common.training import set_lr
from medbench_algorithms.optimisation.adapted import Adapted, AdaptedNetwork
from medbench_algorithms.optimisation.episodic_head import EpisodicHead

BatchNorm = Literal["query", "support"]
HeadKind = Literal["auto", "per_class", "shared"]
Parts = TypeVar("Parts", bound=nn.Module)


@final
@dataclass(frozen=True)
class Start(Generic[Parts]):
    """What meta-training learns: a body, a head, and what a method has besides."""

    body: FunctionalBody
    head: EpisodicHead
    parts: Parts

    def weights(self, n_way: int) -> Adapted:
        """Where the inner loop of a task with `n_way` classes starts."""
        return Adapted(self.body.parameters(), *self.head.rows(n_way))


class GradientBased(Algorithm, ABC, Generic[Parts]):
    """Learns initial weights from which a few gradient steps on a support set solve its task.

    ``batch_norm`` says whose statistics BatchNorm layers use. ``query``: those of whatever batch
    is passed, as the code of Finn et al. does; predictions then depend on the other queries, in
    training and test alike. ``support``: the support set's, taken with the adapted weights, for
    queries too, so that each query is predicted alone (cf. Bronskill et al. 2020, TaskNorm).
    Running statistics are neither used nor changed.

    A subclass says what the inner loop does (`fit`). It may also learn more than a start (`build`),
    make the outer gradient in another way (`accumulate`), or follow it differently (`optimiser`,
    `meta_rate`). What changes during training is a function of the step alone, so that a resumed
    training equals an undisturbed one.

    Defaults are MAML's for miniImageNet (Finn et al. 2017, appendix A.1).
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
        # The shape of training tasks is the core's business: it has shaped `source` by it.
        del train_way, train_shot, train_query
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        # Validation must not depend on a setting of the test, which shares trainings.
        self.inner_steps_val = inner_steps
        self.first_order = first_order
        self.head_kind: HeadKind = head
        self.batch_norm: BatchNorm = batch_norm
        self.meta_lr = meta_lr
        self.meta_batch = meta_batch
        self._start: Start[Parts] | None = None

    # --- what subclasses say ---------------------------------------------------------------------

    @abstractmethod
    def build(self, body: FunctionalBody, head: EpisodicHead) -> Parts:
        """What is learned besides body and head, freshly initialised."""

    @abstractmethod
    def fit(
        self, start: Start[Parts], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Run the inner loop; the result depends differentiably on the start."""

    def count_adapted(self, start: Start[Parts], adapted: Adapted) -> int:
        """How many parameters the inner loop changes: all, unless a subclass says otherwise."""
        del start
        body = sum(value.numel() for value in adapted.body.values())
        return body + adapted.weight.numel() + adapted.bias.numel()

    def n_rows(self, source: Source) -> int:
        """How many rows the head learns: one for each class of a task, or one for all."""
        per_class = self.head_kind == "per_class" or (
            self.head_kind == "auto" and len(source.ways) == 1
        )
        return max(source.ways) if per_class else 1

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What follows the outer gradient."""
        return torch.optim.Adam(parameters, lr=self.meta_lr)

    def meta_rate(self, step: int, n_steps: int) -> float:
        """The outer learning rate of one step of `n_steps`."""
        del step, n_steps
        return self.meta_lr

    def accumulate(self, start: Start[Parts], task: Task, progress: float) -> float:
        """Add a task's share to the gradients of the start; returns its loss.

        `progress` is the share of training that is done, from 0 to below 1.
        """
        loss = self.outer_loss(start, task, progress)
        torch.autograd.backward(loss / self.meta_batch)
        return loss.item()

    def outer_loss(self, start: Start[Parts], task: Task, progress: float = 0.0) -> Tensor:
        """The queries' cross-entropy after adaptation, as a function of the start."""
        del progress
        adapted = self.fit(start, task.support, self.inner_steps, second_order=not self.first_order)
        return self.query_loss(start.body, adapted, task)

    # --- the outer loop --------------------------------------------------------------------------

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Learn the start (Finn et al. 2017, algorithms 1 and 2).

        Validation takes as many inner steps as training: ``inner_steps_test`` is a setting of the
        test, which must not change what is learned.
        """
        head = EpisodicHead(backbone.n_features, self.n_rows(source)).to(run.device)
        body = FunctionalBody(backbone)
        parts = self.build(body, head).to(run.device)
        start = Start(body, head, parts)
        optimiser = self.optimiser(
            [*backbone.parameters(), *head.parameters(), *parts.parameters()]
        )

        def validate(support: Support, query: Tensor) -> Tensor:
            backbone.eval()
            return self._adapt(start, support, self.inner_steps_val).predict(query)

        state = {"backbone": backbone, "head": head, "parts": parts, "optimiser": optimiser}
        images = source.images_per_task * self.meta_batch
        n_steps = max(1, math.ceil(run.budget.images / images))
        for step in run.steps(state, images_per_step=images, validate=validate):
            backbone.train()
            optimiser.zero_grad()
            set_lr(optimiser, self.meta_rate(step, n_steps))
            total = 0.0
            # One task's graph at a time: memory does not grow with the meta-batch.
            for task in source.tasks(step, self.meta_batch):
                total += self.accumulate(start, task, step / n_steps) / self.meta_batch
            run.log(total)
            optimiser.step()
        return run.best()

    def query_loss(self, body: FunctionalBody, adapted: Adapted, task: Task) -> Tensor:
        """The queries' cross-entropy under given weights, normalised as they will be at test."""
        if self.batch_norm == "query":
            features = body.of_batch(adapted.body, task.query)
        else:
            n = len(task.support.inputs)
            both = torch.cat([task.support.inputs, task.query])
            features = body.of_first(adapted.body, both, n)[n:]
        return F.cross_entropy(F.linear(features, adapted.weight, adapted.bias), task.query_labels)

    # --- use -------------------------------------------------------------------------------------

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned start. Raises `ContractError` when a part of it is missing."""
        body, head = FunctionalBody(backbone), EpisodicHead.from_learned(learned)
        parts = self.build(body, head)
        own = {k.removeprefix("parts."): v for k, v in learned.items() if k.startswith("parts.")}
        missing = sorted(parts.state_dict().keys() - own.keys())
        if missing:
            raise ContractError(
                f"{type(self).__name__} needs what meta-training learns, and {', '.join(missing)} "
                f"is not among {', '.join(sorted(learned))}. Meta-train it first."
            )
        parts.load_state_dict(own)
        self._start = Start(body, head, parts.to(head.weight.device))

    def adapt(self, support: Support) -> AdaptedNetwork:
        """Run the inner loop on images ``(n_support, C, H, W)``.

        Raises `ContractError` for more classes than the head has learned rows for.
        """
        if self._start is None:
            raise ContractError(f"{type(self).__name__}.adapt was called before prepare.")
        self._start.head.to(support.inputs.device)
        self._start.parts.to(support.inputs.device)
        return self._adapt(self._start, support, self.inner_steps_test)

    def _adapt(self, start: Start[Parts], support: Support, n_steps: int) -> AdaptedNetwork:
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            support = Support(
                _usable(support.inputs), _usable(support.labels), support.n_way, support.seeds
            )
            adapted = self.fit(start, support, n_steps, second_order=False).detached()
        statistics: dict[str, tuple[Tensor, Tensor]] | None = None
        if self.batch_norm == "support":
            statistics = {}
            with torch.no_grad():
                start.body.of_first(adapted.body, support.inputs, len(support.inputs), statistics)
        return AdaptedNetwork(start.body, adapted, statistics, self.count_adapted(start, adapted))


class PlainStart(GradientBased[nn.Identity], ABC):
    """A method that learns a body and a head, and nothing besides."""

    def build(self, body: FunctionalBody, head: EpisodicHead) -> nn.Identity:
        """Nothing."""
        del body, head
        return nn.Identity()


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
