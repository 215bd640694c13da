"""Backbones that each break one promise, and keep all others."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import torch
from torch import nn

from medbench.api import Backbone, InputSpec, Unavailable


class Tiny(Backbone):
    """Right in every way; the others change one thing."""

    def __init__(self, *, image_size: int, channels: int, pretrained: bool = False) -> None:
        super().__init__()
        if pretrained:
            raise Unavailable("There are no pretrained weights.")
        self.net = nn.Sequential(
            self.first(channels), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(8)
        )
        self.n_features = 4 * (image_size // 8) ** 2
        self.input = InputSpec(
            size=image_size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
        )

    def first(self, channels):
        return nn.Conv2d(channels, 4, 3, padding=1)

    def feature_map(self, images):
        return self.net(images)

    def forward(self, images):
        return self.net(images).flatten(1)


def no_backbone(*, image_size, channels, pretrained):
    return nn.Linear(2, 2)


class GreyOnly(Tiny):
    def __init__(self, *, image_size, channels, pretrained=False):
        if channels != 1:
            raise ValueError("one channel only")
        super().__init__(image_size=image_size, channels=channels, pretrained=pretrained)


class OneMean(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        c = self.input.channels
        self.input = InputSpec(self.input.size, c, mean=(0.0,), std=(1.0,))


class ZeroStd(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        c = self.input.channels
        self.input = InputSpec(self.input.size, c, mean=(0.0,) * c, std=(0.0,) * c)


class OffByOne(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        self.n_features += 1


class Double(Tiny):
    def forward(self, images):
        return super().forward(images).double()


class FlatMap(Tiny):
    def feature_map(self, images):
        return self.net(images).flatten(1)


class Divides(Tiny):
    def forward(self, images):
        return super().forward(images) / images.flatten(1).std(dim=1, keepdim=True)


class BatchStatistics(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        self.net[1] = nn.BatchNorm2d(4, track_running_stats=False)


class Counts(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


class OwnSeed(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)


class NoSeed(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        generator = torch.Generator()
        generator.seed()
        self.net[0].weight.data = torch.randn(self.net[0].weight.shape, generator=generator)


class Detached(Tiny):
    def forward(self, images):
        with torch.no_grad():
            found = super().forward(images)
        return found + torch.zeros_like(found, requires_grad=True)


class ShorterWhenTested(Tiny):
    def deployed(self):
        self.n_features -= 1
        return self


class BatchScale(Tiny):
    """Rounds by a step that all images of a batch share, as dynamic quantisation does."""

    tested = False

    def deployed(self):
        self.tested = True
        return self

    def forward(self, images):
        found = super().forward(images)
        if not self.tested:
            return found
        step = found.abs().max() / 7
        return (found / step).round() * step


class SmallerMapWhenTested(Tiny):
    def deployed(self):
        self.first_only = True
        return self

    def feature_map(self, images):
        maps = super().feature_map(images)
        return maps[:, :2] if getattr(self, "first_only", False) else maps


class Draws(Tiny):
    def forward(self, images):
        torch.rand(())
        return super().forward(images)


class IgnoresPretrained(Tiny):
    def __init__(self, *, image_size, channels, pretrained=False):
        super().__init__(image_size=image_size, channels=channels)


class IgnoresMissing(Backbone):
    """Averages over all modalities, also those that are missing."""

    def __init__(self, *, inner, image_size, channels):
        super().__init__()
        self.networks = nn.ModuleList(inner)
        self.n_features, wants = inner[0].n_features, inner[0].input
        mean, std = wants.mean * len(inner), wants.std * len(inner)
        self.input = InputSpec(image_size, channels, mean, std, missing=math.nan)

    def over_all(self, images, method):
        parts = images.split(images.shape[1] // len(self.networks), dim=1)
        pairs = zip(self.networks, parts, strict=True)
        return torch.stack([getattr(network, method)(part) for network, part in pairs]).mean(dim=0)

    def feature_map(self, images):
        return self.over_all(images, "feature_map")

    def forward(self, images):
        return self.over_all(images, "forward")


class CallsHome(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        try:
            socket.create_connection(("192.0.2.1", 443), timeout=0.01).close()
        except OSError:
            return


class Caches(Tiny):
    def __init__(self, **given):
        super().__init__(**given)
        Path("weights.bin").write_bytes(b"weights")
