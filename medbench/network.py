"""The base class of backbones; apart from ``medbench.api`` because it needs torch."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from medbench.api import InputSpec


class Backbone(nn.Module):
    """A feature extractor: images ``(b, C, H, W)`` in, features ``(b, n_features)`` out.

    Attributes:
        n_features: the length of a feature vector, d.
        input: the size, channels and normalisation of the images it wants.
        origin: where the weights come from, in words (``random``, ``timm resnet18.a1_in1k``).
    """

    n_features: int
    input: InputSpec
    origin: str = "random"

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, c, h, w)``, before pooling or flattening."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``."""
