"""What MAML's family has in common: the outer loop, and prediction with adapted weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from medbench.api import Algorithm, Backbone, ContractError, Source, Support, Task, TrainingRun
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.common.training import set_lr
from medbench_algorithms.optimisation.adapted import Adapted, AdaptedNetwork, task_loss
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.task_batches import (
    can_vectorise,
    fitting,
    one_task,
    task_batches,
)
from medbench_algorithms.optimisation.task_by_task import summed_loss

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

    def for_each(self, support: Support) -> Adapted:
        """The same, with weights of its own for every task of `support`, if it holds several."""
        lead = support.labels.shape[:-1]
        start = self.weights(support.n_way)
        if not lead:
            return start
        return Adapted(
            {name: value.expand((*lead, *value.shape)) for name, value in start.body.items()},
            start.weight.expand((*lead, *start.weight.shape)),
            start.bias.expand((*lead, *start.bias.shape)),
        )


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

    The tasks of a meta-batch are vectorised, ``tasks_at_once`` of them (see `task_batches` for what
    it is by default), and the results are those of one after the other to rounding: `fit` gets a
    support set with a leading dimension. ``recompute`` keeps only the weights of each inner step
    and takes the step again for the outer gradient: the memory of one step, and a third more work.

    Defaults are MAML's for miniImageNet (Finn et al. 2017, appendix A.1).
    """

    vectorises: ClassVar[bool] = True
    """Whether `fit` and `accumulate` take several tasks at once."""

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
        tasks_at_once: int | None = None,
        recompute: bool = False,
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
        self.tasks_at_once = tasks_at_once
        self.recompute = recompute
        self._start: Start[Parts] | None = None

    # --- what subclasses say ---------------------------------------------------------------------

    @abstractmethod
    def build(self, body: FunctionalBody, head: EpisodicHead) -> Parts:
        """What is learned besides body and head, freshly initialised."""

    @abstractmethod
    def fit(
        self, start: Start[Parts], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Run the inner loop; the result depends differentiably on the start.

        `support` is one task, ``(n_support, C, H, W)``, or several of one shape,
        ``(n_tasks, n_support, C, H, W)``, whose weights in the result lead with ``n_tasks``.
        """

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
        """Add the share of a task, or of several, to the gradients of the start.

        Returns the loss, of several tasks the sum. `progress` is the share of training that is
        done, from 0 to below 1.
        """
        loss = self.outer_loss(start, task, progress)
        torch.autograd.backward(loss / self.meta_batch)
        return loss.item()

    def outer_loss(self, start: Start[Parts], task: Task, progress: float = 0.0) -> Tensor:
        """The queries' cross-entropy after adaptation, summed over tasks, by the start."""
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
        learned = [*backbone.parameters(), *head.parameters(), *parts.parameters()]
        optimiser = self.optimiser(learned)

        def validate(support: Support, query: Tensor) -> Tensor:
            backbone.eval()
            return self._adapt(start, support, self.inner_steps_val).predict(query)

        state = {"backbone": backbone, "head": head, "parts": parts, "optimiser": optimiser}
        images = source.images_per_task * self.meta_batch
        n_steps = max(1, math.ceil(run.budget.images / images))
        at_once: int | None = None
        for step in run.steps(state, images_per_step=images, validate=validate):
            backbone.train()
            optimiser.zero_grad()
            set_lr(optimiser, self.meta_rate(step, n_steps))
            total = 0.0
            done = step / n_steps
            mine = run.share(self.meta_batch)
            tasks = source.tasks(step, self.meta_batch, mine)
            if at_once is None and tasks:
                at_once = self._at_once(start, tasks, done)
            number = mine.start
            # One batch's graph at a time: memory does not grow with the meta-batch.
            for batch in task_batches(tasks, at_once or 1):
                run.reseed(number)
                total += self.accumulate(start, batch, done) / self.meta_batch
                number += len(batch.support.seeds)
            run.log(run.together(learned, total))
            optimiser.step()
        return run.best()

    def _at_once(self, start: Start[Parts], tasks: Sequence[Task], progress: float) -> int:
        if not self.vectorises:
            return 1
        wanted = self.tasks_at_once
        if wanted is None:
            # What this draws must not change what the step draws.
            with torch.random.fork_rng():
                one = tasks[0]
                wanted = fitting(
                    start.body, one.support, lambda: self.outer_loss(start, one, progress)
                )
        return wanted if wanted > 1 and can_vectorise(start.body, tasks[0]) else 1

    def query_loss(self, body: FunctionalBody, adapted: Adapted, task: Task) -> Tensor:
        """The queries' cross-entropy under given weights, normalised as they will be at test.

        Of several tasks the sum. The queries of one task keep a CPU busy, those of several miss its
        caches, so there they take turns however many tasks the inner loop had at once; a sum made
        so can be differentiated once.
        """
        if task.query.ndim > body.task_dims and task.query.device.type == "cpu":
            return self._in_turns(body, adapted, task)
        if self.batch_norm == "query":
            features = body.of_batch(adapted.body, task.query)
        else:
            n = task.support.labels.shape[-1]
            both = torch.cat([task.support.inputs, task.query], -body.task_dims)
            features = body.of_first(adapted.body, both, n)[..., n:, :]
        return task_loss(features, adapted, task.query_labels)

    def _in_turns(self, body: FunctionalBody, adapted: Adapted, tasks: Task) -> Tensor:
        names = list(adapted.body)
        shared = body.parameters()

        def loss(i: int, values: Sequence[Tensor]) -> Tensor:
            *weights, weight, bias = values
            at = Adapted(dict(zip(names, weights, strict=True)), weight, bias)
            return self.query_loss(body, at, one_task(tasks, i))

        return summed_loss(
            loss,
            [*adapted.body.values(), adapted.weight, adapted.bias],
            [
                *(value.ndim > shared[name].ndim for name, value in adapted.body.items()),
                adapted.weight.ndim > 2,
                adapted.bias.ndim > 1,
            ],
            len(tasks.query),
        )

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
