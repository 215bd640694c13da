"""FCOS in small: every point says which class it lies in, and how far the box's edges are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from medbench.api import Algorithm, Boxes, Detections, Detector, Support
from medbench_algorithms.common.training import set_lr
from medbench_algorithms.dense.unet import UNet, double_conv, drawn
from medbench_algorithms.dense.windows import best_apart, detections

STEP: Final = 2
"""Pixels between neighbouring points: objects of few pixels need points inside."""
_PRIOR: Final = 0.01
_LEAST_SCORE: Final = 0.05


class PointNet(nn.Module):
    """FCOS's outputs on one map of half the image's size, from a small U-Net (Tian et al. 2019).

    Images ``(b, C, H, W)``, sides multiples of 8, in; ``(b, n_out + 5, H / 2, W / 2)`` out: a
    logit for each class, the logarithms of the distances (in units of `STEP`) to the left, upper,
    right and lower edge, and the logit of the centre-ness. One level serves all sizes, without a
    feature pyramid.
    """

    def __init__(self, channels: int, n_out: int, width: int) -> None:
        super().__init__()
        self.first = double_conv(channels, width)
        self.body = UNet(width, width, width)
        self.classes = nn.Conv2d(width, n_out, 1)
        self.places = nn.Conv2d(width, 5, 1)
        assert self.classes.bias is not None
        # So that background does not drown the first steps (Lin et al. 2017, section 3.3).
        nn.init.constant_(self.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, images: Tensor) -> Tensor:
        """Classes, edges and centre-ness of every point."""
        maps = self.body(F.max_pool2d(self.first(images), STEP)).relu()
        return torch.cat([self.classes(maps), self.places(maps)], dim=1)


@dataclass(frozen=True)
class Aims:
    """What the points of some images should say.

    ``classes``: ``(b, n_way, h, w)``, 1 at points inside a box of the class; ``edges``:
    ``(b, 4, h, w)`` in pixels; ``inside``: bool ``(b, h, w)``, points with a box; ``counted``:
    bool ``(b, h, w)``, those that are not in a region to be ignored.
    """

    classes: Tensor
    edges: Tensor
    inside: Tensor
    counted: Tensor


def points(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The places of points ``(h, w)`` in pixels, x and y: ``STEP / 2 + STEP i`` (section 3.1)."""
    ys = (torch.arange(size[0] // STEP, device=like.device, dtype=like.dtype) + 0.5) * STEP
    xs = (torch.arange(size[1] // STEP, device=like.device, dtype=like.dtype) + 0.5) * STEP
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return x, y


def aims_of(boxes: Sequence[Boxes], n_way: int, size: tuple[int, int], like: Tensor) -> Aims:
    """Every point belongs to the smallest box that it lies in (section 3.1, Eq. 1)."""
    x, y = points(size, like)
    b, (h, w) = len(boxes), x.shape
    classes = like.new_zeros(b, n_way, h, w)
    edges = like.new_ones(b, 4, h, w)
    inside = torch.zeros(b, h, w, dtype=torch.bool, device=like.device)
    counted = torch.ones_like(inside)
    for i, own in enumerate(boxes):
        xyxy = torch.from_numpy(own.xyxy).to(like)
        area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
        # From the largest to the smallest, so that the smallest is written last.
        for j in area.argsort(descending=True, stable=True).tolist():
            x0, y0, x1, y1 = xyxy[j]
            to_edges = torch.stack([x - x0, y - y0, x1 - x, y1 - y])
            here = (to_edges > 0).all(dim=0)
            if own.ignored[j]:
                counted[i] &= ~here | inside[i]
                continue
            classes[i][:, here] = 0.0
            classes[i, int(own.labels[j])][here] = 1.0
            edges[i][:, here] = to_edges[:, here]
            inside[i] |= here
            counted[i] |= here
    return Aims(classes, edges, inside, counted)


def point_loss(found: Tensor, aims: Aims) -> Tensor:
    """Focal loss of classes, IoU loss of edges and cross-entropy of centre-ness (Eq. 2).

    Each is summed over points and divided by the number of points with a box; the weight of the
    second is 1.
    """
    n_way = aims.classes.shape[1]
    logits, logs, centre = found[:, :n_way], found[:, n_way:-1], found[:, -1]
    n = aims.inside.sum().clamp_min(1)
    focal = sigmoid_focal_loss(logits, aims.classes, alpha=0.25, gamma=2.0, reduction="none")
    total: Tensor = (focal * aims.counted.unsqueeze(1)).sum() / n
    if not aims.inside.any():
        return total + 0.0 * (logs.sum() + centre.sum())
    true = aims.edges.movedim(1, -1)[aims.inside]  # (n, 4)
    said = logs.movedim(1, -1)[aims.inside].clamp(max=8.0).exp() * STEP
    total = total - iou_of_edges(said, true).log().mean()
    return total + F.binary_cross_entropy_with_logits(centre[aims.inside], centreness(true))


def iou_of_edges(said: Tensor, true: Tensor) -> Tensor:
    """Overlap ``(n,)`` of boxes around one point each, given by distances ``(n, 4)``."""
    small, area = torch.minimum(said, true), _area(said) + _area(true)
    both = _area(small)
    return both / (area - both)


def _area(edges: Tensor) -> Tensor:
    return (edges[:, 0] + edges[:, 2]) * (edges[:, 1] + edges[:, 3])


def centreness(edges: Tensor) -> Tensor:
    """How near a point is to its box's centre, ``(n,)`` of distances ``(n, 4)`` (Eq. 3)."""
    across, along = edges[:, [0, 2]], edges[:, [1, 3]]
    share = across.amin(1) / across.amax(1) * along.amin(1) / along.amax(1)
    return share.sqrt()


@final
class Points(Detector):
    """Boxes of the points that are sure enough, apart from one another."""

    def __init__(
        self, network: nn.Module, n_way: int, n_adapted: int, nms_iou: float, most: int
    ) -> None:
        """`network` gives what `PointNet` gives, of `n_way` classes."""
        self.network = network
        self.n_way = n_way
        self.n_adapted = n_adapted
        self.nms_iou = nms_iou
        self.most = most

    @torch.no_grad()
    def predict(self, query: Tensor) -> list[Detections]:
        """Scores are class probability times centre-ness (section 3.3)."""
        return [self._in(self.network(image[None])[0], image.shape[-2:]) for image in query]

    def _in(self, found: Tensor, size: torch.Size) -> Detections:
        limits = (size[0], size[1])
        x, y = points(limits, found)
        left, top, right, bottom = (found[self.n_way : -1].clamp(max=8.0).exp() * STEP).unbind(0)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=-1).reshape(-1, 4)
        centre = found[-1].sigmoid().flatten()
        parts = []
        for k in range(self.n_way):
            p = found[k].sigmoid().flatten()
            sure = p > _LEAST_SCORE
            scores = (p * centre)[sure]
            parts.append((k, *best_apart(boxes[sure], scores, self.nms_iou, self.most, limits)))
        return detections(parts)


@final
class ScratchFCOS(Algorithm):
    """Detect as one would without any other data: fit a small FCOS to the support set.

    Adam, images and boxes turned (unless `turn` is False) and mirrored at random. Randomness comes
    from the episode's seed alone.
    """

    def __init__(
        self,
        steps: int = 150,
        lr: float = 0.01,
        width: int = 8,
        batch_size: int = 8,
        nms_iou: float = 0.5,
        most: int = 50,
        turn: bool = True,
    ) -> None:
        self.turn = turn
        self.steps = steps
        self.lr = lr
        self.width = width
        self.batch_size = batch_size
        self.nms_iou = nms_iou
        self.most = most

    def adapt(self, support: Support) -> Detector:
        """Train on images ``(n, C, H, W)`` and their boxes."""
        # Whoever calls may have switched gradients off.
        with torch.inference_mode(mode=False), torch.enable_grad():
            network = self._trained(support)
        n_adapted = sum(p.numel() for p in network.parameters())
        return Points(network.eval(), support.n_way, n_adapted, self.nms_iou, self.most)

    def _trained(self, support: Support) -> PointNet:
        assert support.boxes is not None
        draws, images = support.generator(), support.inputs
        size = (images.shape[-2], images.shape[-1])
        network = drawn(
            lambda: PointNet(images.shape[1], support.n_way, self.width), draws, biased=("classes",)
        ).to(images.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.lr)
        # Turns and their mirror images: four where sides are equal, else two.
        quarters = ((0, 1, 2, 3) if size[0] == size[1] else (0, 2)) if self.turn else (0,)
        ways = [(t, m) for t in quarters for m in (0, 1)]
        for step in range(self.steps):
            set_lr(optimiser, self.lr * (1.0 - step / self.steps))
            chosen = torch.randperm(len(images), generator=draws)[: self.batch_size].tolist()
            turns, mirror = ways[int(torch.randint(len(ways), (), generator=draws))]
            x = torch.rot90(images[chosen].clone(), turns, dims=(-2, -1))
            x = x.flip(-1) if mirror else x
            boxes = [turned(support.boxes[i], turns, bool(mirror), size) for i in chosen]
            optimiser.zero_grad()
            loss = point_loss(network(x), aims_of(boxes, support.n_way, size, x))
            torch.autograd.backward(loss)
            optimiser.step()
        return network


def turned(boxes: Boxes, turns: int, mirror: bool, size: tuple[int, int]) -> Boxes:
    """Boxes of an image that is turned by quarters as `torch.rot90` does, then mirrored."""
    xyxy = boxes.xyxy
    height, width = size
    for _ in range(turns):
        x0, y0, x1, y1 = xyxy.T
        xyxy = np.stack([y0, width - x1, y1, width - x0], axis=1)
        height, width = width, height
    if mirror:
        x0, y0, x1, y1 = xyxy.T
        xyxy = np.stack([width - x1, y0, width - x0, y1], axis=1)
    return Boxes(xyxy, boxes.labels, boxes.ignored)
