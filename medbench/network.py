"""The base class of backbones; apart from ``medbench.api`` because it needs torch."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from medbench.api import InputSpec


class Backbone(nn.Module):
    """A feature extractor: images ``(b, C, H, W)`` in, features ``(b, n_features)`` out.

    One whose `input` has 3 dimensions takes volumes ``(b, C, D, H, W)``.

    Attributes:
        n_features: the length of a feature vector, d.
        input: the size, channels and normalisation of the images it wants.
        origin: where the weights come from, in words (``random``, ``timm resnet18.a1_in1k``).
    """

    n_features: int
    input: InputSpec
    origin: str = "random"
    reference: str = ""
    """Name and parameters it was built by; the core sets it, and keeps features apart by it."""

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, c, h, w)``, before pooling or flattening.

        Of volumes ``(b, c, d * h, w)``, slice below slice: methods compare places of any number.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``."""
