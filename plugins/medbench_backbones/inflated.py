"""Convolutional networks for images made into networks for volumes: ``inflated:timm:MODEL``.

Carreira and Zisserman, Quo Vadis, Action Recognition? CVPR 2017, section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, MedbenchError

_TOLERANCE = 1e-4


@final
class Inflated(Backbone):
    """A convolutional network whose square kernels have become cubes.

    A kernel is repeated along depth and divided by its depth, so a volume of equal slices has the
    features of the slice, but near the first and last slices, where convolutions meet zeros
    (section 3.1: "boring" videos). Strides and poolings are the same in depth as in the plane.

    Layers are inflated by their kind, and functions between layers cannot be seen; so the result
    is held against the network on a volume of equal slices, with borders repeated, and refused with
    a `MedbenchError` where any layer differs. That leaves networks out that weigh channels by means
    over an image, normalise over its places or attend to them.
    """

    def __init__(
        self,
        *,
        inner: Backbone,
        image_size: int,
        channels: int,
        volume_size: int | None = None,
    ) -> None:
        super().__init__()
        del channels  # the inner network has been built for them
        self.inner = _inflated(inner, _convolution)
        _check(inner, volume_size or image_size)
        self.n_features = inner.n_features
        self.input = replace(inner.input, size=volume_size or image_size, n_dims=3)
        self.inner.input = self.input
        self.origin = inner.origin
        if inner.origin != "random":
            self.origin = f"{inner.origin}, inflated"

    def feature_map(self, images: Tensor) -> Tensor:
        """The last map of volumes ``(b, C, D, H, W)`` as ``(b, c, d * h, w)``."""
        return self.inner.feature_map(images)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``, pooled as the network pools them, over depth too."""
        out: Tensor = self.inner(images)
        return out


Convolve = Callable[[nn.Conv2d], nn.Conv3d]


def _inflated(network: Backbone, convolve: Convolve) -> Backbone:
    """A copy of `network` for volumes. Raises `MedbenchError` for layers that have no like."""
    made = copy.deepcopy(network)
    done: list[str] = []
    for name, module in list(made.named_modules()):
        if not name or any(name.startswith(f"{above}.") for above in done):
            continue
        found: nn.Module | None = None
        if type(module).__name__ == "SelectAdaptivePool2d":  # timm's, with layers inside
            found = _pooling(name, module)
        elif type(module).__name__ == "BatchNormAct2d":
            found = nn.Sequential(_norm(module), *module.children())
        elif not list(module.children()):
            found = _layer(name, module, convolve)
        if found is not None:
            made.set_submodule(name, found)
            done.append(name)
    return made


def _layer(name: str, module: nn.Module, convolve: Convolve) -> nn.Module:
    """What stands for a layer without layers inside, in a network for volumes."""
    kind = type(module)
    if isinstance(module, nn.Conv2d):
        if kind is not nn.Conv2d or module.padding_mode != "zeros":
            raise _Refused(name, module)
        return convolve(module)
    if kind is nn.BatchNorm2d:
        return _norm(module)
    if isinstance(module, nn.MaxPool2d) and kind is nn.MaxPool2d:
        return nn.MaxPool3d(
            _cube(module.kernel_size),
            _cube(module.stride),
            _cube(module.padding),
            _cube(module.dilation),
            ceil_mode=module.ceil_mode,
        )
    if isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
        return nn.AvgPool3d(
            _cube(module.kernel_size),
            _cube(module.stride),
            _cube(module.padding),
            module.ceil_mode,
            module.count_include_pad,
            module.divisor_override,
        )
    if kind.__name__.endswith("2d"):
        raise _Refused(name, module)
    return module


class _Refused(MedbenchError):
    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(
            f"inflated: layer {name} is a {type(module).__name__}, which has no like for volumes "
            "here. Choose a network of plain convolutions, BatchNorm and pooling, such as "
            "inflated:timm:resnet18, or use slices:BACKBONE."
        )


def _cube(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, height, width


def _convolution(flat: nn.Conv2d, kind: type[nn.Conv3d] = nn.Conv3d) -> nn.Conv3d:
    """A 3-D convolution whose kernels are the 2-D ones, repeated and divided."""
    assert not isinstance(flat.padding, str)
    depth = flat.kernel_size[0]
    found = kind(
        flat.in_channels,
        flat.out_channels,
        _cube(flat.kernel_size),
        _cube(flat.stride),
        _cube(flat.padding),
        _cube(flat.dilation),
        flat.groups,
        bias=flat.bias is not None,
    )
    with torch.no_grad():
        found.weight.copy_(flat.weight.unsqueeze(2).expand_as(found.weight) / depth)
        if flat.bias is not None and found.bias is not None:
            found.bias.copy_(flat.bias)
    return found


def _norm(flat: nn.Module) -> nn.BatchNorm3d:
    assert isinstance(flat, nn.BatchNorm2d)
    found = nn.BatchNorm3d(
        flat.num_features, flat.eps, flat.momentum, flat.affine, flat.track_running_stats
    )
    found.load_state_dict({k: v for k, v in flat.state_dict().items() if k in found.state_dict()})
    return found


def _pooling(name: str, module: nn.Module) -> nn.Module:
    kinds = {"avg": "mean", "fast": "mean", "max": "amax", "fastavg": "mean", "fastmax": "amax"}
    kind = kinds.get(str(getattr(module, "pool_type", "")))
    if kind is None:
        raise _Refused(name, module)
    return _PoolAll(kind)


@final
class _PoolAll(nn.Module):
    """Mean or maximum over all places of a volume."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c)`` of ``(b, c, d, h, w)``."""
        return x.mean((2, 3, 4)) if self.kind == "mean" else x.amax((2, 3, 4))


# --- the check -----------------------------------------------------------------------------------


class _Repeating(nn.Conv3d):
    """A convolution that repeats the first and last slice instead of meeting zeros."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        depth, *plane = self.padding
        x = torch.cat([x[:, :, :1]] * depth + [x] + [x[:, :, -1:]] * depth, dim=2)
        return F.conv3d(
            x, self.weight, self.bias, self.stride, (0, *plane), self.dilation, self.groups
        )


def _check(network: Backbone, size: int) -> None:
    """Hold the inflated network against the flat one. Raises `MedbenchError` where they differ.

    Layer by layer, as what a pooling over the wrong places does may be too little to be seen in the
    features of a network with random weights.
    """
    repeating = _inflated(network, lambda flat: _convolution(flat, _Repeating))
    channels = network.input.channels
    images = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    volumes = images.unsqueeze(2).expand(-1, -1, size, -1, -1)
    wanted = _outputs(copy.deepcopy(network).eval(), images)
    try:
        found = _outputs(repeating.eval(), volumes)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise _differs(network, f"fails on a volume: {str(error).splitlines()[0]}") from error
    for name, flat in wanted.items():
        if name not in found:
            continue
        deep = found[name]
        if flat.ndim == 4:
            flat = flat.unsqueeze(2)
        where = f"gives, in {name or 'the whole'}, on a volume of equal slices"
        fits = flat.shape[:2] == deep.shape[:2] and flat.shape[3:] == deep.shape[3:]
        if flat.ndim != deep.ndim or not fits:
            raise _differs(network, f"{where}, {tuple(deep.shape)} for {tuple(flat.shape)}")
        gap = float((deep - flat).abs().max() / flat.abs().max().clamp_min(1e-6))
        if not gap <= _TOLERANCE:
            raise _differs(network, f"{where} other values (by {gap:.2g} of the largest)")


def _outputs(network: Backbone, images: Tensor) -> dict[str, Tensor]:
    """What the network and each layer without layers inside gives for `images`, by name."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            del module, given
            if isinstance(output, Tensor):
                # Some layers change their input in place.
                found[name] = output.clone()

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in network.named_modules()
        if not name or not list(module.children())
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _differs(network: Backbone, what: str) -> MedbenchError:
    name = getattr(network, "source", type(network).__name__)
    return MedbenchError(
        f"inflated: {name} cannot be inflated: it {what}. Choose a network of plain convolutions, "
        "BatchNorm and pooling, such as inflated:timm:resnet18, or use slices:BACKBONE."
    )
