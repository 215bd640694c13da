"""A small U-Net from scratch, trained on each support set alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from medbench.api import Algorithm, Predictor, Support

Network = TypeVar("Network", bound=nn.Module)


class UNet(nn.Module):
    """Ronneberger et al. 2015 with a third of its depth: two poolings, instance norms, 3x3.

    Images ``(b, C, H, W)``, sides multiples of 4, in; scores ``(b, n_out, H, W)`` out. With
    `n_dims` 3 it takes volumes, ``(b, C, D, H, W)``, and its kernels are cubes (Cicek et al. 2016).
    """

    def __init__(self, channels: int, n_out: int, width: int, n_dims: int = 2) -> None:
        super().__init__()
        self.first = double_conv(channels, width, n_dims)
        self.second = double_conv(width, 2 * width, n_dims)
        self.bottom = double_conv(2 * width, 4 * width, n_dims)
        self.up_second = double_conv(6 * width, 2 * width, n_dims)
        self.up_first = double_conv(3 * width, width, n_dims)
        self.halve = F.max_pool2d if n_dims == 2 else F.max_pool3d
        self.last = _convolution(n_dims)(width, n_out, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every class at every pixel."""
        one = self.first(images)
        two = self.second(self.halve(one, 2))
        deep = self.bottom(self.halve(two, 2))
        two = self.up_second(torch.cat([two, _doubled(deep, two)], dim=1))
        one = self.up_first(torch.cat([one, _doubled(two, one)], dim=1))
        found: Tensor = self.last(one)
        return found


def double_conv(n_in: int, n_out: int, n_dims: int = 2) -> nn.Sequential:
    """Two 3x3 (or 3x3x3) convolutions, each normalised over the image and rectified."""
    convolution = _convolution(n_dims)
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [convolution(n, n_out, 3, padding=1), nn.GroupNorm(1, n_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _convolution(n_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if n_dims == 2 else nn.Conv3d


def _doubled(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="nearest")


@final
class ScratchUNet(Algorithm):
    """Segment as one would without any other data: fit a U-Net to the support set.

    Cross-entropy of each class's mask plus one minus its soft Dice (Isensee et al. 2021), Adam,
    images turned and mirrored at random (volumes within their slices). Randomness comes from the
    episode's seed alone.
    """

    def __init__(
        self, steps: int = 80, lr: float = 0.01, width: int = 8, batch_size: int = 8
    ) -> None:
        self.steps = steps
        self.lr = lr
        self.width = width
        self.batch_size = batch_size

    def adapt(self, support: Support) -> Predictor:
        """Train on images ``(n, C, *size)`` and masks ``(n, n_way, *size)``."""
        assert support.masks is not None
        images, truth = support.inputs, support.masks.float()
        draws = support.generator()
        n_dims = images.ndim - 2
        network = drawn(lambda: UNet(images.shape[1], support.n_way, self.width, n_dims), draws)
        network = network.to(images.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.lr)
        with torch.enable_grad():
            for step in range(self.steps):
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * (1.0 - step / self.steps)
                x, y = self._batch(images, truth, draws)
                optimiser.zero_grad()
                loss = mask_loss(network(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return _Segments(network.eval())

    def _batch(self, images: Tensor, truth: Tensor, draws: Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(images), generator=draws)[: self.batch_size]
        chosen = chosen.to(images.device)
        turns, mirror = torch.randint(0, 8, (2,), generator=draws).tolist()
        x, y = (
            torch.rot90(t[chosen], turns % 4, dims=(-2, -1)) if t.shape[-1] == t.shape[-2] else t
            for t in (images, truth)
        )
        return (x.flip(-1), y.flip(-1)) if mirror % 2 else (x, y)


def drawn(
    make: Callable[[], Network], draws: Generator, *, biased: Collection[str] = ()
) -> Network:
    """A network with weights from `draws` (He et al. 2015), whatever torch's global state.

    Biases are null, but for those of the layers named in `biased`, which the network has set.
    """
    # Layers fill themselves from the global state first, which is put back.
    with torch.random.fork_rng(devices=[]):
        network = make()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draws)
            assert module.bias is not None
            if name not in biased:
                nn.init.zeros_(module.bias)
    return network


def mask_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of each class's mask plus one minus its soft Dice (Isensee et al. 2021).

    Scores and masks (0 or 1) ``(b, n_way, *size)``; Dice is that of all images of a class together.
    """
    p = scores.sigmoid()
    every = (0, *range(2, scores.ndim))  # images and places
    shared = (p * truth).sum(dim=every)
    dice = (2 * shared + 1.0) / (p.sum(dim=every) + truth.sum(dim=every) + 1.0)
    return F.binary_cross_entropy_with_logits(scores, truth) + (1.0 - dice).mean()


@final
class _Segments(Predictor):
    def __init__(self, network: UNet) -> None:
        self.network = network
        self.n_adapted = sum(p.numel() for p in network.parameters())

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, *size)``."""
        with torch.no_grad():
            # One image at a time: a convolution may round a batch in another way.
            found: Tensor = torch.cat([self.network(image[None]) for image in query])
        return found
