"""Tensors that belong to the weights of a network, each under the name of its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn


@final
class ByName(nn.Module):
    """Named tensors as one module, so that checkpoints and devices take them along.

    They are parameters, or buffers where nothing learns them by gradients.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, learned: bool = True) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if learned:
                self.register_parameter(_key(name), nn.Parameter(tensor))
            else:
                self.register_buffer(_key(name), tensor)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor itself, not a copy."""
        found: Tensor = getattr(self, _key(name))
        return found


def _key(name: str) -> str:
    # torch allows no dots in the names of a module's own tensors.
    return name.replace(".", "-")
