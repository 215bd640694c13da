"""Image files with boxes or masks: what all such datasets share, whatever their files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import Boxes, DataError, DatasetInfo
from medbench_datasets._images import SUFFIXES, ImageFiles, header_of
from medbench_datasets._layout import checked_indices
from medbench_datasets._people import People
from medbench_datasets._store import combined, manifest, remember, remembered

_ROUNDING = 1.0
"""Pixels by which a box may stick out of its image before it is called wrong; it is cut off."""


class TargetFiles(ImageFiles, ABC):
    """Image files whose targets are boxes or masks."""

    def __init__(
        self,
        info: DatasetInfo,
        *,
        root: Path,
        names: Sequence[str],
        cache: Path,
        present: NDArray[np.bool_],
        sizes: NDArray[np.int64],
        people: People,
    ) -> None:
        super().__init__(
            info,
            root=root,
            names=names,
            cache=cache,
            labels=present.astype(np.int64),
            splits=people.splits,
            sites=people.sites,
            patients=people.patients,
            times=people.times,
        )
        self.labels = present.astype(np.uint8)
        self._sizes = sizes

    @abstractmethod
    def _target_digest(self) -> str:
        """What determines the targets."""

    @property
    def digest(self) -> str:
        """BLAKE2b over images, columns, shape and targets."""
        names = combined(*self.info.label_names)
        return combined(
            "targets", 1, self.info.task_kind, super().digest, names, self._target_digest()
        )

    def _scale(self, index: int) -> NDArray[np.float64]:
        """What x and y of a box in the file are multiplied by, twice."""
        height, width = self.info.image_shape[:2]
        true_height, true_width = self._sizes[index]
        return np.array([width / true_width, height / true_height] * 2)


class BoxedImages(TargetFiles):
    """Image files with boxes that were read on opening, in pixels of the files."""

    def __init__(self, info: DatasetInfo, *, boxes: Sequence[Boxes], **rest: Any) -> None:
        present = np.zeros((len(boxes), len(info.label_names)), np.bool_)
        for row, found in zip(present, boxes, strict=True):
            row[found.labels[~found.ignored]] = True
        super().__init__(info, present=present, **rest)
        self._boxes = tuple(boxes)

    def _target_digest(self) -> str:
        arrays = [a for b in self._boxes for a in (b.xyxy, b.labels, b.ignored)]
        return arrays_digest(arrays)

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """True boxes, in pixels of the images as `read` gives them."""
        found = []
        for index in checked_indices(indices, len(self)).tolist():
            boxes = self._boxes[index]
            found.append(Boxes(boxes.xyxy * self._scale(index), boxes.labels, boxes.ignored))
        return found


def arrays_digest(arrays: Sequence[NDArray[Any]]) -> str:
    """One hexadecimal BLAKE2b over types, shapes and values."""
    digest = hashlib.blake2b(digest_size=32)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def resized(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """The last axes of an array brought to `shape`, each place taking its nearest neighbour."""
    lead = values.ndim - len(shape)
    for axis, length in enumerate(shape):
        true_length = values.shape[lead + axis]
        if true_length != length:
            places = ((np.arange(length) + 0.5) * (true_length / length)).astype(np.int64)
            values = np.take(values, places, axis=lead + axis)
    return values


def read_sizes(root: Path, names: Sequence[str], cache: Path) -> NDArray[np.int64]:
    """``(n, 2)`` height and width of image files, remembered while none of them changes."""
    key = manifest(root, names)
    known = remembered(cache, "sizes", key)
    if known is None:
        known = {"sizes": [list(header_of(root / name)[1]) for name in names]}
        remember(cache, "sizes", key, known)
    return np.array(known["sizes"], np.int64).reshape(-1, 2)


def boxes_within(
    rows: Sequence[Sequence[float]],
    labels: Sequence[int],
    ignored: Sequence[bool],
    *,
    size: Sequence[int],
    where: Sequence[str],
    advice: str = "",
) -> Boxes:
    """Boxes x0, y0, x1, y1 held against the image's ``(H, W)``; `where` names each in errors.

    Raises `DataError` for corners in the wrong order, numbers that are not finite, boxes that stick
    out of the image by more than a pixel.
    """
    xyxy = np.array(rows, np.float64).reshape(-1, 4)
    height, width = int(size[0]), int(size[1])
    for box, place in zip(xyxy.tolist(), where, strict=True):
        shown = ", ".join(f"{value:g}" for value in box)
        if not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(
                f"{place}: the box {shown} (left, top, right, bottom) has no area or holds no "
                f"numbers; expected left < right and top < bottom. {advice}".strip()
            )
        beyond = max(-box[0], -box[1], box[2] - width, box[3] - height)
        if beyond > _ROUNDING:
            raise DataError(
                f"{place}: the box {shown} (left, top, right, bottom) lies {beyond:g} pixels "
                f"outside its image of {width} x {height}. Correct it, or the image's size. "
                f"{advice}".strip()
            )
    limits = np.array([width, height] * 2, np.float64)
    return Boxes(
        np.clip(xyxy, 0.0, limits), np.array(labels, np.int64), np.array(ignored, np.bool_)
    )


def by_stem(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Mapping[str, Path]:
    """The image files of one folder by name without suffix; raises `DataError` for a name twice."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes or path.is_dir():
            continue
        if path.stem in found:
            raise DataError(
                f"{folder} has {found[path.stem].name} and {path.name}: expected one image of each "
                "name. Take one out."
            )
        found[path.stem] = path
    return found
