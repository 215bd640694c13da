"""Folders in the layout of Pascal VOC as a detection dataset: ``voc:FOLDER``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.api import Boxes, DataError, DatasetInfo, Place
from medbench_datasets._images import image_shape, read_headers
from medbench_datasets._people import Table, read_people
from medbench_datasets._targets import BoxedImages, boxes_within, by_stem, read_sizes
from medbench_datasets._user import located

_LISTS = {"train": 0, "val": 1, "test": 2, "trainval": 0}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Annotation:
    path: Path
    rows: tuple[tuple[float, ...], ...]
    names: tuple[str, ...]
    difficult: tuple[bool, ...]
    size: tuple[int, int] | None


def open_voc(
    place: Place,
    *,
    argument: str,
    origin: int = 1,
    lists: bool = True,
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
) -> BoxedImages:
    """Images of ``JPEGImages`` with the boxes of ``Annotations``, split by ``ImageSets/Main``.

    Classes are the objects' names, sorted; objects marked difficult are ignored regions. `origin`
    is the number of the first pixel: VOC counts from 1, with the last pixel inside the box.
    Raises `DataError` naming the file for XML that is broken or lacks something, images that are
    missing or of another size, boxes outside the image.
    """
    root = located(place, argument, kind="folder", example="voc:bccd")
    stems, splits = _listed(root) if lists else (None, None)
    annotated = {p.stem: p for p in sorted(_inside(root, "Annotations").glob("*.xml"))}
    if stems is None:
        stems = list(annotated)
    if not stems:
        raise DataError(f"{root / 'Annotations'} holds no .xml files; expected one an image.")
    lost = [stem for stem in stems if stem not in annotated]
    if lost:
        raise DataError(
            f"{root / 'Annotations' / lost[0]}.xml is not there, and ImageSets/Main lists "
            f"{lost[0]!r} ({len(lost)} of {len(stems)} are so). Put it there, or say lists=false."
        )
    read = [_annotation(annotated[stem]) for stem in stems]
    images = by_stem(_inside(root, "JPEGImages"))
    lost = [stem for stem in stems if stem not in images]
    if lost:
        raise DataError(
            f"{annotated[lost[0]]} has no image: {root / 'JPEGImages'} holds no {lost[0]}.jpg or "
            f"other image of that name ({len(lost)} of {len(stems)} lack one)."
        )
    names = [images[stem].relative_to(root).as_posix() for stem in stems]
    shape = image_shape(read_headers(root, names, place.cache), size, channels)
    sizes = read_sizes(root, names, place.cache)
    classes = tuple(sorted({name for found in read for name in found.names}))
    if not classes:
        raise DataError(f"{root / 'Annotations'}: no file holds an <object>; expected boxes.")
    people = read_people(
        place,
        root,
        Table(table, image_column, patient_column, site_column, split_column),
        names,
    )
    if people.splits is None:
        people = replace(people, splits=splits)
    info = DatasetInfo(
        name=f"voc:{argument}",
        label_names=classes,
        image_shape=shape,
        domain=domain or f"user:{root.name}",
        modality=modality,
        licence=licence,
        task_kind="detection",
        non_commercial=non_commercial,
        site_names=people.site_names,
    )
    boxes = [
        _boxes(found, true_size, classes, origin)
        for found, true_size in zip(read, sizes.tolist(), strict=True)
    ]
    return BoxedImages(
        info,
        boxes=boxes,
        root=root,
        names=names,
        cache=place.cache,
        sizes=sizes,
        people=people,
    )


def _inside(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise DataError(
            f"{root} has no folder {name}; expected Annotations/*.xml and JPEGImages/* as Pascal "
            "VOC has them."
        )
    return folder


def _listed(root: Path) -> tuple[list[str] | None, NDArray[np.uint8] | None]:
    """Images that the lists name, and the part of each; None without lists."""
    folder = root / "ImageSets" / "Main"
    present = [name for name in _LISTS if (folder / f"{name}.txt").is_file()]
    if "trainval" in present and "train" in present:
        present.remove("trainval")
    if not present:
        return None, None
    if len(present) > 1 and "test" not in present:
        raise DataError(
            f"{folder} lists {' and '.join(present)} but no test images; expected test.txt as "
            "well, or say lists=false to use all images as one part."
        )
    parts: dict[str, int] = {}
    for name in present:
        path = folder / f"{name}.txt"
        try:
            lines = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as a list of images: {error}.") from error
        for stem in lines:
            if stem in parts:
                raise DataError(
                    f"{path} lists {stem!r}, which is listed already; expected each image once, in "
                    "one of train, val and test."
                )
            parts[stem] = _LISTS[name]
    splits = np.array(list(parts.values()), np.uint8)
    return list(parts), splits if len(present) > 1 else None


def _annotation(path: Path) -> _Annotation:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    # Entities can make a small file huge, and annotations never need them.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{path} declares a document type or entities; expected a plain VOC file.")
    try:
        tree = ElementTree.fromstring(content)  # noqa: S314
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path} is not whole XML: {error} ({len(content)} bytes). Write or copy it again."
        ) from error
    if tree.tag != "annotation":
        raise DataError(f"{path} begins with <{tree.tag}>; expected <annotation> as in Pascal VOC.")
    rows, names, difficult = [], [], []
    for k, thing in enumerate(tree.findall("object"), 1):
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {k} has no <name>; expected its class.")
        rows.append(tuple(_number(path, thing, k, name, corner) for corner in _CORNERS))
        names.append(name)
        difficult.append((thing.findtext("difficult") or "0").strip() not in ("0", ""))
    return _Annotation(path, tuple(rows), tuple(names), tuple(difficult), _size(path, tree))


def _number(path: Path, thing: ElementTree.Element, k: int, name: str, corner: str) -> float:
    text = thing.findtext(f"bndbox/{corner}")
    try:
        return float(text or "")
    except ValueError as error:
        seen = "is missing" if text is None else f"is {text!r}"
        raise DataError(
            f"{path}: object {k} ({name}): <{corner}> {seen}; expected a number inside <bndbox>."
        ) from error


def _size(path: Path, tree: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width as stated; None when they are not, or are 0 as some tools write."""
    found = [(tree.findtext(f"size/{what}") or "0").strip() for what in ("height", "width")]
    if not all(text.isdigit() for text in found):
        raise DataError(f"{path}: <size> says {' x '.join(found)}; expected whole numbers.")
    height, width = int(found[0]), int(found[1])
    return (height, width) if height and width else None


def _boxes(found: _Annotation, size: Sequence[int], classes: Sequence[str], origin: int) -> Boxes:
    if found.size is not None and found.size != tuple(size):
        raise DataError(
            f"{found.path} is for an image of {found.size[1]} x {found.size[0]}, and the image has "
            f"{size[1]} x {size[0]}. The boxes would not fit: put the right image there, or "
            "correct the file."
        )
    # From the first and last pixel to the edges of the box.
    rows = [
        (r[0] - origin, r[1] - origin, r[2] + 1 - origin, r[3] + 1 - origin) for r in found.rows
    ]
    where = [f"{found.path}, object {k} ({name})" for k, name in enumerate(found.names, 1)]
    return boxes_within(
        rows,
        [classes.index(name) for name in found.names],
        found.difficult,
        size=size,
        where=where,
    )
