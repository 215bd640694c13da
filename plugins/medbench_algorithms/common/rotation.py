"""Quarter turns of images."""

from __future__ import annotations

import torch
from torch import Tensor


def quarter_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(b, C, s, s)`` turned by 0, 90, 180 and 270 degrees, and how often each was turned.

    Returns ``(4 b, C, s, s)``, all images upright first, and ``(4 b,)`` in 0...3.
    """
    turned = torch.cat([torch.rot90(images, k, (-2, -1)) for k in range(4)])
    turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
    return turned, turns
