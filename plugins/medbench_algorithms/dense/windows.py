"""Boxes as windows on a map: where they lie, what they hold, and which are kept."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from medbench.api import Boxes, Detections


def windows_of(sizes: Tensor, height: int, width: int) -> Tensor:
    """Boxes of every size ``(m, 2)`` (width, height) centred at every place, ``(m h w, 4)``."""
    ys, xs = torch.meshgrid(
        torch.arange(height, device=sizes.device) + 0.5,
        torch.arange(width, device=sizes.device) + 0.5,
        indexing="ij",
    )
    centres = torch.stack([xs, ys], dim=-1).reshape(1, -1, 2)
    half = sizes[:, None] / 2
    return torch.cat([centres - half, centres + half], dim=-1).flatten(0, 1)


def typical_sizes(boxes: Tensor, n: int) -> Tensor:
    """Up to `n` widths and heights ``(m, 2)`` that stand for those of `boxes` ``(k, 4)``.

    Boxes in order of area, in `n` equal parts; the mean size of each part. None for no boxes.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    if not len(sizes):
        return sizes
    sizes = sizes[sizes.prod(-1).argsort(stable=True)]
    parts = torch.tensor_split(sizes, min(n, len(sizes)))
    return torch.stack([part.mean(0) for part in parts])


def of_class(boxes: tuple[Boxes, ...], label: int, like: Tensor) -> list[Tensor]:
    """The boxes ``(k, 4)`` of one class in each image, those to be ignored left out."""
    return [torch.from_numpy(b.xyxy[(b.labels == label) & ~b.ignored]).to(like) for b in boxes]


def best_apart(
    boxes: Tensor, scores: Tensor, most_iou: float, n: int, limits: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Boxes ``(m, 4)`` and scores of the `n` best that overlap none better by more than `most_iou`.

    Boxes are cut at the image's border first; `limits` are its height and width.
    """
    height, width = limits
    inside = torch.stack(
        [
            boxes[:, 0].clamp(0, width),
            boxes[:, 1].clamp(0, height),
            boxes[:, 2].clamp(0, width),
            boxes[:, 3].clamp(0, height),
        ],
        dim=1,
    )
    kept = nms(inside, scores, most_iou)[:n]
    return inside[kept], scores[kept]


def detections(parts: list[tuple[int, Tensor, Tensor]]) -> Detections:
    """One image's detections from number, boxes and scores of each class."""
    none: NDArray[np.float64] = np.empty((0, 4))
    return Detections(
        np.concatenate([none, *(b.cpu().double().numpy() for _, b, _ in parts)]),
        np.concatenate(
            [np.empty(0, np.int64), *(np.full(len(b), k, np.int64) for k, b, _ in parts)]
        ),
        np.concatenate([np.empty(0), *(s.cpu().double().numpy() for _, _, s in parts)]),
    )
