"""Reaches into a network between its stages, without knowing what network it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from medbench.api import ContractError


def stages(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that follow one another and have parameters, in their order.

    They are the children of the first module, from the outside in, that has more than one with
    parameters: the four blocks of conv4 and of resnet12; stem, norm and layers of a timm ResNet.
    """
    while True:
        parts = [m for m in network.children() if any(True for _ in m.parameters())]
        if len(parts) != 1:
            return parts or [network]
        network = parts[0]


@contextmanager
def after_stage(stage: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, what `stage` gives is passed through `change` the first time it runs.

    Raises `ContractError` at the end when it did not run, or gave something else than a tensor.
    """
    changed = False

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal changed
        if changed or not isinstance(output, Tensor):
            return None
        changed = True
        return change(output)

    handle = stage.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not changed:
        raise ContractError(
            f"The backbone's stage {type(stage).__name__} gave no tensor to mix. Manifold mixup "
            "needs a network whose parts pass tensors on."
        )
