"""TPN (Liu, Lee, Park, Kim, Yang, Hwang and Yang, "Learning to Propagate Labels", ICLR 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.transductive.graph import distances_among, nearest_only, propagate
from medbench_algorithms.transductive.joint import episodes_at_once

_HIDDEN = 64


@final
class Widths(nn.Module):
    """The graph construction network: one length scale sigma for each example (section 3.2.2)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Positive numbers ``(..., n, 1)`` for features ``(..., n, d)``, near 1/4 at the start."""
        # Softplus makes that 1/4, as the code's fixed sigma: a local graph to learn from. Kept away
        # from zero, by which features are divided.
        found: Tensor = self.layers(features)
        return F.softplus(found - 1.26) + 1e-3


@final
class PropagationPredictor(Predictor):
    """Propagates the support labels to all queries together, over a graph with learned widths."""

    def __init__(self, widths: Widths, support: Support, k: int, alpha: float) -> None:
        self.widths = widths
        self.support = support
        self.k = k
        self.alpha = alpha

    def predict(self, query: Tensor) -> Tensor:
        """What reaches the queries, ``(..., n_query, n_way)``; its softmax is Eq. 5."""
        (*lead, n_query, d), n_support = query.shape, self.support.labels.shape[-1]
        x = self.support.inputs.reshape(-1, n_support, d)
        labels, q = self.support.labels.reshape(-1, n_support), query.reshape(-1, n_query, d)
        at_once = episodes_at_once(q, n_support + n_query)
        scores = []
        for first in range(0, len(q), at_once):
            some = slice(first, first + at_once)
            support = replace(self.support, inputs=x[some], labels=labels[some])
            block = PropagationPredictor(self.widths, support, self.k, self.alpha)
            scores.append(block.propagated(q[some])[..., n_support:, :])
        return torch.cat(scores).reshape(*lead, n_query, self.support.n_way)

    def propagated(self, query: Tensor) -> Tensor:
        """The same for support and query examples, ``(..., n_support + n_query, n_way)`` (Eq. 4).

        Affinities are ``exp(-d / 2)`` with d the mean squared difference of features divided by
        their widths (Eq. 2), an example's to itself included, as in the authors' code; kept is
        what is among the `k` largest of either's row (section 3.2.2).
        """
        features = torch.cat([self.support.inputs, query], dim=-2)
        dtype = next(self.widths.parameters()).dtype
        scaled = features / self.widths(features.to(dtype)).to(features.dtype)
        affinity = (distances_among(scaled) * (-0.5 / features.shape[-1])).exp()
        affinity = nearest_only(affinity, self.k)
        known = F.one_hot(self.support.labels, self.support.n_way).to(affinity.dtype)
        return propagate(affinity, known, self.alpha)


@final
class TPN(Episodic[Widths]):
    """Label propagation whose graph is learned, backbone and all, from source episodes.

    The loss of an episode is the cross-entropy of all its examples, the support set's included
    (Eq. 6). Defaults: ``k`` 20 neighbours, ``alpha`` 0.99 (section 4.2), Adam with rate 1e-3,
    halved every 10,000 episodes.

    The paper's graph construction network is two convolutions and two linear layers on the last
    feature map; here it is three linear layers on features, and its sigmas are kept positive.
    """

    def __init__(
        self,
        *,
        k: int = 20,
        alpha: float = 0.99,
        lr: float = 1e-3,
        lr_halve_every: int = 10_000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.k = k
        self.alpha = alpha

    def build(self, backbone: Backbone) -> Widths:
        """A graph construction network for the backbone's features."""
        return Widths(backbone.n_features)

    def predictor(self, head: Widths, support: Support) -> PropagationPredictor:
        """Keep the support features ``(..., n_support, d)`` until the queries come."""
        return PropagationPredictor(head, support, self.k, self.alpha)

    def loss(self, head: Widths, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """The cross-entropy of support and query examples together (Eq. 6)."""
        scores = self.predictor(head, support).propagated(query)
        return F.cross_entropy(scores, torch.cat([support.labels, query_labels]))
