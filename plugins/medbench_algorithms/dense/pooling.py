"""Masks and feature maps of different sizes, brought together without enlarging the features."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=16)
def enlarging(n_small: int, n_large: int) -> Tensor:
    """The matrix ``(n_large, n_small)`` of bilinear interpolation along one axis."""
    # It is kept: one made in inference mode could not be part of a training.
    with torch.inference_mode(mode=False), torch.no_grad():
        eye = torch.eye(n_small).unsqueeze(1)  # one signal for each unit impulse
        found = F.interpolate(eye, size=n_large, mode="linear", align_corners=False)
        return found.squeeze(1).mT.contiguous()


def place_weights(masks: Tensor, h: int, w: int) -> Tensor:
    """How much each place of an ``h x w`` map counts in a mask, ``(..., h, w)``.

    `masks` ``(..., H, W)``. A sum over the mask of features enlarged to ``H x W`` by bilinear
    interpolation, ``U f V'``, equals the sum over places of features times these weights,
    ``U' m V``, in a hundredth of the memory.
    """
    tall = enlarging(h, masks.shape[-2]).to(masks.device)
    wide = enlarging(w, masks.shape[-1]).to(masks.device)
    return tall.mT @ masks.to(tall.dtype) @ wide


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores ``(..., h, w)`` at another size, ``(..., H, W)``, bilinearly."""
    tall = enlarging(scores.shape[-2], size[0]).to(scores)
    wide = enlarging(scores.shape[-1], size[1]).to(scores)
    return tall @ scores @ wide.mT


def against_the_best_other(scores: Tensor) -> Tensor:
    """Scores of classes ``(..., n_way + 1, H, W)``, the background first, as those of masks.

    ``(..., n_way, H, W)``: above zero where the class has the highest score of all.
    """
    n = scores.shape[-3]
    others = []
    for k in range(1, n):
        rest = [j for j in range(n) if j != k]
        others.append(scores[..., rest, :, :].amax(dim=-3))
    return scores[..., 1:, :, :] - torch.stack(others, dim=-3)
