"""COCO json files with their images, as detection or segmentation: ``coco:FOLDER``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DataMissing, DatasetInfo, Place
from medbench_datasets._coco_file import CocoAnnotation, CocoFile, CocoImage, read_coco
from medbench_datasets._images import image_shape, read_headers
from medbench_datasets._layout import PARTS, checked_indices
from medbench_datasets._people import Table, read_people
from medbench_datasets._store import combined
from medbench_datasets._targets import (
    BoxedImages,
    TargetFiles,
    boxes_within,
    read_sizes,
    resized,
)
from medbench_datasets._user import located

_TASKS = ("detection", "segmentation")


class OutlinedImages(TargetFiles):
    """Images whose masks are painted from polygons or run lengths when they are asked for."""

    def __init__(self, info: DatasetInfo, *, images: Sequence[CocoImage], **rest: Any) -> None:
        present = np.zeros((len(images), len(info.label_names)), np.bool_)
        for row, image in zip(present, images, strict=True):
            row[[info.label_names.index(a.category) for a in image.annotations]] = True
        super().__init__(info, present=present, **rest)
        self._images = tuple(images)

    def _target_digest(self) -> str:
        return combined(*((a.category, a.outline) for i in self._images for a in i.annotations))

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, n_labels, H, W)``; a class's objects together."""
        indices = checked_indices(indices, len(self))
        height, width = self.info.image_shape[:2]
        n_labels = len(self.info.label_names)
        masks = np.zeros((len(indices), n_labels, height, width), np.bool_)
        for row, index in enumerate(indices.tolist()):
            size = self._sizes[index].tolist()
            for annotation in self._images[index].annotations:
                label = self.info.label_names.index(annotation.category)
                masks[row, label] |= resized(_painted(annotation, size), (height, width))
        return masks


def open_coco(
    place: Place,
    *,
    argument: str,
    task: str = "detection",
    annotations: str | None = None,
    image_folder: str | None = None,
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
) -> BoxedImages | OutlinedImages:
    """Images below one folder with the boxes or outlines of its COCO files.

    The files are ``annotations/instances_*.json``, ``annotations/*.json``,
    ``*/_annotations.coco.json`` or ``*.json``, the first of these that exist; several are parts,
    told by the words train, val and test in their names. Crowds are ignored regions.
    """
    root = located(place, argument, kind="folder", example="coco:cells")
    if task not in _TASKS:
        raise DataError(f"task={task!r} is not known; expected {' or '.join(_TASKS)}.")
    files = [read_coco(path) for path in _json_files(root, annotations)]
    classes = files[0].categories
    for file in files[1:]:
        if file.categories != classes:
            raise DataError(
                f"{file.path} has the categories {', '.join(file.categories)}, and "
                f"{files[0].path} has {', '.join(classes)}; expected the same in each."
            )
    images = [image for file in files for image in file.images]
    if not classes or not images:
        raise DataError(f"{files[0].path} has no categories or no images; expected some of each.")
    names = [
        _image_name(root, file, image, image_folder) for file in files for image in file.images
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{root}: the image {twice} is listed twice; expected each image once.")
    shape = image_shape(read_headers(root, names, place.cache), size, channels)
    sizes = read_sizes(root, names, place.cache)
    for image, name, true_size in zip(images, names, sizes.tolist(), strict=True):
        if image.size is not None and image.size != tuple(true_size):
            raise DataError(
                f"{root / name} has {true_size[1]} x {true_size[0]} pixels, and its COCO file says "
                f"{image.size[1]} x {image.size[0]}. Boxes and outlines would not fit: put the "
                "right image there, or correct the file."
            )
    people = read_people(
        place,
        root,
        Table(table, image_column, patient_column, site_column, split_column),
        names,
    )
    if people.splits is None:
        people = replace(people, splits=_splits(files))
    info = DatasetInfo(
        name=f"coco:{argument}",
        label_names=classes,
        image_shape=shape,
        domain=domain or f"user:{root.name}",
        modality=modality,
        licence=licence,
        task_kind="segmentation" if task == "segmentation" else "detection",
        non_commercial=non_commercial,
        site_names=people.site_names,
    )
    common: dict[str, Any] = {
        "root": root,
        "names": names,
        "cache": place.cache,
        "sizes": sizes,
        "people": people,
    }
    boxes = [
        boxes_within(
            [a.box for a in image.annotations],
            [classes.index(a.category) for a in image.annotations],
            [a.crowd for a in image.annotations],
            size=true_size,
            where=[a.where for a in image.annotations],
        )
        for image, true_size in zip(images, sizes.tolist(), strict=True)
    ]
    if task == "detection":
        return BoxedImages(info, boxes=boxes, **common)
    for image, true_size in zip(images, sizes.tolist(), strict=True):
        for annotation in image.annotations:
            _check_outline(annotation, true_size)
    return OutlinedImages(info, images=images, **common)


def _json_files(root: Path, annotations: str | None) -> list[Path]:
    if annotations is not None:
        found = [root / name.strip() for name in annotations.split(",")]
        for path in found:
            if not path.is_file():
                raise DataMissing(f"Not found: {path}, named in the parameter `annotations`.")
        return found
    patterns = (
        "annotations/instances_*.json",
        "annotations/*.json",
        "*/_annotations.coco.json",
        "*.json",
    )
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if found:
            return found
    raise DataMissing(
        f"Not found: {root} has none of {', '.join(patterns)}. Put the COCO file there, or name it "
        "in the parameter `annotations`."
    )


def _part(path: Path) -> int | None:
    """The part that a file's name tells; its folder's name for ``_annotations.coco.json``."""
    word = path.parent.name if path.name.startswith("_annotations") else path.stem
    found = [k for k, part in enumerate(PARTS) if part in word.lower()]
    return found[0] if len(found) == 1 else None


def _splits(files: Sequence[CocoFile]) -> NDArray[np.uint8] | None:
    if len(files) == 1:
        return None
    parts = [_part(file.path) for file in files]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len(set(known)) < len(known) or 2 not in known:
        raise DataError(
            f"{files[0].path.parent} has {', '.join(file.path.name for file in files)}; expected "
            "one file for each of train, val and test (test at least), told by these words in "
            "their names, or one file alone. Name those to use in the parameter `annotations`."
        )
    return np.repeat(np.array(known, np.uint8), [len(file.images) for file in files])


def _image_name(root: Path, file: CocoFile, image: CocoImage, folder: str | None) -> str:
    """Where below `root` an image lies: in the folder given, or one of the usual ones."""
    if folder is not None:
        candidates = [root / folder]
    else:
        part = file.path.stem.removeprefix("instances_")
        candidates = [
            file.path.parent,
            root,
            root / "images",
            root / part,
            root / "images" / part,
        ]
    for candidate in candidates:
        path = candidate / image.name
        if path.is_file():
            if not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{file.path}: the image {image.name!r} lies outside {root}.")
            return path.relative_to(root).as_posix()
    raise DataError(
        f"{file.path} lists the image {image.name!r}, and it is not in "
        f"{', '.join(str(c) for c in candidates)}. Put it there, or name the folder in "
        "`image_folder`."
    )


def _check_outline(annotation: CocoAnnotation, size: Sequence[int]) -> None:
    """Raise `DataError` for an outline that does not fit its image, without painting it."""
    outline = annotation.outline
    if isinstance(outline, list) and outline:
        for polygon in outline:
            numbers = isinstance(polygon, list) and all(isinstance(v, int | float) for v in polygon)
            if not numbers or len(polygon) < 6 or len(polygon) % 2:
                raise DataError(
                    f"{annotation.where}: a polygon is {str(polygon)[:60]}; expected x, y of three "
                    "corners or more."
                )
            corners = np.array(polygon, np.float64).reshape(-1, 2)
            over = corners - np.array([size[1], size[0]])
            if not np.isfinite(corners).all() or corners.min() < -1 or over.max() > 1:
                raise DataError(
                    f"{annotation.where}: the outline reaches from {corners.min(axis=0).tolist()} "
                    f"to {corners.max(axis=0).tolist()}, outside its image of "
                    f"{size[1]} x {size[0]}."
                )
        return
    if isinstance(outline, dict) and outline.get("counts") and outline.get("size"):
        if list(outline["size"]) != list(size):
            raise DataError(
                f"{annotation.where}: the mask has {outline['size']} (height, width), and its "
                f"image {list(size)}; expected the same."
            )
        counts = outline["counts"]
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            raise DataError(
                f"{annotation.where}: the run lengths add up to {sum(counts)} pixels; expected "
                f"{size[0] * size[1]}."
            )
        return
    raise DataError(
        f"{annotation.where} has segmentation {str(outline)[:60]!r}; expected polygons or run "
        "lengths. For boxes alone say task=detection."
    )


def _painted(annotation: CocoAnnotation, size: Sequence[int]) -> NDArray[np.bool_]:
    """``(H, W)`` of the file."""
    from pycocotools import mask

    outline = annotation.outline
    height, width = size
    try:
        if isinstance(outline, list):
            runs = mask.merge(mask.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            runs = mask.frPyObjects(outline, height, width)
        else:
            runs = outline
        with warnings.catch_warnings():
            # pycocotools' arrays do not know numpy 2's `copy` yet, which changes nothing.
            warnings.simplefilter("ignore", DeprecationWarning)
            painted = mask.decode(runs)
    except Exception as error:  # compiled code raises whatever it likes
        raise DataError(
            f"{annotation.where}: the outline cannot be painted ({type(error).__name__}: {error})."
        ) from error
    found: NDArray[np.bool_] = painted.astype(np.bool_)
    return found
