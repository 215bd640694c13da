"""Prototypical Networks (Snell, Swersky and Zemel, NeurIPS 2017)."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor, nn

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_means, cosine_similarities, squared_distances

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
class ProtoNet(Episodic[nn.Identity]):
    """Learns features in which every class lies around its mean, and predicts by those means.

    Adaptation is the mean of the support features of each class (Eq. 1); a query's logits are
    minus its squared Euclidean distances to the means (Eq. 2). The backbone is trained on source
    episodes by the queries' cross-entropy (Algorithm 1) with Adam, whose rate is halved every
    ``lr_halve_every`` steps (section 3.1), of one episode each by default.
    """

    def __init__(
        self,
        *,
        distance: Distance = "euclidean",
        temperature: float = 1.0,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        meta_batch: int = 1,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(
            lr=lr,
            lr_halve_every=lr_halve_every,
            pretrain_share=pretrain_share,
            meta_batch=meta_batch,
        )
        self.distance: Distance = distance
        self.temperature = temperature

    def build(self, backbone: Backbone) -> nn.Identity:
        """Nothing is learned beside the backbone."""
        return nn.Identity()

    def predictor(self, head: nn.Identity, support: Support) -> PrototypePredictor:
        """The class means of the support features ``(..., n_support, d)`` (Eq. 1)."""
        means = class_means(support.inputs, support.labels, support.n_way)
        return PrototypePredictor(means, self.distance, self.temperature)
