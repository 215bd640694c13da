"""True masks and boxes of a dataset: read once, and in the size that methods see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.api import Boxes, ContractError, Dataset
from medbench.draws import Ints
from medbench.embed import STORE_LIMIT_BYTES, resized
from medbench.errors import DataError

Masks = NDArray[np.bool_]


class MaskStore:
    """Masks of all classes, each read once while all of them fit in memory."""

    def __init__(
        self, dataset: Dataset, size: tuple[int, ...], limit_bytes: int = STORE_LIMIT_BYTES
    ) -> None:
        """Nothing is read yet; `size` is that of `small`: two edges, of volumes three."""
        self._dataset, self._size = dataset, size
        n, n_labels = dataset.labels.shape
        self._shape = (n_labels, *dataset.info.image_shape[:-1])
        small = (n_labels, *size)
        fits = n * (int(np.prod(self._shape)) + int(np.prod(small))) <= limit_bytes
        self._true = np.empty((n, *self._shape), np.bool_) if fits else None
        self._small = torch.empty((n, *small), dtype=torch.bool) if fits else None
        self._here = np.zeros(n, np.bool_)

    def true(self, rows: Ints) -> Masks:
        """Masks ``(len(rows), n_labels, H, W)``, of volumes ``D, H, W``, as the dataset has them.

        Raises `ContractError` for another shape, `DataError` when they cannot be read.
        """
        self._fill(rows)
        return self._read(rows) if self._true is None else self._true[rows]

    def small(self, rows: Ints) -> Tensor:
        """Masks ``(len(rows), n_labels, *size)`` bool, as large as the network's input.

        A pixel belongs to a class that covers half of it. A class that would vanish keeps the
        pixels that it covers most.
        """
        self._fill(rows)
        if self._small is None:
            return shrunk(self._read(rows), self._size)
        return self._small[torch.from_numpy(rows)]

    def _fill(self, rows: Ints) -> None:
        if self._true is None or self._small is None:
            return
        missing = np.unique(rows[~self._here[rows]])
        if len(missing):
            self._true[missing] = self._read(missing)
            self._small[torch.from_numpy(missing)] = shrunk(self._true[missing], self._size)
            self._here[missing] = True

    def _read(self, rows: Ints) -> Masks:
        name = self._dataset.info.name
        try:
            masks = self._dataset.read_masks(rows)
        except OSError as error:
            raise DataError(f"dataset {name}: its masks cannot be read: {error}.") from error
        want = (len(rows), *self._shape)
        if masks.shape != want or masks.dtype != np.bool_:
            raise ContractError(
                f"dataset {name}: read_masks returned {masks.shape} {masks.dtype}, and {want} bool "
                "was promised."
            )
        return masks


class BoxStore:
    """Boxes of a dataset, each image's read once."""

    def __init__(self, dataset: Dataset) -> None:
        """Nothing is read yet."""
        self._dataset = dataset
        self._known: dict[int, Boxes] = {}

    def among(self, rows: Ints, classes: Ints) -> list[Boxes]:
        """The boxes of some classes in each image, labelled by the class's place in `classes`.

        In pixels of the dataset's images. Raises `ContractError` for boxes of another shape,
        `DataError` when they cannot be read.
        """
        missing = [r for r in dict.fromkeys(rows.tolist()) if r not in self._known]
        if missing:
            self._known |= zip(missing, self._read(np.array(missing)), strict=True)
        found = []
        for row in rows.tolist():
            boxes = self._known[row]
            own = boxes.labels[:, None] == classes
            kept = own.any(axis=1)
            found.append(
                Boxes(
                    np.array(boxes.xyxy[kept], np.float64),
                    own[kept].argmax(axis=1).astype(np.int64),
                    boxes.ignored[kept].copy(),
                )
            )
        return found

    def _read(self, rows: Ints) -> list[Boxes]:
        name = self._dataset.info.name
        try:
            boxes = self._dataset.read_boxes(rows)
        except OSError as error:
            raise DataError(f"dataset {name}: its boxes cannot be read: {error}.") from error
        if len(boxes) != len(rows) or any(b.xyxy.shape != (len(b.labels), 4) for b in boxes):
            raise ContractError(
                f"dataset {name}: read_boxes returned boxes of {len(boxes)} images for "
                f"{len(rows)}, or boxes that are not (k, 4)."
            )
        return boxes


def at_size(boxes: list[Boxes], dataset: Dataset, size: tuple[int, ...]) -> tuple[Boxes, ...]:
    """Boxes in pixels of the dataset's images, in those of images of another size."""
    height, width = dataset.info.image_shape[:2]
    scale = np.array([size[1] / width, size[0] / height] * 2)
    return tuple(Boxes(b.xyxy * scale, b.labels, b.ignored) for b in boxes)


def shrunk(masks: Masks, size: tuple[int, ...]) -> Tensor:
    """Masks ``(n, n_labels, *space)`` at another size, smaller or larger, as `MaskStore.small`."""
    given = torch.from_numpy(np.ascontiguousarray(masks))
    if tuple(given.shape[2:]) == size:
        return given.clone()
    cover = resized(given.float(), size)
    most = cover.amax(dim=tuple(range(2, cover.ndim)), keepdim=True)
    # Where nothing is covered by half, `most` is below it and takes its place.
    return (cover >= most.clamp(max=0.5)) & (most > 0)
