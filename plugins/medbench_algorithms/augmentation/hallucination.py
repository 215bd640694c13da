"""Feature hallucination (Hariharan and Girshick, "Low-shot Visual Recognition", ICCV 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Support
from medbench_algorithms.augmentation.analogies import AnalogyGenerator
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.common.logistic import solve


class SourceCentroids(NamedTuple):
    """Centroids ``(m, d)``, class after class; where a class begins, and how many it has."""

    values: Tensor
    starts: Tensor
    counts: Tensor


@final
class FeatureHallucination(Algorithm):
    """Fills each class up with features that vary as examples of source classes do.

    "Low-shot Visual Recognition by Shrinking and Hallucinating Features", section 4: a class with
    fewer than ``n_generated`` examples (5 in the authors' code) is filled up to that number. Each
    new feature is what the generator makes of a random example of the class and two random
    centroids of a random source class. A linear classifier is then fitted to all of them.

    The authors' classifier minimises the mean cross-entropy with weight decay 0.001 by SGD, over
    source and new classes; here that objective is solved to convergence over the classes of the
    episode, with free intercepts. Their other proposal, a loss that shrinks features in
    pretraining (SGM), is left out: the backbone is `Supervised`'s. It and the generator come from
    the `AnalogyTraining` trainer.
    """

    def __init__(self, *, n_generated: int = 5, weight_decay: float = 0.001) -> None:
        self.n_generated = n_generated
        self.weight_decay = weight_decay
        self._generator: AnalogyGenerator | None = None
        self._source: SourceCentroids | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take generator and centroids. Raises `ContractError` when there are none."""
        if "centroids" not in learned or "generator.rectified" not in learned:
            raise ContractError(
                "feature-hallucination needs the generator and the centroids that its training "
                "learns. Meta-train it first."
            )
        values = learned["centroids"]
        own = {k[10:]: v for k, v in learned.items() if k.startswith("generator.")}
        rectified = bool(own.pop("rectified"))
        hidden = own["layers.0.weight"].shape[0]
        network = AnalogyGenerator(values.shape[1], hidden=hidden, rectified=rectified)
        network.load_state_dict(own)
        network.to(values.device).eval().requires_grad_(requires_grad=False)
        self._generator = network
        _, counts = torch.unique_consecutive(learned["centroid_classes"], return_counts=True)
        self._source = SourceCentroids(values, counts.cumsum(0) - counts, counts)

    def adapt(self, support: Support) -> LinearPredictor:
        """Fit one classifier an episode on support features ``(..., n_support, d)``."""
        lead, (n, d) = support.inputs.shape[:-2], support.inputs.shape[-2:]
        features, labels = support.inputs.reshape(-1, n, d), support.labels.reshape(-1, n)
        made, is_used = self.hallucinate(support, features, labels)
        way, e = support.n_way, len(features)
        x = torch.cat([features, made.flatten(1, 2)], 1).double()
        classes = torch.arange(way, device=labels.device)
        made_labels = classes.repeat_interleave(self.n_generated).expand(e, -1)
        targets = one_hot(torch.cat([labels, made_labels], 1), way)
        weights = torch.cat([torch.ones_like(labels), is_used.flatten(1)], 1).double()
        # The mean over the examples there are.
        weights = weights / weights.sum(-1, keepdim=True)
        centre = weights.unsqueeze(-2) @ x
        x = x - centre
        dual, bias = solve(x @ x.mT, targets, 1 / self.weight_decay, weights)
        return LinearPredictor(
            (dual.mT @ x).reshape(*lead, way, d),
            bias.reshape(*lead, way),
            centre.reshape(*lead, 1, d),
        )

    def hallucinate(
        self, support: Support, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Made features ``(e, n_way, n_generated, d)``, and which of them are called for."""
        if self._generator is None or self._source is None:
            raise ContractError("FeatureHallucination.adapt was called before prepare.")
        seeds, origins, ends = self.choose(support, labels)
        rows = torch.arange(len(features), device=features.device)[:, None, None]
        values = self._source.values
        with torch.no_grad():
            made = self._generator(
                features[rows, seeds].to(values.dtype), values[origins], values[ends]
            )
        shots = class_masks(labels, support.n_way).sum(-1, keepdim=True)
        places = torch.arange(self.n_generated, device=labels.device)
        return made, places < self.n_generated - shots

    def choose(self, support: Support, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each feature is made of: indices ``(e, n_way, n_generated)``.

        They are of an example of the class and of two centroids of one source class, which may
        coincide, as in the authors' code.
        """
        assert self._source is not None
        shape = (support.n_way, self.n_generated, 4)
        drawn = [
            torch.rand(shape, generator=support.generator(e), dtype=torch.float64)
            for e in range(len(support.seeds))
        ]
        u = torch.stack(drawn).to(labels.device).unbind(-1)
        # Class after class: an example is where its class begins, and so far on.
        order = labels.argsort(dim=-1, stable=True)
        shots = class_masks(labels, support.n_way).sum(-1)
        begins = (shots.cumsum(-1) - shots).unsqueeze(-1)
        place = begins + (u[0] * shots.unsqueeze(-1)).long()
        seeds = order.gather(-1, place.flatten(1)).reshape(place.shape)
        one = (u[1] * len(self._source.counts)).long()
        begin, count = self._source.starts[one], self._source.counts[one]
        return seeds, begin + (u[2] * count).long(), begin + (u[3] * count).long()
