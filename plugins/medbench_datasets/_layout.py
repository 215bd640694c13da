"""MedMNIST's file layout: ``{train,val,test}_{images,labels}``, also with sites and patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Dataset, DatasetInfo
from medbench_datasets._npz import ArrayOnDemand, NpzFile
from medbench_datasets._store import combined, file_digest

PARTS = ("train", "val", "test")
_SCAN = 1 << 22


@dataclass
class Contents:
    """What a file in MedMNIST's layout holds, checked, with the images still on disk."""

    images: list[ArrayOnDemand]
    image_shape: tuple[int, ...]
    labels: NDArray[Any]
    splits: NDArray[np.uint8] | None
    sites: NDArray[np.int64] | None
    site_names: tuple[str, ...]
    patients: NDArray[np.int64] | None


class NpzDataset(Dataset):
    """Images in a file of MedMNIST's layout, read from disk as they are asked for."""

    def __init__(self, info: DatasetInfo, contents: Contents, path: Path, cache: Path) -> None:
        self.info = info
        self.labels = contents.labels
        self.splits = contents.splits
        self.sites = contents.sites
        self.patients = contents.patients
        self._images = contents.images
        lengths = [image_array().shape[0] for image_array in contents.images]
        self._starts = np.cumsum([0, *lengths])
        self._path = path
        self._cache = cache

    @property
    def digest(self) -> str:
        """BLAKE2b of the file; remembered in the cache while the file stays the same."""
        return combined("medmnist-layout", 1, file_digest(self._path, self._cache).blake2b)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), *info.image_shape)`` uint8, in the order asked for."""
        indices = checked_indices(indices, len(self))
        images = np.empty((len(indices), *self.info.image_shape), np.uint8)
        # In file order: neighbouring reads share pages, and a part is touched once.
        order = np.argsort(indices, kind="stable")
        for part, start, stop in zip(
            self._images, self._starts[:-1], self._starts[1:], strict=True
        ):
            low, high = np.searchsorted(indices[order], [start, stop])
            chosen = order[low:high]
            if len(chosen):
                found = part()[indices[chosen] - start]
                images[chosen] = found.reshape(len(chosen), *self.info.image_shape)
        return images


def checked_indices(indices: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The indices as int64, or `IndexError` when one lies outside the dataset."""
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(indices) and (indices.min() < 0 or indices.max() >= n):
        raise IndexError(
            f"image indices {indices.min()}...{indices.max()} asked of a dataset with {n} images"
        )
    return indices


def read_contents(file: NpzFile, *, n_dims: int | None, n_classes: int | None) -> Contents:
    """Everything but the pixels of a file in MedMNIST's layout, checked.

    ``n_dims`` is 2 or 3 where it is known, ``n_classes`` likewise. Raises `DataError` naming file
    and array for missing keys, wrong types, unequal counts and labels out of range.
    """
    path = file.path
    parts = [p for p in PARTS if f"{p}_images" in file or f"{p}_labels" in file]
    if not parts:
        raise DataError(
            f"{path} holds {', '.join(file.names) or 'nothing'}; expected the keys of a MedMNIST "
            "file: train_images, train_labels, val_images, ..., test_labels."
        )
    missing = [f"{p}_{k}" for p in parts for k in ("images", "labels") if f"{p}_{k}" not in file]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)} (it holds {', '.join(file.names)}). Every part "
            "needs its images and its labels."
        )
    if len(parts) > 1 and "test" not in parts:
        raise DataError(
            f"{path} has the parts {' and '.join(parts)} but no test part: expected test_images "
            "and test_labels as well, or everything in one part."
        )
    shapes = {p: stored_shape(file, f"{p}_images", n_dims) for p in parts}
    if len(set(shapes.values())) > 1:
        seen = ", ".join(f"{p} {shape}" for p, shape in shapes.items())
        raise DataError(f"{path}: image shapes differ between parts ({seen}); expected one shape.")
    lengths = {p: file.header(f"{p}_images").shape[0] for p in parts}
    labels = [_labels(file, f"{p}_labels", lengths[p]) for p in parts]
    widths = {array.shape[1:] for array in labels}
    if len(widths) > 1:
        raise DataError(f"{path}: the parts' labels differ in shape: {sorted(widths)}.")
    splits = None
    if len(parts) > 1:
        codes = [PARTS.index(p) for p in parts]
        splits = np.repeat(np.array(codes, np.uint8), [lengths[p] for p in parts])
    sites, site_names = identities(file, parts, lengths, "sites")
    patients, _ = identities(file, parts, lengths, "patients")
    every_label = np.concatenate(labels)
    if len(every_label) == 0:
        raise DataError(f"{path} holds no images: expected at least one.")
    check_range(every_label, n_classes, path)
    return Contents(
        images=[file.on_demand(f"{p}_images") for p in parts],
        image_shape=shapes[parts[0]],
        labels=every_label,
        splits=splits,
        sites=sites,
        site_names=site_names,
        patients=patients,
    )


def check_range(labels: NDArray[Any], n_classes: int | None, path: Path) -> None:
    """Raise `DataError` for labels outside ``0 ... n_classes - 1``, or 0 and 1 if multilabel."""
    low, high = int(labels.min()), int(labels.max())
    if labels.ndim == 2:
        if n_classes is not None and labels.shape[1] != n_classes:
            raise DataError(
                f"{path}: {labels.shape[1]} labels an image; expected {n_classes}. Check the names."
            )
        if low < 0 or high > 1:
            raise DataError(
                f"{path}: labels of shape {labels.shape} are read as multilabel and must be 0 or "
                f"1; found {low}...{high}. One label an image has shape (n,) or (n, 1)."
            )
        return
    if low < 0:
        raise DataError(
            f"{path}: label {low} is negative; expected 0, 1, ... Leave unlabelled images out."
        )
    if n_classes is not None and high >= n_classes:
        n_wrong = int((labels >= n_classes).sum())
        raise DataError(
            f"{path}: label {high} is out of range in a dataset of {n_classes} classes "
            f"(0...{n_classes - 1}); {n_wrong} images have such a label. Correct them, or name "
            "all classes."
        )


def stored_shape(file: NpzFile, name: str, n_dims: int | None) -> tuple[int, ...]:
    """``(H, W, C)`` or ``(D, H, W, C)`` of an array of images; checks its type."""
    header = file.header(name)
    if header.dtype != np.uint8:
        advice = "scale the pixels to 0...255 and save them as uint8"
        if header.dtype.kind == "f" and (n_bad := _count_nonfinite(file, name)):
            raise DataError(
                f"{file.path}: {name} has {n_bad} pixels that are NaN or infinite (dtype "
                f"{header.dtype}); expected uint8. Repair them, then {advice}."
            )
        raise DataError(f"{file.path}: {name} has dtype {header.dtype}; expected uint8: {advice}.")
    shape = header.shape[1:]
    # A last axis of 1 or 3 is colour, unless that would leave fewer than two axes for the picture.
    coloured = len(shape) >= 3 and shape[-1] in (1, 3)
    if n_dims is not None:
        coloured = len(shape) == n_dims + 1
    full = shape if coloured else (*shape, 1)
    if len(full) not in (3, 4) or full[-1] not in (1, 3) or (n_dims and len(full) != n_dims + 1):
        raise DataError(
            f"{file.path}: {name} has shape {header.shape}; expected (n, H, W), (n, H, W, 3) or, "
            "for volumes, (n, D, H, W)."
        )
    if 0 in full:
        raise DataError(f"{file.path}: {name} has shape {header.shape}: images without pixels.")
    return tuple(full)


def _count_nonfinite(file: NpzFile, name: str) -> int:
    values = file.on_demand(name)().reshape(-1)
    return sum(
        int((~np.isfinite(values[start : start + _SCAN])).sum())
        for start in range(0, len(values), _SCAN)
    )


def _labels(file: NpzFile, name: str, n: int) -> NDArray[Any]:
    """``(n,)`` int64 classes, or ``(n, n_labels)`` uint8 where an image has several labels."""
    values = file.load(name)
    if len(values.shape) == 0 or len(values) != n:
        images = name.replace("labels", "images")
        raise DataError(
            f"{file.path}: {name} has shape {values.shape} and {images} holds {n} images; "
            "expected one row of labels for each image."
        )
    if values.ndim > 2:
        raise DataError(f"{file.path}: {name} has shape {values.shape}; expected (n,) or (n, 1).")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "f":
        wrong = values[~np.isfinite(values) | (values != np.floor(values))]
        if len(wrong):
            raise DataError(
                f"{file.path}: {name} holds {wrong[0]} ({len(wrong)} such values); labels must be "
                "whole numbers 0, 1, ..."
            )
    elif values.dtype.kind not in "iub":
        raise DataError(
            f"{file.path}: {name} has dtype {values.dtype}; expected whole numbers 0, 1, ... and "
            "the names in the parameter `labels`."
        )
    if values.ndim == 2:
        return values.astype(np.uint8) if _is_binary(values) else values.astype(np.int64)
    return values.astype(np.int64)


def _is_binary(values: NDArray[Any]) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def identities(
    file: NpzFile, parts: Sequence[str], lengths: dict[str, int], what: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Indices and sorted names of sites or patients; None when no part has them."""
    keys = [f"{p}_{what}" for p in parts]
    present = [key for key in keys if key in file]
    if not present:
        return None, ()
    if len(present) < len(keys):
        lacking = ", ".join(sorted(set(keys) - set(present)))
        raise DataError(
            f"{file.path} has {', '.join(present)} but not {lacking}: expected {what} for every "
            "part or for none."
        )
    columns = []
    for key, part in zip(keys, parts, strict=True):
        column = file.load(key)
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.shape != (lengths[part],) or column.dtype.kind not in "iuUS":
            raise DataError(
                f"{file.path}: {key} has dtype {column.dtype} and shape {column.shape}; expected "
                f"({lengths[part]},) whole numbers or text."
            )
        columns.append(np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column)
    if len({column.dtype.kind == "U" for column in columns}) > 1:
        raise DataError(f"{file.path}: {what} are numbers in one part and text in another.")
    names, indices = np.unique(np.concatenate(columns), return_inverse=True)
    return indices.reshape(-1).astype(np.int64), tuple(str(name) for name in names)
