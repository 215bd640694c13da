"""Volumes as a dataset: whole, or slice by slice, brought to one shape and to 8 bits."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Dataset, DatasetInfo
from medbench_datasets._layout import checked_indices
from medbench_datasets._people import People
from medbench_datasets._store import combined, tree_digest
from medbench_datasets._targets import resized

_SAMPLED = 1 << 20
_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Scan:
    """One volume as its headers describe it; axes are depth, height, width throughout."""

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    """mm; NaN where the files do not say."""


class Volumes(Dataset, ABC):
    """Volumes ``(D, H, W)`` behind images ``(D, H, W, C)``, or each slice as ``(H, W, C)``.

    C is 1, or the number of aligned modalities, each with grey levels of its own.
    """

    def __init__(
        self,
        info: DatasetInfo,
        *,
        root: Path,
        files: Sequence[str],
        cache: Path,
        scans: Sequence[Scan],
        labels: NDArray[Any],
        people: People,
        slices: bool,
        window: tuple[float, float] | None,
        chosen: tuple[object, ...] = (),
    ) -> None:
        self.info = info
        self._root, self._files, self._cache = root, tuple(files), cache
        self._scans, self._slices, self._window = tuple(scans), slices, window
        self._chosen = chosen
        depths = [scan.shape[0] if slices else 1 for scan in scans]
        self._volume = np.repeat(np.arange(len(scans), dtype=np.int64), depths)
        self._slice = np.concatenate([np.arange(depth, dtype=np.int64) for depth in depths])
        self.labels = labels
        self.splits = None if people.splits is None else people.splits[self._volume]
        self.sites = None if people.sites is None else people.sites[self._volume]
        if people.patients is not None:
            self.patients = people.patients[self._volume]
        elif slices:
            self.patients = self._volume.copy()  # slices of one volume are of one person
        shapes = np.array([scan.shape for scan in scans], np.float64)
        spacing = np.array([scan.spacing for scan in scans], np.float64)
        if slices:
            shapes, spacing = shapes[:, 1:], spacing[:, 1:]
        delivered = spacing * shapes / np.array(info.image_shape[:-1])
        self.spacings = delivered[self._volume] if np.isfinite(delivered).all() else None
        self._kept: tuple[tuple[str, int], NDArray[Any]] | None = None

    @abstractmethod
    def _load(self, volume: int) -> NDArray[np.float32]:
        """One volume ``(D, H, W)``."""

    def _load_modality(self, volume: int, number: int) -> NDArray[np.float32]:
        """One of several aligned modalities of a volume; with one alone that is all of it."""
        assert number == 0
        return self._load(volume)

    def _inverted(self, volume: int) -> bool:
        """Whether the largest value is black."""
        return False

    @property
    def digest(self) -> str:
        """BLAKE2b over all files and everything that was set."""
        columns = [
            combined(*column.tolist()) if column is not None else "none"
            for column in (self.labels, self.splits, self.sites, self.patients)
        ]
        files = tree_digest(self._root, sorted(set(self._files)), self._cache)
        return combined(
            "volumes",
            1,
            files,
            combined(*(scan.name for scan in self._scans)),
            *columns,
            self.info.image_shape,
            self._slices,
            self._window,
            self.info.label_names,
            self._chosen,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(b, *info.image_shape)`` uint8, read volume by volume."""
        indices = checked_indices(indices, len(self))
        images = np.empty((len(indices), *self.info.image_shape), np.uint8)
        space = self.info.image_shape[:-1]
        for volume, rows in self._by_volume(indices):
            pixels = self._pixels(volume)
            for row in rows.tolist():
                for channel, of_one in enumerate(pixels):
                    part = of_one[self._slice[indices[row]]] if self._slices else of_one
                    images[row, ..., channel] = smoothed(part, space)
        return images

    def _masks(
        self, indices: NDArray[np.int64], load_map: Callable[[int], NDArray[np.integer[Any]]]
    ) -> NDArray[np.bool_]:
        """Masks, of label maps whose values are indices of labels plus 1."""
        indices = checked_indices(indices, len(self))
        space = self.info.image_shape[:-1]
        n_labels = len(self.info.label_names)
        masks = np.zeros((len(indices), n_labels, *space), np.bool_)
        values = np.arange(1, n_labels + 1).reshape(-1, *([1] * len(space)))
        for volume, rows in self._by_volume(indices):
            found = self._remembered("map", volume, load_map)
            self._check_shape(volume, found)
            for row in rows.tolist():
                part = found[self._slice[indices[row]]] if self._slices else found
                masks[row] = resized(part, space) == values
        return masks

    def _by_volume(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        volumes = self._volume[indices]
        for volume in np.unique(volumes).tolist():
            yield volume, np.flatnonzero(volumes == volume)

    def _pixels(self, volume: int) -> NDArray[np.uint8]:
        """``(C, D, H, W)``, or ``(C, H, W)`` of slices."""
        found: NDArray[np.uint8] = self._remembered("pixels", volume, self._every_modality)
        return found

    def _every_modality(self, volume: int) -> NDArray[np.uint8]:
        n_channels = self.info.image_shape[-1]
        return np.stack([self._shades(volume, channel) for channel in range(n_channels)])

    def _remembered(
        self, what: str, volume: int, load: Callable[[int], NDArray[Any]]
    ) -> NDArray[Any]:
        # One is enough: slices are asked for in order, and a volume can be hundreds of megabytes.
        if self._kept is not None and self._kept[0] == (what, volume):
            return self._kept[1]
        self._kept = None
        found = load(volume)
        self._kept = ((what, volume), found)
        return found

    def _shades(self, volume: int, channel: int) -> NDArray[np.uint8]:
        """One modality of a volume ``(D, H, W)`` in 8 bits."""
        values = self._load_modality(volume, channel)
        if not np.isfinite(values).all():
            raise DataError(
                f"{self._root / self._scans[volume].name} holds voxels that are NaN or infinite; "
                "expected numbers. Repair or leave out the volume."
            )
        self._check_shape(volume, values)
        found = eight_bits(values, self._window)
        return 255 - found if self._inverted(volume) else found

    def _check_shape(self, volume: int, found: NDArray[Any]) -> None:
        scan = self._scans[volume]
        if found.shape != scan.shape:
            raise DataError(
                f"{self._root / scan.name} has {found.shape} voxels (depth, height, width) now and "
                f"had {scan.shape} when the dataset was opened. It was changed: open it again."
            )


def window_of(text: str | None) -> tuple[float, float] | None:
    """Two numbers ``low, high``. Raises `DataError` for anything else."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        low, high = (float(part) for part in text.split(","))
        if np.isfinite([low, high]).all() and low < high:
            return low, high
    raise DataError(
        f"window={text!r} is not a range; expected two numbers, the values that become black and "
        "white, as in '-160, 240'."
    )


def eight_bits(
    values: NDArray[np.floating[Any]], window: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Values as 0...255 between the ends of the window; 0.5 and 99.5 % of the values without one.

    Percentiles are of about a million voxels, evenly taken.
    """
    if window is None:
        sampled = values.reshape(-1)[:: max(1, values.size // _SAMPLED)]
        low, high = (float(v) for v in np.percentile(sampled, (0.5, 99.5)))
    else:
        low, high = window
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.clip(values, low, high) - low) * (255.0 / (high - low))
    found: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return found


def smoothed(values: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Linear resizing with antialiasing along every axis, as images are resized."""
    if values.shape == tuple(shape):
        return values
    found = values.astype(np.float32)
    for axis, length in enumerate(shape):
        if values.shape[axis] != length:
            weights = _weights(values.shape[axis], length)
            found = np.moveaxis(np.tensordot(weights, found, axes=(1, axis)), 0, axis)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def _weights(n: int, length: int) -> NDArray[np.float32]:
    """``(length, n)`` triangles as wide as a pixel of the coarser grid."""
    scale = n / length
    centres = (np.arange(length) + 0.5) * scale - 0.5
    reach = max(1.0, scale)
    weights = np.clip(1.0 - np.abs(np.arange(n) - centres[:, None]) / reach, 0.0, None)
    found: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def delivered_shape(
    where: Path, scans: Sequence[Scan], size: int | None, *, slices: bool, channels: int = 1
) -> tuple[int, ...]:
    """The shape of images: as asked, else that which all share; slices else have 224 pixels.

    Raises `DataError` for volumes of several shapes and no size asked for.
    """
    shapes = {scan.shape[1:] if slices else scan.shape for scan in scans}
    if size is not None:
        return (*[size] * (2 if slices else 3), channels)
    if len(shapes) == 1:
        return (*next(iter(shapes)), channels)
    if slices:
        return (_DEFAULT_SIZE, _DEFAULT_SIZE, channels)
    seen = ", ".join(str(shape) for shape in sorted(shapes)[:3])
    raise DataError(
        f"{where}: the volumes have {len(shapes)} shapes ({seen} ...: depth, height, width); say "
        "to which edge length to bring them, as in size=64, or slices=true."
    )
