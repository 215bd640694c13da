"""An ``.npz`` file of images with masks, as MedSegBench has them: ``npz-masks:PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DatasetInfo, Place
from medbench_datasets._layout import (
    PARTS,
    Contents,
    NpzDataset,
    checked_indices,
    identities,
    stored_shape,
)
from medbench_datasets._npz import ArrayOnDemand, NpzFile
from medbench_datasets._store import combined, file_digest, remember, remembered
from medbench_datasets._user import located, split_names

_MASK_KEYS = ("label", "masks", "labels")


class NpzMasks(NpzDataset):
    """Images and label maps in one file, read from disk as they are asked for."""

    def __init__(
        self,
        info: DatasetInfo,
        contents: Contents,
        path: Path,
        cache: Path,
        *,
        maps: Sequence[ArrayOnDemand],
        values: Sequence[int],
        category: str | None,
    ) -> None:
        super().__init__(info, contents, path, cache)
        self._maps, self._values, self._category = tuple(maps), tuple(values), category

    @property
    def digest(self) -> str:
        """BLAKE2b of the file, of the images chosen from it and the values used."""
        content = file_digest(self._path, self._cache).blake2b
        return combined("npz-masks", 1, content, self._category, self._values)

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, n_labels, H, W)`` or ``(b, n_labels, D, H, W)``."""
        indices = checked_indices(indices, len(self))
        space = self.info.image_shape[:-1]
        masks = np.zeros((len(indices), len(self._values), *space), np.bool_)
        values = np.array(self._values).reshape(-1, *([1] * len(space)))
        for part, start, stop in zip(self._maps, self._starts[:-1], self._starts[1:], strict=True):
            rows = np.flatnonzero((indices >= start) & (indices < stop))
            for row in rows.tolist():
                masks[row] = part()[indices[row] - start].reshape(space) == values
        return masks


def open_npz_masks(
    place: Place,
    *,
    argument: str,
    labels: str | None = None,
    category: str | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> NpzMasks:
    """Images ``{part}_images`` with label maps ``{part}_label`` (or ``{part}_masks``) of one file.

    Parts are train, val and test. A value is a class, 0 background; a single other value may be
    anything (255, say). `category` chooses among the sets of a file that holds several, as in
    ``train_images_1``. Sites and patients as in ``npz:``.
    """
    path = located(place, argument, kind="file", example="npz-masks:kvasir_128.npz")
    file = NpzFile(path, place.cache)
    suffix = f"_{category}" if category else ""
    parts = [p for p in PARTS if f"{p}_images{suffix}" in file]
    if not parts:
        raise DataError(
            f"{path} holds {', '.join(file.names) or 'nothing'}; expected train_images{suffix}, "
            f"train_label{suffix} and likewise for val and test."
        )
    if len(parts) > 1 and "test" not in parts:
        raise DataError(
            f"{path} has the parts {' and '.join(parts)} but no test part: expected test_images "
            "as well, or everything in one part."
        )
    shapes = {p: stored_shape(file, f"{p}_images{suffix}", None) for p in parts}
    if len(set(shapes.values())) > 1:
        seen = ", ".join(f"{p} {shape}" for p, shape in shapes.items())
        raise DataError(f"{path}: image shapes differ between parts ({seen}); expected one shape.")
    lengths = {p: file.header(f"{p}_images{suffix}").shape[0] for p in parts}
    if sum(lengths.values()) == 0:
        raise DataError(f"{path} holds no images: expected at least one.")
    shape = shapes[parts[0]]
    keys = {p: _mask_key(file, p, suffix) for p in parts}
    for p in parts:
        _check_maps(file, keys[p], lengths[p], shape)
    maps = [file.on_demand(keys[p]) for p in parts]
    seen_values = _scan(path, place.cache, suffix, maps)
    names, values = _classes(path, labels, seen_values)
    present = np.array([[v in found for v in values] for found in seen_values], np.uint8)
    sites, site_names = identities(file, parts, lengths, "sites")
    patients, _ = identities(file, parts, lengths, "patients")
    codes = np.array([PARTS.index(p) for p in parts], np.uint8)
    contents = Contents(
        images=[file.on_demand(f"{p}_images{suffix}") for p in parts],
        image_shape=shape,
        labels=present,
        splits=np.repeat(codes, [lengths[p] for p in parts]) if len(parts) > 1 else None,
        sites=sites,
        site_names=site_names,
        patients=patients,
    )
    info = DatasetInfo(
        name=f"npz-masks:{argument}",
        label_names=names,
        image_shape=shape,
        domain=domain or f"user:{path.stem}",
        modality=modality,
        licence=licence,
        task_kind="segmentation",
        non_commercial=non_commercial,
        site_names=site_names,
    )
    return NpzMasks(info, contents, path, place.cache, maps=maps, values=values, category=category)


def _mask_key(file: NpzFile, part: str, suffix: str) -> str:
    for key in _MASK_KEYS:
        name = f"{part}_{key}{suffix}"
        if name in file:
            return name
    raise DataError(
        f"{file.path} has {part}_images{suffix} but neither {part}_label{suffix} nor "
        f"{part}_masks{suffix} (it holds {', '.join(file.names)}); expected masks for every part."
    )


def _check_maps(file: NpzFile, name: str, n: int, shape: Sequence[int]) -> None:
    header = file.header(name)
    wanted = (n, *shape[:-1])
    if header.shape not in (wanted, (*wanted, 1)) or header.dtype.kind not in "biu":
        raise DataError(
            f"{file.path}: {name} has shape {header.shape} and dtype {header.dtype}; expected "
            f"whole numbers of shape {wanted}, a value for each pixel of each image."
        )


def _scan(path: Path, cache: Path, suffix: str, maps: Sequence[ArrayOnDemand]) -> list[list[int]]:
    """The values above 0 in each map, remembered while the file stays the same."""
    key = f"{file_digest(path, cache).blake2b} {suffix}"
    known = remembered(cache, "npz-masks", key)
    if known is None:
        found: list[list[int]] = []
        for part in maps:
            for image in part():
                values = np.unique(image).astype(np.int64).tolist()
                if values[0] < 0 or len(values) > 257:
                    raise DataError(
                        f"{path}: image {len(found)} has a map with the values {values[0]}..."
                        f"{values[-1]}; expected 0 for background and at most 256 classes above."
                    )
                found.append([value for value in values if value])
        known = {"values": found}
        remember(cache, "npz-masks", key, known)
    return [list(values) for values in known["values"]]


def _classes(
    path: Path, labels: str | None, seen: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], list[int]]:
    values = sorted({value for found in seen for value in found})
    if not values:
        raise DataError(f"{path}: every mask is empty (0); expected other values in some.")
    if labels is None:
        return tuple(f"class {value}" for value in values), values
    names = split_names(labels)
    if len(names) == 1 and len(values) == 1:
        return names, values
    if values[-1] > len(names):
        raise DataError(
            f"{path}: a mask holds the value {values[-1]}; expected 0 for background and "
            f"1...{len(names)} for {', '.join(names)}."
        )
    return names, list(range(1, len(names) + 1))
