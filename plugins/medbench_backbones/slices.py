"""Networks for images on volumes, slice by slice: ``slices:BACKBONE``."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Backbone

# Slices in one pass of the inner network, where nothing but memory depends on it.
_AT_ONCE = 512


@final
class Slices(Backbone):
    """One network for images on every slice; the features of a volume are their mean or maximum.

    With the order of the slices goes what only their order shows, which a network for volumes can
    see (Su et al., ICCV 2015, pool views of a shape in this way). ``axis`` counts depth, height,
    width from 0; with ``planes`` 3 all three are sliced, by one network, and features stand side by
    side. Volumes are cubes of the protocol's size, and slices are resized to what the inner
    network wants.
    """

    def __init__(
        self,
        *,
        inner: Backbone,
        image_size: int,
        channels: int,
        axis: int = 0,
        planes: int = 1,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        del channels  # the inner network has been built for them
        self.inner = inner
        self.axes = (0, 1, 2) if planes == 3 else (axis,)
        self.pooling = pooling
        self.n_features = inner.n_features * len(self.axes)
        self.input = replace(inner.input, size=image_size, n_dims=3)
        self.origin = inner.origin
        self.in_place = self.axes == (0,)

    def feature_map(self, images: Tensor) -> Tensor:
        """The inner maps of all slices of ``(b, C, D, H, W)``, one below the other.

        ``(b, c, n_slices * h, w)``, the slices of all planes.
        """
        every = torch.cat([self._slices(images, axis) for axis in self.axes], dim=1)
        maps = self._in_parts(every.flatten(0, 1), features=False)
        # (b, slices, c, h, w) to (b, c, slices * h, w).
        by_volume = maps.reshape(*every.shape[:2], *maps.shape[1:])
        return by_volume.transpose(1, 2).flatten(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``, pooled over the slices of each plane."""
        every = torch.cat([self._slices(images, axis) for axis in self.axes], dim=1)
        features = self._in_parts(every.flatten(0, 1), features=True)
        by_plane = features.view(len(images), len(self.axes), -1, self.inner.n_features)
        pooled = by_plane.amax(2) if self.pooling == "max" else by_plane.mean(2)
        return pooled.flatten(1)

    def _slices(self, images: Tensor, axis: int) -> Tensor:
        """``(b, slices, C, h, w)`` along one axis."""
        return images.movedim(2 + axis, 1)

    def _in_parts(self, slices: Tensor, *, features: bool) -> Tensor:
        # In training mode BatchNorm's statistics are those of all slices together.
        parts = [slices] if self.training else list(torch.split(slices, _AT_ONCE))
        run = self.inner if features else self.inner.feature_map
        return torch.cat([run(self._resized(part)) for part in parts])

    def _resized(self, slices: Tensor) -> Tensor:
        """Slices as the inner network wants them; they are normalised already."""
        wants = self.inner.input
        if slices.shape[-1] != wants.size:
            smooth = wants.interpolation != "nearest"
            slices = F.interpolate(
                slices,
                size=(wants.size, wants.size),
                mode=wants.interpolation,
                antialias=smooth,
                align_corners=False if smooth else None,
            )
            # Bicubic overshoots what pixels of 0...1 become.
            mean, std = (
                torch.tensor(v, dtype=slices.dtype, device=slices.device).view(-1, 1, 1)
                for v in (wants.mean, wants.std)
            )
            slices = slices.clamp(-mean / std, (1 - mean) / std)
        return slices.contiguous(memory_format=torch.channels_last)
