"""DN4, the Deep Nearest Neighbor Neural Network (Li et al., CVPR 2019)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric.places import MapPredictor, class_pools, descriptors


@final
class DN4Predictor(MapPredictor):
    """Image-to-class similarity, by the nearest descriptors of every class (Eq. 2).

    ``pools`` ``(..., n_way, m, c)`` are descriptors of unit length, ``there`` says which exist.
    """

    def __init__(self, pools: Tensor, there: Tensor, k: int) -> None:
        super().__init__(pools, there)
        self.k = k
        self._pool_size = there.shape[-1] * there.shape[-2]

    def numbers_per_query(self, n_places: int) -> int:
        """One cosine for each place and each descriptor of a class."""
        return n_places * self._pool_size

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """Sums, over places and their neighbours, of cosines."""
        pools, there = kept
        (e, n_query), (n_way, m) = query.shape[:2], there.shape[1:]
        own = F.normalize(descriptors(query), dim=-1)
        cosines = own.flatten(1, 2) @ pools.flatten(1, 2).mT
        cosines = cosines.reshape(e, -1, n_way, m).masked_fill(~there.unsqueeze(1), -float("inf"))
        nearest = cosines.topk(min(self.k, m), dim=-1).values
        total = torch.where(nearest.isneginf(), 0, nearest).sum(-1)
        found = there.sum(-1).clamp_max(self.k)
        by_place = total * (self.k / found).to(total.dtype).unsqueeze(1)
        return by_place.reshape(e, n_query, -1, n_way).sum(2)


@final
class DN4(Episodic[nn.Identity]):
    """Compares every place of a query with the nearest places of each class.

    Adaptation pools the local descriptors of a class (section 3.2); a query's logit is the sum,
    over its places, of the cosines to the k nearest descriptors of the pool (Eq. 2, k = 3 in
    section 4.2). A class with fewer than k descriptors counts all of them, scaled by k over their
    number, so that it competes with larger ones. The paper trains with Adam at 0.005 and more
    than 100,000 episodes; here the suite's budget and the shared rate apply.
    """

    view = "maps"

    def __init__(
        self,
        *,
        k: int = 3,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.k = k

    def build(self, backbone: Backbone) -> nn.Identity:
        """Nothing is learned beside the backbone."""
        return nn.Identity()

    def predictor(self, head: nn.Identity, support: Support) -> DN4Predictor:
        """The descriptors of every class, at unit length."""
        pools, there = class_pools(support.inputs, support.labels, support.n_way)
        return DN4Predictor(F.normalize(pools, dim=-1), there, self.k)
