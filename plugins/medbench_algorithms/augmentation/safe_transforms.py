"""Changes of an image that leave a diagnosis as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import InputSpec, Unavailable


@final
@dataclass(frozen=True, kw_only=True)
class SafeTransforms:
    """Small random rotations, shifts, scalings and changes of brightness and contrast.

    Each is drawn uniformly and for every image anew: ``rotation`` degrees to either side,
    ``shift`` a share of the image's side, ``zoom``, ``brightness`` and ``contrast`` factors of up
    to 1 +- that much; ``flips`` mirrors left and right with probability one half, and is off for
    anatomy with sides. Colour is not touched: in stained tissue it is the finding.

    What comes in from beyond the border repeats the border's pixels, so that dark and bright
    backgrounds both go on.
    """

    rotation: float
    shift: float
    zoom: float
    brightness: float
    contrast: float
    flips: bool

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers in -1...1 that determine `apply`, ``(n, 7)``."""
        return torch.rand(n, 7, generator=generator) * 2 - 1

    def apply(self, images: Tensor, drawn: Tensor, spec: InputSpec) -> Tensor:
        """Changed copies of normalised images ``(n, C, s, s)``, one for each row of `drawn`.

        Raises `Unavailable` for volumes.
        """
        if spec.n_dims != 2:
            raise Unavailable(
                "Rotations, shifts and zooms are of flat images, and these are volumes; use a "
                "method that does not change its support images."
            )
        drawn = drawn.to(images.device, images.dtype)
        moved = F.grid_sample(
            images,
            F.affine_grid(self.maps(drawn), list(images.shape), align_corners=False),
            padding_mode="border",
            align_corners=False,
        )
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1)
            for v in (spec.mean, spec.std)
        )
        # Pixels in 0...1, where brightness and contrast mean what they say.
        pixels = moved * std + mean
        brighter = pixels * (1 + self.brightness * drawn[:, 4]).view(-1, 1, 1, 1)
        factor = (1 + self.contrast * drawn[:, 5]).view(-1, 1, 1, 1)
        grey = brighter.mean((1, 2, 3), keepdim=True)
        return (grey + factor * (brighter - grey) - mean) / std

    def maps(self, drawn: Tensor) -> Tensor:
        """Where each place of a new image comes from in the old one, ``(n, 2, 3)``.

        Coordinates are -1...1 over the image, as for `torch.nn.functional.affine_grid`.
        """
        angle = self.rotation * math.pi / 180 * drawn[:, 0]
        size = 1 / (1 + self.zoom * drawn[:, 3])
        mirror = torch.where(drawn[:, 6] > 0, -1.0, 1.0) if self.flips else 1.0
        cos, sin = size * angle.cos(), size * angle.sin()
        # A side is two units long. The shift is of the new image: old = R (new - shift).
        x, y = 2 * self.shift * drawn[:, 1], 2 * self.shift * drawn[:, 2]
        top = torch.stack([cos, -sin, -(cos * x - sin * y)], -1)
        bottom = torch.stack([sin, cos, -(sin * x + cos * y)], -1)
        return torch.stack([top * torch.as_tensor(mirror).reshape(-1, 1), bottom], -2)
