"""Augmented copies of the support images, as in the evaluation of Tian et al., ECCV 2020."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Support
from medbench_algorithms.augmentation.of_images import (
    Head,
    OfImages,
    embed,
    soft_centroids,
    soft_logistic,
)
from medbench_algorithms.augmentation.safe_transforms import SafeTransforms
from medbench_algorithms.common.linear import one_hot


@final
class SupportAugmentation(Algorithm):
    """Fits a head to the support images and to randomly changed copies of each.

    The code of Tian et al. ("Rethinking Few-Shot Image Classification") shows every support image
    five times more under the transforms of training, and fits scikit-learn's logistic regression
    (C = 1) to unit features of all; ``head: prototypes`` takes their class means instead. The
    transforms here are such as keep a medical finding (`SafeTransforms`), not the paper's crops,
    flips and colours. Queries are not changed. The backbone stays frozen; it comes from the shared
    `Supervised` trainer.
    """

    def __init__(
        self,
        *,
        n_augmented: int = 5,
        head: Head = "logistic",
        C: float = 1.0,
        rotation: float = 10.0,
        shift: float = 0.05,
        zoom: float = 0.1,
        brightness: float = 0.1,
        contrast: float = 0.1,
        flips: bool = False,
    ) -> None:
        self.n_augmented = n_augmented
        self.head: Head = head
        self.C = C
        self.transforms = SafeTransforms(
            rotation=rotation,
            shift=shift,
            zoom=zoom,
            brightness=brightness,
            contrast=contrast,
            flips=flips,
        )
        self._backbone: Backbone | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the frozen backbone."""
        self._backbone = backbone

    def adapt(self, support: Support) -> OfImages:
        """Fit a head on images ``(n_support, C, s, s)`` and their changed copies."""
        if self._backbone is None:
            raise ContractError("SupportAugmentation.adapt was called before prepare.")
        images = self.augmented(support, self._backbone)
        features = embed(self._backbone, images)
        targets = one_hot(support.labels, support.n_way).repeat(1 + self.n_augmented, 1)
        if self.head == "prototypes":
            return OfImages(self._backbone, soft_centroids(features, targets))
        return OfImages(self._backbone, soft_logistic(features, targets, self.C))

    def augmented(self, support: Support, backbone: Backbone) -> Tensor:
        """The support images, then all of them changed, ``n_augmented`` times."""
        copies = support.inputs.repeat(self.n_augmented, *(1,) * (support.inputs.ndim - 1))
        drawn = self.transforms.draw(len(copies), support.generator())
        return torch.cat([support.inputs, self.transforms.apply(copies, drawn, backbone.input)])
