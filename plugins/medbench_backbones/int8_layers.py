"""Convolutions and linear layers with weights of eight bits, and activations of seven.

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, section 2.1, with one scale for each output channel (Krishnamoorthi,
arXiv 1806.08342, section 2.2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Unavailable

# Weights are -127...127. Activations are 0...127: processors without VNNI add the products of two
# pairs in 16 bits, and 2 * 127 * 127 is the most that these hold.
LEVELS: Final = 127
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE: Final[dict[int, Callable[..., Tensor]]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(o, ...)`` as int8 in -127...127, and the step ``(o,)`` of each output channel."""
    rows = weight.flatten(1)
    step = rows.abs().amax(1) / LEVELS
    step = step.masked_fill(step == 0, 1.0)
    return (rows / step[:, None]).round().view_as(weight).to(torch.int8), step


def quantised_input(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Activations as levels 0...127, with the step and the level of zero of each group.

    Values along `dims` share a step, ``(max - min) / 127`` with zero always within; where none is
    negative the level of zero is 0. ``x`` is about ``step * (levels - zero)``.
    """
    low, high = x.amin(dims, keepdim=True).clamp_max_(0), x.amax(dims, keepdim=True).clamp_min_(0)
    step = (high - low) / LEVELS
    step = step.masked_fill_(step == 0, 1.0)
    zero = (-low / step).round_()
    levels = torch.addcdiv(zero, x, step) if bool(zero.any()) else x / step
    return levels.round_().clamp_(0, LEVELS), step, zero


class Int8Layer(nn.Module):
    """What convolutions and linear layers share: weights in bytes, and a bias in floats.

    With `activations` the layer multiplies whole numbers. Every image (of a linear layer: every
    row) has its own step, so that it is calibrated on nothing and does not depend on its company.
    """

    weight: Tensor
    step: Tensor

    def __init__(self, layer: nn.Module, *, activations: bool) -> None:
        super().__init__()
        assert isinstance(layer.weight, Tensor)
        weight, step = quantised_weight(layer.weight.detach())
        # A parameter, so that it is counted as one; bytes have no gradients.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("step", step)
        bias = layer.bias
        self.bias = (
            nn.Parameter(bias.detach().clone(), requires_grad=False)
            if isinstance(bias, Tensor)
            else None
        )
        self.activations = activations
        self._packed: tuple[Tensor, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What oneDNN packed can be neither copied nor sent, and is made again.
        return self.__dict__ | {"_packed": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._packed = None
        found: nn.Module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return found

    @property
    def whole_numbers(self) -> bool:
        """Whether products are of whole numbers here, and not of floats that stand for them."""
        return self.activations and self.weight.device.type == "cpu" and self.has_kernel()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output in float32. Raises `Unavailable` where it would need a gradient."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise Unavailable(
                "int8 layers have no gradient, and a method differentiates through them. Methods "
                "on features or maps can use an int8 backbone; for this one leave 'int8:' out."
            )
        bias = x.new_zeros(()) if self.bias is None else self.by_channel(self.bias)
        if not self.activations:
            weight = self.weight.to(x.dtype)
            return torch.addcmul(bias, self.product(x, weight), self.by_channel(self.step))
        levels, step, zero = quantised_input(x, self.shared_dims(x))
        if not self.whole_numbers:
            # The same whole numbers in floats: sums are exact up to 2^24, and to rounding beyond.
            sums = self.product(levels - zero, self.weight.to(x.dtype))
            return torch.addcmul(bias, sums * self.by_channel(self.step), step)
        if bool(zero.any()):
            of_one = self.step * self.weight.flatten(1).sum(1, dtype=torch.float32)
            bias = bias - step * zero * self.by_channel(of_one)
            return torch.addcmul(
                bias, self.multiplied(self.padded(levels, zero), padded=True), step
            )
        return torch.addcmul(bias, self.multiplied(levels, padded=False), step)

    @abstractmethod
    def by_channel(self, values: Tensor) -> Tensor:
        """One value for each output channel, as it is multiplied with an output."""

    @abstractmethod
    def shared_dims(self, x: Tensor) -> tuple[int, ...]:
        """The dimensions of `x` whose values share a step."""

    @abstractmethod
    def has_kernel(self) -> bool:
        """Whether this machine multiplies whole numbers in such layers."""

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer in floats, without bias."""

    @abstractmethod
    def padded(self, levels: Tensor, zero: Tensor) -> Tensor:
        """`levels` with the padding that the layer would add, whose level is `zero`."""

    @abstractmethod
    def multiplied(self, levels: Tensor, *, padded: bool) -> Tensor:
        """The layer in whole numbers times the weights' steps, without bias."""


@final
class Int8Convolution(Int8Layer):
    """A convolution of one, two or three dimensions."""

    def __init__(self, layer: Convolution, *, activations: bool) -> None:
        super().__init__(layer, activations=activations)
        assert not isinstance(layer.padding, str)
        self.stride, self.padding = list(layer.stride), list(layer.padding)
        self.dilation, self.groups = list(layer.dilation), layer.groups

    def by_channel(self, values: Tensor) -> Tensor:
        """See `Int8Layer.by_channel`."""
        return values.view(-1, *(1,) * (self.weight.ndim - 2))

    def shared_dims(self, x: Tensor) -> tuple[int, ...]:
        """All but the first: an image has one step."""
        return tuple(range(1, x.ndim))

    def has_kernel(self) -> bool:
        """Whether oneDNN's convolution is here, and right."""
        return _convolves(self.weight.ndim - 2)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Int8Layer.product`."""
        shape = (self.stride, self.padding, self.dilation, self.groups)
        return _CONVOLVE[weight.ndim](x, weight, None, *shape)

    def padded(self, levels: Tensor, zero: Tensor) -> Tensor:
        """See `Int8Layer.padded`."""
        if not any(self.padding):
            return levels
        sides = [side for width in reversed(self.padding) for side in (width, width)]
        return F.pad(levels - zero, sides) + zero

    def multiplied(self, levels: Tensor, *, padded: bool) -> Tensor:
        """See `Int8Layer.multiplied`."""
        padding = [0] * len(self.padding) if padded else self.padding
        shape = (self.stride, padding, self.dilation, self.groups)
        if self._packed is None:
            self._packed = (_packed_convolution(self.weight, self.step, *shape),)
        return _convolved(levels.to(torch.uint8), self._packed[0], self.step, *shape)


@final
class Int8Linear(Int8Layer):
    """A linear layer on the last dimension; every row has its own step."""

    def by_channel(self, values: Tensor) -> Tensor:
        """See `Int8Layer.by_channel`."""
        return values

    def shared_dims(self, x: Tensor) -> tuple[int, ...]:
        """The last."""
        return (x.ndim - 1,)

    def has_kernel(self) -> bool:
        """Whether oneDNN's matrix product is here, and right."""
        return _multiplies()

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Int8Layer.product`."""
        return F.linear(x, weight)

    def padded(self, levels: Tensor, zero: Tensor) -> Tensor:
        """There is no padding."""
        del zero
        return levels

    def multiplied(self, levels: Tensor, *, padded: bool) -> Tensor:
        """See `Int8Layer.multiplied`."""
        del padded
        if self._packed is None:
            self._packed = (torch.ops.onednn.qlinear_prepack(self.weight, None),)
        rows = levels.to(torch.uint8).flatten(0, -2)
        sums = _multiplied(rows, self._packed[0], self.step)
        return sums.view(*levels.shape[:-1], -1)


def compressed(layer: nn.Module, *, activations: bool) -> Int8Layer | None:
    """A layer in int8, or None for one that is of no such kind and stays as it is.

    Subclasses stay too: they may compute something else with their weights.
    """
    if type(layer) is nn.Linear:
        return Int8Linear(layer, activations=activations)
    if type(layer) in _CONVOLUTIONS:
        assert isinstance(layer, Convolution)
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            return Int8Convolution(layer, activations=activations)
    return None


# --- oneDNN's kernels ----------------------------------------------------------------------------

# torch's own quantised modules and tensors are deprecated for torchao, whose networks of
# convolutions have to be exported and compiled. Both call these kernels.


def _packed_convolution(weight: Tensor, step: Tensor, *shape: Any) -> Tensor:
    found: Tensor = torch.ops.onednn.qconv_prepack(weight, step, 1.0, 0, *shape, None)
    return found


def _convolved(levels: Tensor, packed: Tensor, step: Tensor, *shape: Any) -> Tensor:
    zeros = torch.zeros(len(step), dtype=torch.int32)
    operator = getattr(torch.ops.onednn, _CONVOLUTION[levels.ndim - 2])
    found: Tensor = operator(
        levels, 1.0, 0, packed, step, zeros, None, *shape, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


_CONVOLUTION: Final = {1: "qconv1d_pointwise", 2: "qconv2d_pointwise", 3: "qconv3d_pointwise"}


def _multiplied(levels: Tensor, packed: Tensor, step: Tensor) -> Tensor:
    zeros = torch.zeros(len(step), dtype=torch.int32)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, 0, packed, step, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


@cache
def _convolves(n_dims: int) -> bool:
    """Whether the kernel is here and its sums are right, at the largest products there are."""
    weight = torch.full((8, 16, *(3,) * n_dims), LEVELS, dtype=torch.int8)
    weight[::2, ::3] = -LEVELS
    levels = torch.full((1, 16, *(5,) * n_dims), LEVELS, dtype=torch.uint8)
    levels[:, 1::4] = 3
    shape = ([1] * n_dims, [1] * n_dims, [1] * n_dims, 1)
    step = torch.ones(8)
    try:
        packed = _packed_convolution(weight, step, *shape)
        found = _convolved(levels, packed, step, *shape)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    wanted = _CONVOLVE[weight.ndim](levels.double(), weight.double(), None, *shape)
    return torch.equal(found.double(), wanted)


@cache
def _multiplies() -> bool:
    weight = torch.full((8, 96), LEVELS, dtype=torch.int8)
    weight[::2, ::3] = -LEVELS
    levels = torch.full((4, 96), LEVELS, dtype=torch.uint8)
    levels[:, 1::4] = 3
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        found = _multiplied(levels, packed, torch.ones(8))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(found.double(), levels.double() @ weight.double().T)
