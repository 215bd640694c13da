"""Prototypical Networks (Snell, Swersky and Zemel, NeurIPS 2017)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, Predictor, Source, Support, TrainingRun
from medbench_algorithms.geometry import class_means, cosine_similarities, squared_distances
from medbench_algorithms.training import descend, set_lr

Distance = Literal["euclidean", "cosine"]


def prototype_scores(
    query: Tensor, prototypes: Tensor, distance: Distance, temperature: float
) -> Tensor:
    """Logits ``(..., n_query, n_way)`` by nearness to prototypes ``(..., n_way, d)`` (Eq. 2)."""
    if distance == "euclidean":
        scores = -squared_distances(query, prototypes)
    else:
        scores = cosine_similarities(query, prototypes)
    return scores if temperature == 1.0 else scores / temperature


@final
class PrototypePredictor(Predictor):
    """Classifies by the nearest prototype; nothing is learned beyond the class means."""

    def __init__(self, prototypes: Tensor, distance: Distance, temperature: float = 1.0) -> None:
        self.prototypes = prototypes
        self.distance: Distance = distance
        self.temperature = temperature

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        return prototype_scores(query, self.prototypes, self.distance, self.temperature)


@final
class ProtoNet(Algorithm):
    """Learns features in which every class lies around its mean, and predicts by those means.

    Adaptation is the mean of the support features of each class (Eq. 1); a query's logits are
    minus its squared Euclidean distances to the means (Eq. 2). The backbone is trained on source
    episodes by the queries' cross-entropy (Algorithm 1) with Adam, whose rate is halved every
    ``lr_halve_every`` episodes (section 3.1).
    """

    def __init__(
        self,
        *,
        distance: Distance = "euclidean",
        temperature: float = 1.0,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped `source` by it.
        del train_way, train_shot, train_query
        self.distance: Distance = distance
        self.temperature = temperature
        self.lr = lr
        self.lr_halve_every = lr_halve_every

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train the backbone, one episode a step (Algorithm 1)."""
        optimiser = torch.optim.Adam(backbone.parameters(), lr=self.lr)

        @torch.no_grad()
        def validate(support: Support, query: Tensor) -> Tensor:
            backbone.eval()
            adapted = self._adapt(backbone(support.inputs), support.labels, support.n_way)
            return adapted.predict(backbone(query))

        state = {"backbone": backbone, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=source.images_per_task, validate=validate):
            set_lr(optimiser, self.lr * 0.5 ** (step // self.lr_halve_every))
            backbone.train()
            (task,) = source.tasks(step)
            n_support = len(task.support.labels)
            # Support and query share one pass, hence one set of batch statistics.
            features = backbone(torch.cat([task.support.inputs, task.query]))
            adapted = self._adapt(features[:n_support], task.support.labels, task.support.n_way)
            loss = F.cross_entropy(adapted.predict(features[n_support:]), task.query_labels)
            descend(loss, optimiser, run)
        return run.best()

    def adapt(self, support: Support) -> PrototypePredictor:
        """The class means of the support features ``(..., n_support, d)`` (Eq. 1)."""
        return self._adapt(support.inputs, support.labels, support.n_way)

    def _adapt(self, features: Tensor, labels: Tensor, n_way: int) -> PrototypePredictor:
        means = class_means(features, labels, n_way)
        return PrototypePredictor(means, self.distance, self.temperature)
