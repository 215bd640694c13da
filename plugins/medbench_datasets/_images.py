"""Image files as a dataset: headers are checked on opening, pixels decoded when asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medbench.api import DataError, DataMissing, Dataset, DatasetInfo
from medbench_datasets._layout import checked_indices
from medbench_datasets._store import combined, manifest, remember, remembered, tree_digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_DEFAULT_SIZE = 224
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Headers:
    """What the headers of all files say together."""

    all_grey: bool
    common_size: tuple[int, int] | None
    """``(H, W)`` when all agree, else None."""


class ImageFiles(Dataset):
    """Image files below one folder, resized on reading to one shape."""

    def __init__(
        self,
        info: DatasetInfo,
        *,
        root: Path,
        names: Sequence[str],
        cache: Path,
        labels: NDArray[np.int64],
        splits: NDArray[np.uint8] | None = None,
        sites: NDArray[np.int64] | None = None,
        patients: NDArray[np.int64] | None = None,
        times: NDArray[np.float64] | None = None,
    ) -> None:
        self.info = info
        self.labels = labels
        self.splits = splits
        self.sites = sites
        self.patients = patients
        self.times = times
        self._root = root
        self._names = tuple(names)
        self._cache = cache

    @property
    def digest(self) -> str:
        """BLAKE2b over names and bytes of all files, what is known of each, and the shape."""
        columns = [
            combined(*column.tolist()) if column is not None else "none"
            for column in (self.labels, self.splits, self.sites, self.patients)
        ]
        # A table may name a file twice; its bytes count once, its rows by the columns above.
        if self.times is not None:
            columns.append(combined("times", *self.times.tolist()))
        files = tree_digest(self._root, sorted(set(self._names)), self._cache)
        order = combined(*self._names)
        return combined("images", 1, files, order, *columns, self.info.image_shape)

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each image, as it is called from the folder of all."""
        return self._names

    @property
    def root(self) -> Path:
        """The folder of all files."""
        return self._root

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), H, W, C)`` uint8; raises `DataError` naming a broken file."""
        indices = checked_indices(indices, len(self))
        height, width, channels = self.info.image_shape
        images = np.empty((len(indices), height, width, channels), np.uint8)
        for row, index in enumerate(indices):
            path = self._root / self._names[index]
            images[row] = decode(path, (height, width), channels)
        return images


def decode(path: Path, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """One image ``(H, W, C)`` uint8, resized bilinearly with antialiasing where need be."""
    try:
        with Image.open(path, formats=_FORMATS) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise DataMissing(f"{path} is gone: it was there when the dataset was opened.") from error
    except _BROKEN as error:
        raise DataError(
            f"{path} cannot be decoded: {error}. It was truncated or altered: replace it or take "
            "it out."
        ) from error
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels: NDArray[np.uint8] = np.asarray(image, np.uint8).reshape(*size, channels)
    return pixels


def read_headers(root: Path, names: Sequence[str], cache: Path) -> Headers:
    """Check that every file is an image of 8 bits a channel, without decoding one.

    Remembered while no file changes. Raises `DataError` naming the first file that is not.
    """
    key = manifest(root, names)
    known = remembered(cache, "headers", key)
    if known is not None:
        size = known["common_size"]
        return Headers(bool(known["all_grey"]), (size[0], size[1]) if size else None)
    all_grey = True
    sizes: set[tuple[int, int]] = set()
    for name in names:
        grey, size = header_of(root / name)
        all_grey = all_grey and grey
        if len(sizes) < 2:
            sizes.add(size)
    common = next(iter(sizes)) if len(sizes) == 1 else None
    remember(cache, "headers", key, {"all_grey": all_grey, "common_size": common})
    return Headers(all_grey, common)


def image_shape(headers: Headers, size: int | None, channels: int | None) -> tuple[int, int, int]:
    """``(H, W, C)`` to deliver: as asked, else as the files are (224 where they differ)."""
    if size is not None:
        height, width = size, size
    else:
        height, width = headers.common_size or (_DEFAULT_SIZE, _DEFAULT_SIZE)
    return height, width, channels or (1 if headers.all_grey else 3)


def header_of(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether the image is grey, and its ``(H, W)``; raises `DataError` when it is no image."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path} is not an image by its name; expected {', '.join(SUFFIXES)}. Move it out of "
            "the folder, or convert it."
        )
    try:
        with warnings.catch_warnings():
            # A large scan is no fault: it is only resized. Truly huge ones still raise.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                mode, (width, height) = image.mode, image.size
                frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    except _BROKEN as error:
        raise DataError(
            f"{path} is not a readable image ({path.stat().st_size} bytes): {error}. Replace it "
            "or take it out."
        ) from error
    if mode not in _GREY and mode not in _COLOUR:
        raise DataError(
            f"{path} has pixels of type {mode}; expected 8 bits a channel (greyscale, palette or "
            "colour). Scale them to 0...255 and save the image again."
        )
    if frames > 1:
        raise DataError(f"{path} holds {frames} pictures; expected one. Save them as single files.")
    return mode in _GREY, (height, width)
