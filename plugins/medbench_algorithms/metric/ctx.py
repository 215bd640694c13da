"""CrossTransformers (Doersch, Gupta and Zisserman, NeurIPS 2020)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric.places import MapPredictor, class_pools, descriptors, map_shape


@final
class CTXHead(nn.Module):
    """Keys and values of places: 1x1 convolutions without bias.

    Queries are keyed as supports are, so that an image matches itself best (section 3.2).
    """

    def __init__(self, n_channels: int, dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(n_channels, dim, bias=False)
        self.value = nn.Linear(n_channels, dim, bias=False)

    def keys(self, places: Tensor) -> Tensor:
        """Keys ``(..., p, dim)`` of descriptors ``(..., p, c)``."""
        return F.linear(places, self.key.weight.to(places.dtype))

    def values(self, places: Tensor) -> Tensor:
        """Values ``(..., p, dim)`` of descriptors ``(..., p, c)``."""
        return F.linear(places, self.value.weight.to(places.dtype))


@final
class CTXPredictor(MapPredictor):
    """Distances to prototypes that every place of the query assembles for itself.

    ``keys`` and ``values`` are ``(..., n_way, m, dim)``; ``there`` says which places exist.
    """

    def __init__(self, head: CTXHead, keys: Tensor, values: Tensor, there: Tensor) -> None:
        super().__init__(keys, values, there)
        self.head = head
        self._n_way, self._pool, self._dim = keys.shape[-3:]

    def numbers_per_query(self, n_places: int) -> int:
        """The attention of each place to each class, or its prototypes."""
        return n_places * self._n_way * max(self._pool, self._dim)

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """Minus the squared distances, averaged over places (Eq. 4)."""
        keys, values, there = kept
        n_query = query.shape[1]
        own = descriptors(query).flatten(1, 2)
        # Eq. 2: one softmax over all places of all images of a class.
        likeness = self.head.keys(own).unsqueeze(1) @ keys.mT / self._dim**0.5
        attention = likeness.masked_fill(~there.unsqueeze(-2), -float("inf")).softmax(-1)
        prototypes = attention @ values  # Eq. 3
        squared = (prototypes - self.head.values(own).unsqueeze(1)).square().sum(-1)
        distances: Tensor = squared.reshape(*squared.shape[:2], n_query, -1).mean(-1).mT
        return -distances


@final
class CTX(Episodic[CTXHead]):
    """Assembles, for every place of a query, the class prototype that answers to it.

    A place of the query attends to all places of a class's support images (Eq. 2, scaled by the
    root of the keys' length); its prototype is the attended mean of their values (Eq. 3), and the
    logit minus the mean squared distance between its value and that prototype (Eq. 4). Keys and
    values have ``dim`` = 128 (section 4). SimCLR episodes and the paper's larger images are left
    out.
    """

    view = "maps"

    def __init__(
        self,
        *,
        dim: int = 128,
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
        self.dim = dim

    def build(self, backbone: Backbone) -> CTXHead:
        """The two projections of the backbone's channels."""
        return CTXHead(map_shape(backbone)[0], self.dim)

    def predictor(self, head: CTXHead, support: Support) -> CTXPredictor:
        """Keys and values of all places of every class."""
        pools, there = class_pools(support.inputs, support.labels, support.n_way)
        return CTXPredictor(head, head.keys(pools), head.values(pools), there)
