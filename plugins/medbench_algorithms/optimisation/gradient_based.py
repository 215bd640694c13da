"""What MAML and ANIL have in common: the outer loop, and prediction with adapted weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Source, Support, TrainingRun
from medbench_algorithms.common.batch_statistics import FunctionalBody, Statistics
from medbench_algorithms.optimisation.episodic_head import EpisodicHead

BatchNorm = Literal["query", "support"]
HeadKind = Literal["auto", "per_class", "shared"]


@final
@dataclass(frozen=True)
class Adapted:
    """Weights after the inner loop: of the body by name, and of the head."""

    body: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor


@final
class AdaptedNetwork(Predictor):
    """A network whose weights an inner loop has fitted to one task.

    Without ``statistics`` BatchNorm uses those of the query images it is given: a transductive
    prediction.
    """

    def __init__(
        self, body: FunctionalBody, adapted: Adapted, statistics: Statistics | None, n_adapted: int
    ) -> None:
        self.body = body
        self.adapted = adapted
        self.statistics = statistics
        self.n_adapted = n_adapted

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(n_query, n_way)`` of images ``(n_query, C, H, W)``."""
        if self.statistics is None:
            features = self.body.of_batch(self.adapted.body, query)
        else:
            features = self.body.given(self.adapted.body, query, self.statistics)
        return F.linear(features, self.adapted.weight, self.adapted.bias)


class GradientBased(Algorithm, ABC):
    """Learns initial weights from which a few gradient steps on a support set solve its task.

    ``batch_norm`` says whose statistics BatchNorm layers use. ``query``: those of whatever batch
    is passed, as the code of Finn et al. does; predictions then depend on the other queries, in
    training and test alike. ``support``: the support set's, taken with the adapted weights, for
    queries too, so that each query is predicted alone (cf. Bronskill et al. 2020, TaskNorm).
    Running statistics are neither used nor changed.

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
        self.first_order = first_order
        self.head_kind: HeadKind = head
        self.batch_norm: BatchNorm = batch_norm
        self.meta_lr = meta_lr
        self.meta_batch = meta_batch
        self._body: FunctionalBody | None = None
        self._head: EpisodicHead | None = None

    @abstractmethod
    def fit(
        self,
        body: FunctionalBody,
        head: EpisodicHead,
        support: Support,
        n_steps: int,
        *,
        second_order: bool,
    ) -> Adapted:
        """Run the inner loop; the result depends differentiably on the start."""

    @abstractmethod
    def count_adapted(self, adapted: Adapted) -> int:
        """How many parameters the inner loop changes."""

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Learn the start (Finn et al. 2017, algorithms 1 and 2).

        Validation takes as many inner steps as training: ``inner_steps_test`` is a setting of the
        test, which must not change what is learned.
        """
        per_class = self.head_kind == "per_class" or (
            self.head_kind == "auto" and len(source.ways) == 1
        )
        n_rows = max(source.ways) if per_class else 1
        head = EpisodicHead(backbone.n_features, n_rows).to(run.device)
        body = FunctionalBody(backbone)
        optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=self.meta_lr)

        def validate(support: Support, query: Tensor) -> Tensor:
            backbone.eval()
            return self._adapt(body, head, support, self.inner_steps).predict(query)

        state = {"backbone": backbone, "head": head, "optimiser": optimiser}
        images = source.images_per_task * self.meta_batch
        for step in run.steps(state, images_per_step=images, validate=validate):
            backbone.train()
            optimiser.zero_grad()
            total = 0.0
            # One task's graph at a time: memory does not grow with the meta-batch.
            for task in source.tasks(step, self.meta_batch):
                loss = self.outer_loss(body, head, task.support, task.query, task.query_labels)
                torch.autograd.backward(loss / self.meta_batch)
                total += loss.item() / self.meta_batch
            run.log(total)
            optimiser.step()
        return run.best()

    def outer_loss(
        self,
        body: FunctionalBody,
        head: EpisodicHead,
        support: Support,
        query: Tensor,
        query_labels: Tensor,
    ) -> Tensor:
        """The queries' cross-entropy after adaptation, as a function of the start."""
        adapted = self.fit(body, head, support, self.inner_steps, second_order=not self.first_order)
        if self.batch_norm == "query":
            features = body.of_batch(adapted.body, query)
        else:
            n = len(support.inputs)
            both = torch.cat([support.inputs, query])
            features = body.of_first(adapted.body, both, n)[n:]
        return F.cross_entropy(F.linear(features, adapted.weight, adapted.bias), query_labels)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned start. Raises `ContractError` when there is none."""
        self._body = FunctionalBody(backbone)
        self._head = EpisodicHead.from_learned(learned)

    def adapt(self, support: Support) -> AdaptedNetwork:
        """Run the inner loop on images ``(n_support, C, H, W)``.

        Raises `ContractError` for more classes than the head has learned rows for.
        """
        if self._body is None or self._head is None:
            raise ContractError(f"{type(self).__name__}.adapt was called before prepare.")
        self._head.to(support.inputs.device)
        return self._adapt(self._body, self._head, support, self.inner_steps_test)

    def _adapt(
        self, body: FunctionalBody, head: EpisodicHead, support: Support, n_steps: int
    ) -> AdaptedNetwork:
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            support = Support(
                _usable(support.inputs), _usable(support.labels), support.n_way, support.seeds
            )
            fitted = self.fit(body, head, support, n_steps, second_order=False)
            adapted = Adapted(
                {name: value.detach() for name, value in fitted.body.items()},
                fitted.weight.detach(),
                fitted.bias.detach(),
            )
        statistics: dict[str, tuple[Tensor, Tensor]] | None = None
        if self.batch_norm == "support":
            statistics = {}
            with torch.no_grad():
                body.of_first(adapted.body, support.inputs, len(support.inputs), statistics)
        return AdaptedNetwork(body, adapted, statistics, self.count_adapted(adapted))


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
