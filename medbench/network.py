"""The base class of backbones; apart from ``medbench.api`` because it needs torch."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from medbench.api import InputSpec, Source, TrainingRun
from medbench.errors import ContractError


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
    form: str = ""
    """How it computes where that is out of the ordinary, in words for a record."""
    in_place: bool = True
    """Of volumes: whether maps have the volume's places in the volume's order, as masks need."""
    adaptable: bool = True
    """Whether methods may change the weights of the network that is tested."""
    lesson_images: int = 0
    """How many source images `learn` may look at, where the spec says ``learns``."""

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, c, h, w)``, before pooling or flattening.

        Of volumes ``(b, c, d * h, w)``, slice below slice: methods compare places of any number.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``."""

    def innermost(self) -> list[Backbone]:
        """The networks that a wrapper wraps, at the end of all; of one that wraps none itself.

        A wrapper may do what cannot be traced, as counting slices; what it wraps are whole
        networks.
        """
        own = [module for module in self.modules() if isinstance(module, Backbone)]
        return [m for m in own if not any(isinstance(c, Backbone) for c in list(m.modules())[1:])]

    def learn(self, source: Source, run: TrainingRun) -> None:
        """Learn from source images, in `run`'s steps, what no method teaches a network.

        Called at the end of a training, when this network has its meta-trained weights; what it has
        learned is part of its `state_dict`. Needed only where the spec says ``learns``.
        """
        raise ContractError(
            f"{type(self).__name__} has lesson_images, and no method learn: write one, or leave "
            "lesson_images 0."
        )

    def deployed(self) -> Backbone:
        """The network that is tested, made of this one when all its weights are in place.

        Most are tested as they were trained. One that is compressed overrides this: it is called
        once in a cell, after learned weights were loaded and before anything is measured, and may
        change this network, or return another with the same `input` and `n_features`. A wrapper
        deploys what it wraps.
        """
        for parts in (self, *(c for c in self.children() if isinstance(c, nn.ModuleList))):
            for name, part in list(parts.named_children()):
                if isinstance(part, Backbone):
                    parts.set_submodule(name, part.deployed())
        return self
