"""The k nearest neighbours (Cover and Hart, IEEE Transactions on Information Theory, 1967)."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.common.geometry import cosine_similarities, squared_distances

Metric = Literal["euclidean", "cosine"]


@final
class NeighbourPredictor(Predictor):
    """Remembers the support set and asks its nearest members."""

    def __init__(self, support: Support, k: int, metric: Metric) -> None:
        self.inputs = support.inputs
        self.labels = support.labels
        self.n_way = support.n_way
        self.k = min(k, support.labels.shape[-1])
        self.metric: Metric = metric

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)``.

        With k = 1 a class scores minus the distance (squared Euclidean, or one minus the cosine)
        of its nearest support example. With more neighbours its probability is its share of the
        votes, half a vote being divided among the classes by nearness: that breaks ties and keeps
        the logits finite, and outweighs no vote.
        """
        if self.metric == "euclidean":
            distances = squared_distances(query, self.inputs)
        else:
            distances = 1 - cosine_similarities(query, self.inputs)
        labels = self.labels.unsqueeze(-2).expand(distances.shape)
        nearest = distances.new_full((*distances.shape[:-1], self.n_way), math.inf)
        nearness = -nearest.scatter_reduce(-1, labels, distances, "amin")
        if self.k == 1:
            return nearness
        among = distances.topk(self.k, dim=-1, largest=False).indices
        voters = labels.gather(-1, among).unsqueeze(-1)
        votes = (voters == torch.arange(self.n_way, device=query.device)).sum(-2)
        shares = votes + 0.5 * nearness.softmax(-1)
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()


@final
class NearestNeighbour(Algorithm):
    """Gives a query the label of its nearest support example, or of most of the nearest `k`.

    ``k`` beyond the support set means all of it. The backbone comes from the shared `Supervised`
    trainer.
    """

    def __init__(
        self,
        *,
        k: int = 1,
        metric: Metric = "euclidean",
    ) -> None:
        self.k = k
        self.metric: Metric = metric

    def adapt(self, support: Support) -> NeighbourPredictor:
        """Remember support features ``(..., n_support, d)`` and labels."""
        return NeighbourPredictor(support, self.k, self.metric)
