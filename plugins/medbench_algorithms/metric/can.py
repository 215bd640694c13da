"""Cross Attention Network (Hou et al., NeurIPS 2019), the inductive form."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric.places import MapPredictor, class_maps, descriptors, map_shape


@final
class Fusion(nn.Module):
    """The fusion layer: from correlations to attention over places (Eqs. 3 and 4).

    A meta-learner of two linear layers, with BatchNorm and ReLU between, makes the kernel that
    weighs a place's correlations.
    """

    def __init__(self, n_places: int, reduction: int, temperature: float) -> None:
        super().__init__()
        hidden = max(1, n_places // reduction)
        self.squeeze = nn.Linear(n_places, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Linear(hidden, n_places)
        for layer in (self.squeeze, self.expand):
            nn.init.normal_(layer.weight, std=(2 / layer.out_features) ** 0.5)
        self.temperature = temperature

    def forward(self, correlations: Tensor) -> Tensor:
        """One plus the attention ``(..., p)`` over the rows of correlations ``(..., p, p)``."""
        pooled = correlations.mean(-2)
        flat = pooled.flatten(0, -2).to(self.squeeze.weight.dtype)
        kernel = self.expand(F.relu(self.norm(self.squeeze(flat))))
        kernel = kernel.view(pooled.shape).to(correlations.dtype)
        fused = (correlations @ kernel.unsqueeze(-1)).squeeze(-1) / kernel.shape[-1]
        # Residual attention: no place is left out.
        attention: Tensor = (fused / self.temperature).softmax(-1)
        return 1 + attention


def cross_attention(fusion: Fusion, query: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair of query and class, attention on the query's places, and the class's feature.

    Of descriptors ``(e, q, p, c)`` and ``(e, n_way, p, c)``: attention ``(e, q, n_way, p)``, and
    the attended class maps averaged over places, ``(e, q, n_way, c)``.
    """
    e, n_query, p, _ = query.shape
    a, b = F.normalize(query, dim=-1), F.normalize(classes, dim=-1)
    # The correlation layer (Eq. 1): cosines between all places of class and query.
    cosines = a.flatten(1, 2) @ b.flatten(1, 2).mT
    of_query = cosines.reshape(e, n_query, p, -1, p).transpose(2, 3)
    on_class, on_query = fusion(of_query.mT), fusion(of_query)
    return on_query, torch.einsum("eqwp,ewpc->eqwc", on_class, classes) / p


@final
class CANPredictor(MapPredictor):
    """Scores classes by the cosine of the attended, averaged maps (Eq. 9)."""

    def __init__(self, fusion: Fusion, classes: Tensor, scale: float) -> None:
        super().__init__(classes)
        self.fusion = fusion
        self.scale = scale

    def numbers_per_query(self, n_places: int) -> int:
        """Two correlation maps, and the features of each pair, for each class."""
        n_way: int = self.kept[0].shape[-4]
        c: int = self.kept[0].shape[-3]
        return n_way * (2 * n_places**2 + 2 * c)

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """The cosines times ``scale``."""
        own = descriptors(query)
        attention, of_class = cross_attention(self.fusion, own, descriptors(kept[0]))
        of_query = torch.einsum("eqwp,eqpc->eqwc", attention, own)
        return self.scale * F.cosine_similarity(of_query, of_class, dim=-1)


@final
class CAN(Episodic[Fusion]):
    """Lets query and class point out to each other the places that matter, then compares.

    A class is the mean of its maps. Correlations between its places and the query's become
    attention on both (section 3.2: reduction 6, softmax temperature 0.025, residual); logits are
    cosines of the attended maps' means, times ``scale`` (7 in the authors' code). Training is the
    nearest-neighbour loss: every place of a query is to be classified (section 3.3, Eq. 7).

    The paper's second loss, global classification of the attended queries, is left out, as
    tasks carry no source classes; ``pretrain_share`` of the budget goes to that instead, before
    the episodes. The paper's transductive step is not part of this.
    """

    view = "maps"

    def __init__(
        self,
        *,
        reduction: int = 6,
        attention_temperature: float = 0.025,
        scale: float = 7.0,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.5,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.reduction = reduction
        self.attention_temperature = attention_temperature
        self.scale = scale

    def build(self, backbone: Backbone) -> Fusion:
        """The fusion layer for maps of the backbone's size."""
        _, h, w = map_shape(backbone)
        return Fusion(h * w, self.reduction, self.attention_temperature)

    def predictor(self, head: Fusion, support: Support) -> CANPredictor:
        """The mean map of every class."""
        means = class_maps(support.inputs, support.labels, support.n_way)
        return CANPredictor(head, means, self.scale)

    def loss(self, head: Fusion, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """Cross-entropy of every place of every query (Eq. 7)."""
        means = class_maps(support.inputs, support.labels, support.n_way)
        own = descriptors(query).unsqueeze(0)
        _, of_class = cross_attention(head, own, descriptors(means).unsqueeze(0))
        # Attention scales a place's feature and leaves its cosines alone.
        cosines = F.normalize(own, dim=-1) @ F.normalize(of_class, dim=-1).mT
        by_place = query_labels.unsqueeze(-1).expand(cosines.shape[1:3])
        return F.cross_entropy(self.scale * cosines[0].flatten(0, 1), by_place.flatten())
