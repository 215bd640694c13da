"""Masks and feature maps of different sizes, brought together without enlarging the features.

A map's last two dimensions are its rows and columns. Of a volume the rows are those of all its
slices, one slice below the other (`medbench.api.Backbone.feature_map`).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medbench.api import ContractError

Size = tuple[int, ...]
"""Height and width of an image in pixels, or depth, height and width of a volume in voxels."""


@functools.lru_cache(maxsize=16)
def enlarging(n_small: int, n_large: int) -> Tensor:
    """The matrix ``(n_large, n_small)`` of linear interpolation along one axis."""
    # It is kept: one made in inference mode could not be part of a training.
    with torch.inference_mode(mode=False), torch.no_grad():
        eye = torch.eye(n_small).unsqueeze(1)  # one signal for each unit impulse
        found = F.interpolate(eye, size=n_large, mode="linear", align_corners=False)
        return found.squeeze(1).mT.contiguous()


def grid(rows: int, columns: int, size: Size) -> Size:
    """How many places a map of ``rows x columns`` has along each edge of `size`.

    Volumes are cubes to a network, so that slices of their maps are squares. Raises
    `ContractError` for rows that are not those of whole slices.
    """
    if len(size) == 2:
        return rows, columns
    if rows % columns:
        raise ContractError(
            f"a map of {rows} rows and {columns} columns is not one of square slices: masks of "
            "volumes need a backbone whose maps keep every slice whole."
        )
    return rows // columns, columns, columns


def share_of_place(rows: int, columns: int, size: Size) -> float:
    """What a mask of everything weighs at a place of a map, in pixels or voxels."""
    return math.prod(size) / (rows * columns)


def place_weights(masks: Tensor, rows: int, columns: int, size: Size) -> Tensor:
    """How much each place of a map counts in a mask, ``(..., rows columns)``.

    `masks` ``(..., *size)``. A sum over the mask of features enlarged to `size` by (bi- or tri-)
    linear interpolation, ``U f V'``, equals the sum over places of features times these weights,
    ``U' m V``, in a hundredth of the memory.
    """
    edges = _edges(grid(rows, columns, size), size, masks.device)
    found = edges[-2].mT @ masks.to(edges[0].dtype) @ edges[-1]
    if len(size) == 3:
        return (edges[0].mT @ found.flatten(-2)).flatten(-2)
    return found.flatten(-2)


def enlarged(scores: Tensor, size: Size) -> Tensor:
    """Scores of the places of a map, ``(..., rows, columns)``, as those of `size`.

    ``(..., *size)``, interpolated linearly along each edge.
    """
    places = grid(scores.shape[-2], scores.shape[-1], size)
    edges = [e.to(scores) for e in _edges(places, size, scores.device)]
    lead = scores.shape[:-2]
    found = edges[-2] @ scores.reshape(*lead, *places) @ edges[-1].mT
    return found if len(size) == 2 else (edges[0] @ found.flatten(-2)).reshape(*lead, *size)


def _edges(places: Size, size: Size, device: torch.device) -> list[Tensor]:
    return [enlarging(n, m).to(device) for n, m in zip(places, size, strict=True)]


def with_background(masks: Tensor, size: Size) -> Tensor:
    """Masks ``(..., n_way, *size)`` after that of the background: where none of them is."""
    classes = -1 - len(size)
    return torch.cat([~masks.any(dim=classes, keepdim=True), masks], dim=classes)


def against_the_best_other(scores: Tensor, size: Size) -> Tensor:
    """Scores of classes ``(..., n_way + 1, *size)``, the background first, as those of masks.

    ``(..., n_way, *size)``: above zero where the class has the highest score of all.
    """
    classes = -1 - len(size)
    every = scores.unbind(classes)
    found = [
        own - torch.stack([s for j, s in enumerate(every) if j != k]).amax(dim=0)
        for k, own in enumerate(every)
        if k
    ]
    return torch.stack(found, dim=classes)
