"""Images with label maps of the same names: ``masks:FOLDER``, semantic or instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medbench.api import Boxes, DataError, DatasetInfo, Place
from medbench_datasets._images import image_shape, read_headers
from medbench_datasets._layout import checked_indices
from medbench_datasets._people import Table, read_people
from medbench_datasets._store import manifest, remember, remembered, tree_digest
from medbench_datasets._targets import TargetFiles, by_stem, read_sizes, resized
from medbench_datasets._user import located, split_names

_MAPS = (".png", ".tif", ".tiff", ".bmp")
_KINDS = ("semantic", "instance")
_TASKS = ("segmentation", "detection")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class MappedImages(TargetFiles):
    """Images whose masks, or boxes of instances, are read from label maps when asked for."""

    def __init__(
        self,
        info: DatasetInfo,
        *,
        maps: Sequence[str],
        values: Sequence[int] | None,
        **rest: Any,
    ) -> None:
        super().__init__(info, **rest)
        self._maps = tuple(maps)
        self._values = values

    def _target_digest(self) -> str:
        values = "instances" if self._values is None else list(self._values)
        return f"{values} {tree_digest(self._root, self._maps, self._cache)}"

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, n_labels, H, W)``."""
        indices = checked_indices(indices, len(self))
        space = self.info.image_shape[:2]
        masks = np.zeros((len(indices), len(self.info.label_names), *space), np.bool_)
        for row, index in enumerate(indices.tolist()):
            found = resized(read_map(self._root / self._maps[index]), space)
            if self._values is None:
                masks[row, 0] = found > 0
            else:
                masks[row] = found == np.array(self._values)[:, None, None]
        return masks

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """A box around each instance, in pixels of the images as `read` gives them.

        Raises `ContractError` for semantic maps, which do not tell objects apart.
        """
        if self._values is not None:
            return super().read_boxes(indices)
        found = []
        for index in checked_indices(indices, len(self)).tolist():
            rows = instance_boxes(read_map(self._root / self._maps[index]))
            n = len(rows)
            found.append(
                Boxes(rows * self._scale(index), np.zeros(n, np.int64), np.zeros(n, np.bool_))
            )
        return found


def open_masks(
    place: Place,
    *,
    argument: str,
    kind: str = "semantic",
    task: str = "segmentation",
    labels: str | None = None,
    image_folder: str = "images",
    mask_folder: str = "labels",
    table: str | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> MappedImages:
    """Images of one folder with label maps of the same names in another.

    ``semantic``: a pixel's value is its class, 0 background; with one class any other value will
    do (0 and 255, say). ``instance``: each object has a value of its own, and all are of one class;
    such maps give boxes too, with ``task`` = ``detection``.
    """
    root = located(place, argument, kind="folder", example="masks:nuclei")
    if kind not in _KINDS or task not in _TASKS or (task == "detection" and kind != "instance"):
        raise DataError(
            f"kind={kind!r} and task={task!r} do not go together; expected kind semantic or "
            "instance, task segmentation, or detection with kind=instance."
        )
    images = by_stem(_folder(root, image_folder, "image_folder"))
    maps = by_stem(_folder(root, mask_folder, "mask_folder"), _MAPS)
    _match(root, image_folder, mask_folder, images.keys(), maps.keys())
    names = [path.relative_to(root).as_posix() for path in images.values()]
    map_names = [maps[stem].relative_to(root).as_posix() for stem in images]
    shape = image_shape(read_headers(root, names, place.cache), size, channels)
    sizes = read_sizes(root, names, place.cache)
    scanned = _scan(root, map_names, place.cache, instances=kind == "instance")
    for name, map_name, true_size, (map_size, _) in zip(
        names, map_names, sizes.tolist(), scanned, strict=True
    ):
        if true_size != map_size:
            raise DataError(
                f"{root / map_name} has {map_size[1]} x {map_size[0]} pixels, and its image "
                f"{root / name} has {true_size[1]} x {true_size[0]}; expected the same size."
            )
    seen = [found for _, found in scanned]
    classes, values = _classes(root / mask_folder, kind, labels, seen)
    if values is None:
        present = np.array([[bool(found)] for found in seen])
    else:
        present = np.array([[value in found for value in values] for found in seen])
    people = read_people(
        place,
        root,
        Table(table, image_column, patient_column, site_column, split_column),
        names,
    )
    info = DatasetInfo(
        name=f"masks:{argument}",
        label_names=classes,
        image_shape=shape,
        domain=domain or f"user:{root.name}",
        modality=modality,
        licence=licence,
        task_kind="detection" if task == "detection" else "segmentation",
        non_commercial=non_commercial,
        site_names=people.site_names,
    )
    return MappedImages(
        info,
        maps=map_names,
        values=values,
        root=root,
        names=names,
        cache=place.cache,
        present=present,
        sizes=sizes,
        people=people,
    )


def read_map(path: Path) -> NDArray[np.int32]:
    """A label map ``(H, W)``. Raises `DataError` when it is broken, or coloured."""
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP")) as file:
            mode = file.mode
            values = np.asarray(file)
    except _BROKEN as error:
        raise DataError(f"{path} cannot be decoded: {error}. Replace it or take it out.") from error
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise DataError(
            f"{path} has pixels of type {mode}; expected one whole number a pixel (greyscale of 8 "
            "or 16 bits, or a palette). Save classes as numbers, not as colours."
        )
    return values.astype(np.int32)


def instance_boxes(found: NDArray[np.int32]) -> NDArray[np.float64]:
    """``(k, 4)`` x0, y0, x1, y1 around each value above 0, in the order of values."""
    rows, columns = np.nonzero(found)
    if not len(rows):
        return np.zeros((0, 4))
    _, which = np.unique(found[rows, columns], return_inverse=True)
    n = int(which.max()) + 1
    low = np.full((n, 2), np.inf)
    high = np.full((n, 2), -np.inf)
    places = np.stack([columns, rows], axis=1).astype(np.float64)
    np.minimum.at(low, which, places)
    np.maximum.at(high, which, places + 1)
    return np.concatenate([low, high], axis=1)


def _folder(root: Path, name: str, parameter: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
        raise DataError(
            f"{root} has no folder {name!r} (it has {there}). Name the right one in `{parameter}`."
        )
    return folder


def _match(root: Path, images: str, masks: str, has_image: Any, has_mask: Any) -> None:
    if not has_image:
        raise DataError(f"{root / images} holds no images; expected one for each label map.")
    for here, there, what, lacking in (
        (has_image, masks, "label map", set(has_image) - set(has_mask)),
        (has_mask, images, "image", set(has_mask) - set(has_image)),
    ):
        if lacking:
            raise DataError(
                f"{root / there} holds no {what} named {sorted(lacking)[0]!r} ({len(lacking)} of "
                f"{len(here)} are missing); expected images and label maps of the same names."
            )


def _scan(
    root: Path, names: Sequence[str], cache: Path, *, instances: bool
) -> list[tuple[list[int], list[int]]]:
    """Size and values (above 0) of every map, remembered while none changes.

    Of instances only whether there are any: their numbers mean nothing.
    """
    key = f"{manifest(root, names)} {instances}"
    known = remembered(cache, "label-maps", key)
    if known is None:
        maps = []
        for name in names:
            found = read_map(root / name)
            values = [v for v in np.unique(found).tolist() if v != 0]
            maps.append([list(found.shape), values[:1] if instances else values])
        known = {"maps": maps}
        remember(cache, "label-maps", key, known)
    return [(list(size), list(values)) for size, values in known["maps"]]


def _classes(
    folder: Path, kind: str, labels: str | None, seen: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], list[int] | None]:
    """Names, and the value of each; None as values for instances."""
    names = split_names(labels) if labels else None
    values = sorted({value for found in seen for value in found})
    if not values:
        raise DataError(f"{folder}: every label map is empty (0); expected other values in some.")
    if kind == "instance":
        if names is not None and len(names) > 1:
            raise DataError(
                f"{folder}: instances are of one class, and labels names {len(names)}: "
                f"{', '.join(names)}. Name one, or say kind=semantic."
            )
        return names or ("object",), None
    if names is None:
        if len(values) > 64:
            raise DataError(
                f"{folder}: the label maps hold {len(values)} different values; if each is an "
                "object of its own say kind=instance, else name the classes in `labels`."
            )
        return tuple(f"class {value}" for value in values), values
    if len(names) == 1 and len(values) == 1:
        return names, values
    if values[0] < 1 or values[-1] > len(names):
        wrong = next(v for v in values if not 1 <= v <= len(names))
        raise DataError(
            f"{folder}: a label map holds the value {wrong}; expected 0 for background and "
            f"1...{len(names)} for {', '.join(names)}."
        )
    return names, list(range(1, len(names) + 1))
