"""Meta-training by episodes, for methods whose head is a function of features or feature maps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import (
    Algorithm,
    Backbone,
    ContractError,
    Predictor,
    Source,
    Support,
    Task,
    TrainingRun,
)
from medbench_algorithms.common.training import set_lr

Head = TypeVar("Head", bound=nn.Module)


class Episodic(Algorithm, ABC, Generic[Head]):
    """Learns a backbone, and a head of its own if it has one, from the losses of source episodes.

    Every step is one episode, or the mean loss of ``meta_batch``: support and query images pass the
    backbone together, the head classifies the queries, and Adam follows their loss (Vinyals et al.
    2016, section 2.2). Processes share the episodes of a step, not a step of pretraining. The rate
    is halved every ``lr_halve_every`` steps. ``pretrain_share`` is the share of the budget
    that goes into plain classification of all source classes first (a linear classifier, thrown
    away afterwards), as in methods of two stages; a step sees as many images in either stage.

    A subclass says what its head is made of (`build`) and what it predicts (`predictor`). With
    ``freezes_backbone`` the episodes train the head alone, on features in eval mode.
    """

    view: ClassVar[Literal["features", "maps"]] = "features"
    freezes_backbone: ClassVar[bool] = False

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        meta_batch: int = 1,
    ) -> None:
        self.lr = lr
        self.meta_batch = meta_batch
        self.lr_halve_every = lr_halve_every
        self.pretrain_share = pretrain_share
        self._head: Head | None = None

    @abstractmethod
    def build(self, backbone: Backbone) -> Head:
        """The learned parts besides the backbone, freshly initialised; `nn.Identity` for none."""

    @abstractmethod
    def predictor(self, head: Head, support: Support) -> Predictor:
        """Adapt to support features ``(..., n_support, d)``, or maps ``(..., n_support, c, h, w)``.

        Differentiable; the same code trains and tests.
        """

    def loss(self, head: Head, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """The training loss of one episode: the cross-entropy of its queries."""
        return F.cross_entropy(self.predictor(head, support).predict(query), query_labels)

    def optimiser(self, head: Head, learned: list[nn.Parameter]) -> torch.optim.Optimizer:
        """What follows the losses; `learned` are the parameters of backbone, head and classifier.

        Its learning rate is set at every step.
        """
        return torch.optim.Adam(learned, lr=self.lr)

    def embed(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What the head sees of images ``(b, C, H, W)``."""
        found: Tensor = (
            backbone(images) if self.view == "features" else backbone.feature_map(images)
        )
        return found

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train backbone and head; keeps the state that does best at validation episodes."""
        head = self.build(backbone).to(run.device)
        classifier = nn.Linear(backbone.n_features, source.n_classes).to(run.device)
        learned = [*backbone.parameters(), *head.parameters(), *classifier.parameters()]
        optimiser = self.optimiser(head, learned)

        @torch.no_grad()
        def validate(support: Support, query: Tensor) -> Tensor:
            inputs = self.embed(backbone, support.inputs)
            embedded = Support(inputs, support.labels, support.n_way, support.seeds)
            return self.predictor(head, embedded).predict(self.embed(backbone, query))

        per_step = source.images_per_task * self.meta_batch
        n_pretraining = round(self.pretrain_share * math.ceil(run.budget.images / per_step))
        state = {
            "backbone": backbone,
            "head": head,
            "classifier": classifier,
            "optimiser": optimiser,
        }
        for step in run.steps(state, images_per_step=per_step, validate=validate):
            set_lr(optimiser, self.lr * 0.5 ** (step // self.lr_halve_every))
            pretrains = step < n_pretraining
            learns_features = pretrains or not self.freezes_backbone
            backbone.train(learns_features)
            head.train()
            optimiser.zero_grad()
            total, parts = 0.0, 1 if pretrains else self.meta_batch
            for number in run.share(parts):
                run.reseed(number)
                if pretrains:
                    images, labels = source.batch(step, per_step)
                    loss = F.cross_entropy(classifier(backbone(images)), labels)
                else:
                    (task,) = source.tasks(step, parts, [number])
                    loss = self._episode(backbone, head, task, learns_features) / parts
                total += loss.item()
                torch.autograd.backward(loss)
            # Reported first: a loss that is not finite must not reach weights that are kept.
            run.log(run.together(learned, total))
            optimiser.step()
        return {k: v for k, v in run.best().items() if not k.startswith("classifier.")}

    def _episode(self, backbone: Backbone, head: Head, task: Task, learns_features: bool) -> Tensor:
        n = len(task.support.labels)
        # Support and query share one pass, hence one set of batch statistics.
        with torch.set_grad_enabled(learns_features):
            both = self.embed(backbone, torch.cat([task.support.inputs, task.query]))
        support = Support(both[:n], task.support.labels, task.support.n_way, task.support.seeds)
        return self.loss(head, support, both[n:], task.query_labels)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned head. Raises `ContractError` when a part of it is missing."""
        head = self.build(backbone)
        own = {k.removeprefix("head."): v for k, v in learned.items() if k.startswith("head.")}
        missing = sorted(head.state_dict().keys() - own.keys())
        if missing:
            raise ContractError(
                f"{type(self).__name__} needs what meta-training learns, and {', '.join(missing)} "
                f"is not among {', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        head.load_state_dict(own)
        device = next((v.device for v in own.values()), torch.device("cpu"))
        self._head = head.to(device).eval().requires_grad_(requires_grad=False)

    def adapt(self, support: Support) -> Predictor:
        """See `predictor`."""
        if self._head is None:
            raise ContractError(f"{type(self).__name__}.adapt was called before prepare.")
        return self.predictor(self._head, support)
