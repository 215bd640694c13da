"""A table of aligned images as a dataset: ``aligned:PATH``, with one column a modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Dataset, Modality, Place
from medbench_datasets._images import ImageFiles, header_of
from medbench_datasets._store import combined, manifest, remember, remembered
from medbench_datasets._user import located
from medbench_datasets.table import open_table


def open_aligned(
    place: Place,
    *,
    argument: str,
    modalities: str = "",
    label_column: str = "label",
    patient_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    time_column: str | None = None,
    images: str | None = None,
    drop_unlabelled: bool = False,
    drop_labels: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> AlignedImages:
    """The rows of a table, each with a file for every modality; all else as `open_table` has it.

    `modalities` are columns, ``ct, mri``, or names with columns, ``ct=ct_file, mri=mri_file``.
    Raises `DataError` that names the files where those of a row are not of one size, and what
    `open_table` raises.
    """
    path = located(place, argument, kind="file", example="aligned:scans/index.csv")
    columns = _columns(path, modalities)
    by_name = {
        name: open_table(
            place,
            argument=argument,
            image_column=column,
            label_column=label_column,
            patient_column=patient_column,
            site_column=site_column,
            split_column=split_column,
            time_column=time_column,
            images=images,
            drop_unlabelled=drop_unlabelled,
            drop_labels=drop_labels,
            size=size,
            channels=channels,
            domain=domain,
            modality=modality,
            licence=licence,
            non_commercial=non_commercial,
        )
        for name, column in columns.items()
    }
    _check_sizes(by_name, place.cache)
    return AlignedImages(f"aligned:{argument}", by_name)


@final
class AlignedImages(Dataset):
    """Images of the same rows and shape side by side, each modality after the other."""

    def __init__(self, name: str, by_name: Mapping[str, ImageFiles]) -> None:
        """`by_name`: the images of each modality, of one table."""
        self._by_name = dict(by_name)
        first = next(iter(by_name.values()))
        widths = [images.info.image_shape[-1] for images in by_name.values()]
        stated = first.info.modality
        self.info = replace(
            first.info,
            name=name,
            image_shape=(*first.info.image_shape[:-1], sum(widths)),
            modality=" and ".join(by_name) if stated == "unstated" else stated,
            modalities=tuple(map(Modality, by_name, widths)),
        )
        self.labels, self.splits = first.labels, first.splits
        self.sites, self.patients, self.times = first.sites, first.patients, first.times

    @property
    def digest(self) -> str:
        """BLAKE2b over the names and digests of all modalities."""
        parts = [(name, images.digest) for name, images in self._by_name.items()]
        return combined("aligned", 1, *(word for part in parts for word in part))

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), H, W, C)`` uint8, C over all modalities."""
        parts = [images.read(indices) for images in self._by_name.values()]
        return np.concatenate(parts, axis=-1)


def _columns(path: Path, modalities: str) -> dict[str, str]:
    """Name and column of each modality."""
    words = [word.partition("=") for word in modalities.split(",")]
    found = {name.strip(): (column if sign else name).strip() for name, sign, column in words}
    if len(found) < 2 or len(found) < len(words) or not all(found) or not all(found.values()):
        raise DataError(
            f"{path}: modalities={modalities!r} does not name two or more modalities that differ; "
            "expected columns, as in 'ct, mri', or names with their columns, as in 'ct=ct_file, "
            "mri=mri_file'."
        )
    return found


def _check_sizes(by_name: Mapping[str, ImageFiles], cache: Path) -> None:
    """Refuse rows whose files are not of one size; remembered while no file changes."""
    (first, images), *others = by_name.items()
    for name, other in others:
        key = f"{manifest(images.root, images.names)} {manifest(other.root, other.names)}"
        if remembered(cache, "aligned", key) is not None:
            continue
        for one, two in zip(images.names, other.names, strict=True):
            sizes = header_of(images.root / one)[1], header_of(other.root / two)[1]
            if sizes[0] != sizes[1]:
                (h, w), (h2, w2) = sizes
                raise DataError(
                    f"{other.root / two} ({name}) has {h2}x{w2} pixels, and {images.root / one} "
                    f"({first}) of the same row {h}x{w} (height x width); aligned modalities show "
                    "the same place in the same pixel. Register and resample one to the other."
                )
        remember(cache, "aligned", key, {"same": True})
