"""NIfTI volumes with masks, as the Medical Segmentation Decathlon has them: ``msd:FOLDER``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DataMissing, DatasetInfo, Modality, Place
from medbench_datasets._nifti import read_header, read_voxels
from medbench_datasets._optional import needed
from medbench_datasets._people import Table, read_people
from medbench_datasets._store import manifest, remember, remembered
from medbench_datasets._user import located
from medbench_datasets._volumes import Scan, Volumes, delivered_shape, window_of

_ALL = -1


@dataclass(frozen=True)
class _Description:
    path: Path
    labels: dict[int, str]
    """Value and name of each structure, background left out, by value."""
    modalities: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


class DecathlonVolumes(Volumes):
    """Volumes with label maps; both are read when they are asked for."""

    def __init__(
        self,
        info: DatasetInfo,
        *,
        pairs: Sequence[tuple[str, str]],
        values: Sequence[int],
        channel: int,
        **rest: Any,
    ) -> None:
        files = [name for pair in pairs for name in pair]
        super().__init__(info, files=files, chosen=(channel, tuple(values)), **rest)
        self._pairs, self._values, self._channel = tuple(pairs), tuple(values), channel

    def _load(self, volume: int) -> NDArray[np.float32]:
        return self._load_modality(volume, 0)

    def _load_modality(self, volume: int, number: int) -> NDArray[np.float32]:
        channel = number if self._channel == _ALL else self._channel
        return read_voxels(self._root / self._pairs[volume][0], channel).astype(np.float32)

    def _load_map(self, volume: int) -> NDArray[np.integer[Any]]:
        return _label_map(self._root / self._pairs[volume][1], self._values)

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, n_labels, D, H, W)``, or ``(b, n_labels, H, W)`` of slices."""
        return self._masks(indices, self._load_map)


def open_msd(
    place: Place,
    *,
    argument: str,
    slices: bool = False,
    channel: int = 0,
    window: str | None = None,
    size: int | None = None,
    table: str | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    domain: str | None = None,
    modality: str | None = None,
    licence: str = "unstated",
    non_commercial: bool = False,
) -> DecathlonVolumes:
    """The volumes that ``dataset.json`` lists under ``training``, with their label maps.

    With `channel` -1 all channels of volumes with several are read, as aligned modalities with
    the names that ``dataset.json`` gives. Raises `DataError` naming the file for a description that
    lacks something, broken NIfTI files, label maps of another shape or place than their volume,
    values that are not described.
    """
    root = located(place, argument, kind="folder", example="msd:Task09_Spleen")
    needed("nibabel", str(root))
    chosen_window = window_of(window)
    about = _description(root / "dataset.json")
    known = _scan(root, about, place.cache)
    modalities = _aligned(root, about, known, chosen_window) if channel == _ALL else ()
    for pair, (_, channels) in zip(about.pairs, known.volumes, strict=True):
        if channel != _ALL and not 0 <= channel < channels:
            raise DataError(
                f"{root / pair[0]} has {channels} channels; channel={channel} is not among "
                f"0...{channels - 1}."
            )
    scans = [scan for scan, _ in known.volumes]
    names = [image for image, _ in about.pairs]
    labels = np.concatenate(known.present).astype(np.uint8)
    if not slices:
        labels = np.stack([found.any(axis=0) for found in known.present]).astype(np.uint8)
    people = read_people(
        place,
        root,
        Table(table, image_column, patient_column, site_column, split_column),
        names,
    )
    stated = "unstated"
    if channel == _ALL:
        stated = " and ".join(about.modalities) or stated
    elif channel < len(about.modalities):
        stated = about.modalities[channel]
    info = DatasetInfo(
        name=f"msd:{argument}",
        label_names=tuple(about.labels.values()),
        image_shape=delivered_shape(
            root, scans, size, slices=slices, channels=len(modalities) or 1
        ),
        domain=domain or f"user:{root.name}",
        modality=modality or stated,
        licence=licence,
        task_kind="segmentation",
        non_commercial=non_commercial,
        site_names=people.site_names,
        modalities=modalities,
    )
    return DecathlonVolumes(
        info,
        root=root,
        pairs=about.pairs,
        values=tuple(about.labels),
        channel=channel,
        cache=place.cache,
        scans=scans,
        labels=labels,
        people=people,
        slices=slices,
        window=chosen_window,
    )


def _aligned(
    root: Path, about: _Description, known: _Known, window: tuple[float, float] | None
) -> tuple[Modality, ...]:
    """The modality of each channel, by the names in ``dataset.json``."""
    names = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.") for name in about.modalities]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"{about.path}: modality is {', '.join(map(repr, about.modalities))}; to read all "
            "channels as modalities, names of letters and digits that differ are expected."
        )
    for (image, _), (_, channels) in zip(about.pairs, known.volumes, strict=True):
        if channels != len(names):
            raise DataError(
                f"{root / image} has {channels} channels, and {about.path.name} names "
                f"{len(names)} modalities ({', '.join(names) or 'none'}); expected as many. "
                "Correct 'modality' there, or choose one with channel=0."
            )
    if window is not None and len(names) > 1:
        raise DataError(
            f"{root}: one window does not fit {len(names)} modalities ({', '.join(names)}). Leave "
            "it out, so that each has grey levels of its own, or choose one with channel=0."
        )
    return tuple(Modality(name) for name in names)


def _description(path: Path) -> _Description:
    if not path.is_file():
        raise DataMissing(
            f"Not found: {path}. Expected the layout of the Medical Segmentation Decathlon: "
            "dataset.json, imagesTr/*.nii.gz and labelsTr/*.nii.gz."
        )
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not whole JSON: {error}. Copy it again.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}; expected the keys of a Decathlon.")
    modalities = data.get("modality", {})
    if not isinstance(modalities, dict):
        raise DataError(f'{path}: modality is {modalities!r}; expected {{"0": "CT"}} or alike.')
    return _Description(
        path,
        _labels(path, data.get("labels")),
        tuple(str(modalities[key]) for key in sorted(modalities, key=str)),
        _pairs(path, data.get("training")),
    )


def _labels(path: Path, labels: Any) -> dict[int, str]:
    expected = 'expected {"0": "background", "1": "spleen"} or alike'
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{path}: labels is {str(labels)[:60]!r}; {expected}.")
    found: dict[int, str] = {}
    for key, name in labels.items():
        if not str(key).isdigit() or not isinstance(name, str) or not name:
            raise DataError(f"{path}: labels has {key!r}: {name!r}; {expected}.")
        found[int(key)] = name
    found.pop(0, None)
    if not found or len(set(found.values())) < len(found):
        raise DataError(f"{path}: labels names no structure, or two alike; {expected}.")
    return dict(sorted(found.items()))


def _pairs(path: Path, training: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(training, list) or not training:
        raise DataError(
            f"{path}: training is {str(training)[:60]!r}; expected a list of "
            '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}.'
        )
    pairs: list[tuple[str, str]] = []
    for k, entry in enumerate(training):
        known = entry if isinstance(entry, dict) else {}
        names = [known.get("image"), known.get("label")]
        if not all(isinstance(name, str) and name for name in names):
            raise DataError(
                f"{path}: training[{k}] is {str(entry)[:60]!r}; expected image and label."
            )
        clean = [Path(str(name)).as_posix() for name in names]
        for name in clean:
            if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
                raise DataError(f"{path}: training[{k}] names {name!r}, outside the folder.")
            if not (path.parent / name).is_file():
                raise DataError(
                    f"{path.parent / name} is not there, and {path.name} lists it in "
                    f"training[{k}]. Put it there, or take the entry out."
                )
        pairs.append((clean[0], clean[1]))
    if len({image for image, _ in pairs}) < len(pairs):
        raise DataError(f"{path}: training lists a volume twice; expected each once.")
    return tuple(pairs)


@dataclass(frozen=True)
class _Known:
    volumes: list[tuple[Scan, int]]
    """Each scan, and its channels."""
    present: list[NDArray[np.bool_]]
    """Of each volume ``(D, n_labels)``: what occurs in which slice."""


def _scan(root: Path, about: _Description, cache: Path) -> _Known:
    """Headers of all volumes, and what is in their label maps; remembered while nothing changes."""
    files = [name for pair in about.pairs for name in pair]
    key = f"{manifest(root, files)} {list(about.labels)}"
    known = remembered(cache, "decathlon", key)
    if known is None:
        volumes = []
        for image, label in about.pairs:
            scan, affine, channels = read_header(root / image, image)
            other, other_affine, _ = read_header(root / label, label)
            if other.shape != scan.shape:
                raise DataError(
                    f"{root / label} has {other.shape} voxels (depth, height, width), and its "
                    f"volume {root / image} has {scan.shape}; expected the same."
                )
            if np.abs(affine - other_affine).max() > 0.01 * min(scan.spacing):
                raise DataError(
                    f"{root / label} lies elsewhere in space than its volume {root / image} "
                    f"(affines differ by up to {np.abs(affine - other_affine).max():.3g} mm); "
                    "expected the same. Resample one to the other."
                )
            found = _label_map(root / label, tuple(about.labels))
            slices = [sorted(set(np.unique(part).tolist()) - {0}) for part in found]
            volumes.append([image, scan.shape, scan.spacing, channels, slices])
        known = {"volumes": volumes}
        remember(cache, "decathlon", key, known)
    scans, present = [], []
    for name, shape, spacing, channels, slices in known["volumes"]:
        scans.append((Scan(name, tuple(shape), tuple(spacing)), int(channels)))
        table = np.zeros((shape[0], len(about.labels)), np.bool_)
        for k, found in enumerate(slices):
            table[k, [value - 1 for value in found]] = True
        present.append(table)
    return _Known(scans, present)


def _label_map(path: Path, values: Sequence[int]) -> NDArray[np.uint8]:
    """``(D, H, W)`` with 0 for background and k + 1 for the k-th of `values`."""
    found = read_voxels(path)
    whole = np.rint(found)
    if not np.isfinite(found).all() or (np.abs(found - whole) > 1e-3).any():
        raise DataError(f"{path} holds values that are not whole numbers; expected a label map.")
    levels, where = np.unique(whole, return_inverse=True)
    unknown = [v for v in levels.tolist() if v != 0 and int(v) not in values]
    if unknown:
        raise DataError(
            f"{path} holds the value {unknown[0]:g}; dataset.json describes 0 and "
            f"{', '.join(map(str, values))}. Describe it there, or correct the map."
        )
    table = np.array([0 if v == 0 else values.index(int(v)) + 1 for v in levels], np.uint8)
    found_map: NDArray[np.uint8] = table[where.reshape(found.shape)]
    return found_map
