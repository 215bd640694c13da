"""What a method tunes in a frozen network, as a pure function of the tuned values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, ContractError
from medbench_algorithms.common.batch_statistics import FunctionalBody

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Change(ABC):
    """Some tensors to tune, and the features ``(b, d)`` that the network has with them.

    The network itself is never changed. BatchNorm layers use their running statistics, so that
    each image's features are its own.
    """

    body: FunctionalBody

    @abstractmethod
    def start(self, generator: torch.Generator) -> Values:
        """Fresh tensors, with the values from which tuning starts."""

    @abstractmethod
    def features(self, tuned: Values, images: Tensor) -> Tensor:
        """Features ``(b, d)`` of images ``(b, C, H, W)``, differentiable in `tuned` alone."""

    def frozen(self) -> Values:
        """The network's weights, out of the reach of gradients."""
        return {name: value.detach() for name, value in self.body.parameters().items()}


@final
@dataclass(frozen=True)
class Replaced(Change):
    """Tunes some of the network's own parameters, named in ``names``."""

    names: Sequence[str]

    def start(self, generator: torch.Generator) -> Values:
        """The values the network has."""
        frozen = self.frozen()
        return {name: frozen[name].clone() for name in self.names}

    def features(self, tuned: Values, images: Tensor) -> Tensor:
        """Features with the tuned parameters in the place of the network's."""
        return self.body.given({**self.frozen(), **tuned}, images, {})


@dataclass(frozen=True)
class Added(Change):
    """Tunes something that is added to some of the network's weights."""

    @abstractmethod
    def added(self, tuned: Values, frozen: Values) -> Values:
        """The summand of each weight that gets one, by the weight's name."""

    def weights(self, tuned: Values) -> Values:
        """The network's weights with the summands merged into them."""
        frozen = self.frozen()
        summands = self.added(tuned, frozen)
        return {**frozen, **{name: frozen[name] + extra for name, extra in summands.items()}}

    def features(self, tuned: Values, images: Tensor) -> Tensor:
        """Features with the merged weights."""
        return self.body.given(self.weights(tuned), images, {})


Hook = Callable[[nn.Module, Any, Any], Any]


@dataclass(frozen=True)
class Hooked(Change):
    """Tunes small modules that work on what layers of the network give out."""

    @abstractmethod
    def hooks(self, tuned: Values) -> dict[str, Hook]:
        """Forward hooks by the name of the layer; they live for one call."""

    @abstractmethod
    def own(self, tuned: Values) -> Values:
        """Those of the tuned tensors that replace parameters of the network."""

    def features(self, tuned: Values, images: Tensor) -> Tensor:
        """Features with the hooks in place."""
        modules = dict(self.body.backbone.named_modules())
        handles = [
            modules[name].register_forward_hook(hook) for name, hook in self.hooks(tuned).items()
        ]
        try:
            return self.body.given({**self.frozen(), **self.own(tuned)}, images, {})
        finally:
            for handle in handles:
                handle.remove()


@final
@dataclass(frozen=True)
class Block:
    """Where a vision transformer's block has its layers; ``norm``, before the MLP, may be empty."""

    attention: str
    mlp: str
    norm: str
    width: int


def transformer_blocks(backbone: Backbone, method: str) -> list[Block]:
    """The blocks of a transformer as timm builds them: modules with an ``attn`` and an ``mlp``.

    Raises `ContractError`, naming `method`, where the backbone has none.
    """
    found = []
    for name, module in backbone.named_modules():
        attention, mlp = getattr(module, "attn", None), getattr(module, "mlp", None)
        out = getattr(attention, "proj", None)
        if isinstance(out, nn.Linear) and isinstance(mlp, nn.Module):
            norm = f"{name}.norm2" if isinstance(getattr(module, "norm2", None), nn.Module) else ""
            found.append(Block(f"{name}.attn", f"{name}.mlp", norm, out.out_features))
    if not found:
        raise ContractError(
            f"{method} works inside the attention blocks of a vision transformer, and "
            f"{type(backbone).__name__} has none. Choose such a backbone "
            "(timm:vit_tiny_patch16_224), or for convolutional networks an algorithm like "
            "tsa or norm-tuning."
        )
    return found
