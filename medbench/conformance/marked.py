"""What checks give to methods that find things: tiny images of striped discs, with their marks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medbench.api import Boxes, Dataset, DatasetInfo, derive_seed
from medbench.conformance.material import Episode, another_order, draw

N_CLASSES = 6
SIDE = 32
_PER_CLASS = 24
# Every third image shows a second disc, of another class.
_SECOND = 3
_NOISE = 8.0
_PERIOD = 5.0
_GREY, _CONTRAST = 110.0, 20.0
_SHADES = (20.0, 60.0, 155.0, 180.0, 205.0, 230.0)
Masks = NDArray[np.bool_]


@final
class Marked(Dataset):
    """Striped discs on grey ``(32, 32, 1)``: a class is a shade, and the angle of stripes."""

    def __init__(self, task_kind: Literal["segmentation", "detection"]) -> None:
        rng = np.random.default_rng(0)
        main = np.repeat(np.arange(N_CLASSES), _PER_CLASS)
        n = len(main)
        number = np.arange(n) % _PER_CLASS
        other = (main + 1 + number % (N_CLASSES - 1)) % N_CLASSES
        side = rng.integers(0, 2, n)  # the half in which the first disc lies
        images = _GREY + _NOISE * rng.standard_normal((n, SIDE, SIDE))
        self._masks = np.zeros((n, N_CLASSES, SIDE, SIDE), np.bool_)
        for kinds, half, there in (
            (main, side, np.ones(n, np.bool_)),
            (other, 1 - side, number % _SECOND == 0),
        ):
            discs, stripes = _discs(rng, kinds, half)
            discs &= there[:, None, None]
            images = np.where(discs, stripes + _NOISE * rng.standard_normal(images.shape), images)
            self._masks[np.arange(n), kinds] |= discs
        self._pixels = images.clip(0, 255).astype(np.uint8)[..., None]
        self.labels = np.asarray(self._masks.any(axis=(-2, -1)), np.uint8)
        self.info = DatasetInfo(
            name="discs",
            label_names=tuple(f"discs {i}" for i in range(N_CLASSES)),
            image_shape=(SIDE, SIDE, 1),
            domain="discs",
            modality="made up",
            licence="CC0-1.0",
            task_kind=task_kind,
        )

    @property
    def digest(self) -> str:
        """Of the pixels; the marks follow from the same numbers."""
        return hashlib.blake2b(self._pixels.tobytes(), digest_size=16).hexdigest()

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(n, 32, 32, 1)``."""
        return self._pixels[indices]

    def read_masks(self, indices: NDArray[np.int64]) -> Masks:
        """Masks ``(n, 6, 32, 32)``."""
        return self._masks[indices]

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """A box around each disc."""
        return boxes_of(self._masks[indices])


def _discs(
    rng: np.random.Generator, kinds: NDArray[np.int64], half: NDArray[np.int64]
) -> tuple[Masks, NDArray[np.float64]]:
    """Discs ``(n, S, S)`` in the left (0) or right half, and the stripes that fill them."""
    n = len(kinds)
    radius = rng.uniform(5.5, 7.0, n)[:, None, None]
    x = (8.0 + 16.0 * half + rng.uniform(-0.5, 0.5, n))[:, None, None]
    y = rng.uniform(8.0, 24.0, n)[:, None, None]
    at = np.arange(SIDE) + 0.5
    across, down = at[None, None, :] - x, at[None, :, None] - y
    angle = (np.pi / 3 * (kinds % 3))[:, None, None]
    shade = np.array(_SHADES)[kinds][:, None, None]
    wave = np.sin(2 * np.pi / _PERIOD * (across * np.cos(angle) + down * np.sin(angle)))
    return across**2 + down**2 <= radius**2, shade + _CONTRAST * wave


@cache
def marked(task_kind: Literal["segmentation", "detection"]) -> Marked:
    """The data set of this process."""
    return Marked(task_kind)


@dataclass(frozen=True)
class MarkedEpisode(Episode):
    """A task whose images have marks; `labels` and `asked` say by which class each was drawn."""

    masks: Masks
    """Of the support images, ``(n_support, n_way, S, S)``."""
    query_masks: Masks


def marked_episode(
    data: Marked,
    number: int,
    shots: Sequence[int],
    n_query: int,
    *,
    noise: bool = False,
    lone: bool = False,
) -> MarkedEpisode:
    """Task `number` of a shape: a function of its arguments alone.

    As `medbench.conformance.material.episode`; with `lone` no image shows two discs.
    """
    rng = np.random.default_rng(derive_seed("marked", number, tuple(shots), n_query, noise, lone))
    usable = np.array([i for i in range(_PER_CLASS) if not lone or i % _SECOND])
    drawn = draw(rng, shots, n_query, N_CLASSES, usable, _PER_CLASS)
    images, masks = data.read(drawn.rows), data.read_masks(drawn.rows)[:, drawn.classes]
    if noise:
        images = rng.integers(0, 256, images.shape, dtype=np.uint8)
    n = len(drawn.labels)
    return MarkedEpisode(
        images[:n],
        torch.from_numpy(drawn.labels),
        images[n:],
        torch.from_numpy(drawn.asked),
        len(shots),
        derive_seed("adapt", number),
        torch.from_numpy(drawn.classes),
        masks[:n],
        masks[n:],
    )


def uninformed(data: Marked, number: int, way: int) -> MarkedEpisode:
    """Every class is shown on one disc of each true class; queries come ordered by class."""
    one = marked_episode(data, number, (way,) * way, 3 * way, lone=True)
    labels = np.tile(np.arange(way), way)
    masks = np.zeros_like(one.masks)
    masks[np.arange(len(labels)), labels] = one.masks.any(axis=1)
    order = torch.argsort(one.asked, stable=True)
    return replace(
        one,
        labels=torch.from_numpy(labels),
        masks=masks,
        query=one.query[order.numpy()],
        asked=one.asked[order],
        query_masks=one.query_masks[order.numpy()],
    )


def renamed(one: MarkedEpisode, names: Tensor) -> MarkedEpisode:
    """The same task with class c called ``names[c]``."""
    before = torch.argsort(names).numpy()
    return replace(
        one,
        labels=names[one.labels],
        asked=names[one.asked],
        classes=one.classes[torch.from_numpy(before)],
        masks=one.masks[:, before],
        query_masks=one.query_masks[:, before],
    )


def reordered(one: MarkedEpisode) -> MarkedEpisode:
    """The same task with its support images in another order."""
    order = another_order(one)
    labels = one.labels[torch.from_numpy(order)]
    return replace(one, support=one.support[order], labels=labels, masks=one.masks[order])


def at_size(masks: Masks, size: tuple[int, int]) -> Tensor:
    """Masks ``(n, n_way, S, S)`` at another size: where at least half of a pixel is covered."""
    given = torch.from_numpy(np.ascontiguousarray(masks)).float()
    cover = F.interpolate(given, size=size, mode="bilinear", antialias=True)
    return cover >= 0.5


def boxes_of(masks: Masks) -> list[Boxes]:
    """A box around each class of each image that shows it, from masks ``(n, n_way, S, S)``."""
    found = []
    for image in masks:
        shown = np.flatnonzero(image.any(axis=(-2, -1)))
        rows = []
        for k in shown:
            ys, xs = np.nonzero(image[k])
            rows.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        xyxy = np.array(rows, np.float64).reshape(-1, 4)
        found.append(Boxes(xyxy, shown.astype(np.int64), np.zeros(len(shown), np.bool_)))
    return found
