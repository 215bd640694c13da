"""Any backbone with weights of one byte: ``int8:BACKBONE``."""

from __future__ import annotations

import contextlib
from typing import final

from torch import nn

from medbench.api import Backbone, MedbenchError, fold_batchnorm
from medbench_backbones.int8_layers import Int8Layer, compressed
from medbench_backbones.wrapper import Wrapper


@final
class Int8(Wrapper):
    """A network that is trained in floats and tested with weights of one byte.

    What it wraps is trained as it would be alone. Then BatchNorm is folded into the convolutions
    before it, and the weights of convolutions and linear layers become int8 with one step for each
    output channel. With `activations` these layers also take whole numbers, whose steps are each
    image's own: there is nothing to calibrate. All else (norms that cannot be folded, subclasses of
    layers, tables of positions) stays in floats; ``form`` says how much.

    Nothing can be learned through such layers: methods that change weights when they adapt are
    refused, those on features or maps are not. Raises `MedbenchError` for a network without layers
    of these kinds.
    """

    adaptable = False

    def __init__(
        self, *, inner: Backbone, image_size: int, channels: int, activations: bool = True
    ) -> None:
        super().__init__(inner)
        del image_size, channels  # the inner network has been built for them
        self.activations = activations
        if not any(compressed(m, activations=False) for m in inner.modules()):
            raise MedbenchError(
                f"int8: {type(inner).__name__} has no convolution and no linear layer to compress "
                "(subclasses of torch's are left alone). Choose another backbone."
            )

    def deployed(self) -> Backbone:
        """The network in int8."""
        self.inner = self.inner.deployed()
        # What cannot be traced, for whatever reason, keeps its BatchNorm, in floats.
        with contextlib.suppress(Exception):
            fold_batchnorm(self.inner)
        n_before = sum(p.numel() for p in self.inner.parameters())
        made: dict[nn.Module, Int8Layer] = {}
        for name, module in list(self.inner.named_modules(remove_duplicate=False)):
            layer = made.get(module) or compressed(module, activations=self.activations)
            if layer is not None:
                made[module] = layer
                self.inner.set_submodule(name, layer)
        layers = list(made.values())
        share = sum(layer.weight.numel() for layer in layers) / n_before
        how = "weights alone"
        if self.activations:
            n = sum(layer.whole_numbers for layer in layers)
            how = f"whole numbers multiplied in {n}"
        self.form = f"int8: {len(layers)} layers, {100 * share:.1f} % of the weights; {how}"
        return self
