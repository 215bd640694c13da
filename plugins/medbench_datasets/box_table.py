"""A CSV table of images with boxes: ``boxes:PATH``, with patients, sites and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.api import DataError, DatasetInfo, Place
from medbench_datasets._images import image_shape, read_headers
from medbench_datasets._people import People
from medbench_datasets._table import (
    NO_SITE,
    Columns,
    Row,
    image_folder,
    indexed,
    named_column,
    optional_column,
    read_cells,
    refuse_empty,
    rows_of,
    split_codes,
    times_of,
)
from medbench_datasets._targets import BoxedImages, boxes_within, read_sizes
from medbench_datasets._user import located, split_names

_PARTS = ("x", "y", "w", "h")


@dataclass(frozen=True)
class _Box:
    line: int
    label: str
    numbers: tuple[float, float, float, float]


def open_boxes(
    place: Place,
    *,
    argument: str,
    prefixes: str | None = None,
    label_column: str = "label",
    image_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    time_column: str | None = None,
    images: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> BoxedImages:
    """The images a table lists, with boxes as left, top, width and height in pixels.

    With `prefixes` (``right, left``) a row is an image and its boxes are in the columns
    ``right_x``, ``right_y``, ``right_w``, ``right_h`` and so on, each a class; an empty cell in all
    four means no such box. Without, a row is a box in the columns ``x, y, w, h`` and
    `label_column`; a row with all five empty names an image without boxes.
    """
    path = located(place, argument, kind="file", example="boxes:chest_sites/index.csv")
    header, cells = read_cells(path)
    columns = Columns(
        image=named_column(path, header, image_column, ("image", "file"), "image_column"),
        label=None,
        patient=optional_column(path, header, patient_column, "patient"),
        site=optional_column(path, header, site_column, "site"),
        split=optional_column(path, header, split_column, "split"),
        time=named_column(path, header, time_column, (), "time_column") if time_column else None,
    )
    rows = rows_of(header, cells, columns)
    if not rows:
        raise DataError(f"{path} has no rows; expected a header and one row for each image or box.")
    refuse_empty(path, rows, "image", columns.image, "Name its file.")
    if columns.patient is not None:
        refuse_empty(path, rows, "patient", columns.patient, "Fill them in.")
    if prefixes is not None:
        wide = split_names(prefixes)
        found = [
            _wide(path, header, row.line, cell, wide)
            for row, (_, cell) in zip(rows, cells, strict=True)
        ]
        label_names = wide
    else:
        label = named_column(path, header, label_column, (), "label_column")
        places = [named_column(path, header, part, (), "prefixes") for part in _PARTS]
        found = [_long(path, header, line, cell, label, places) for line, cell in cells]
        label_names, _ = indexed([box.label for boxes in found for box in boxes])
    firsts = _first_rows(path, rows, once=prefixes is not None)
    root = image_folder(place, path, images, rows)
    names = list(firsts)
    lost = [row for row in firsts.values() if not (root / row.image).is_file()]
    if lost:
        raise DataError(
            f"{path}, line {lost[0].line}: the image {lost[0].image!r} is not in {root} "
            f"({len(lost)} of {len(firsts)} images). Name its folder in the parameter `images`."
        )
    if not label_names:
        raise DataError(f"{path} names no box; expected some.")
    shape = image_shape(read_headers(root, names, place.cache), size, channels)
    sizes = read_sizes(root, names, place.cache)
    of_image: dict[str, list[_Box]] = {name: [] for name in names}
    for row, boxes in zip(rows, found, strict=True):
        of_image[row.image] += boxes
    people = _people(path, list(firsts.values()), columns)
    info = DatasetInfo(
        name=f"boxes:{argument}",
        label_names=label_names,
        image_shape=shape,
        domain=domain or f"user:{path.stem}",
        modality=modality,
        licence=licence,
        task_kind="detection",
        non_commercial=non_commercial,
        site_names=people.site_names,
    )
    return BoxedImages(
        info,
        boxes=[
            boxes_within(
                [(x, y, x + w, y + h) for x, y, w, h in (box.numbers for box in of_image[name])],
                [label_names.index(box.label) for box in of_image[name]],
                [False] * len(of_image[name]),
                size=true_size,
                where=[f"{path}, line {box.line} ({box.label})" for box in of_image[name]],
            )
            for name, true_size in zip(names, sizes.tolist(), strict=True)
        ],
        root=root,
        names=names,
        cache=place.cache,
        sizes=sizes,
        people=people,
    )


def _wide(
    path: Path, header: Sequence[str], line: int, cells: Sequence[str], prefixes: Sequence[str]
) -> list[_Box]:
    boxes = []
    for prefix in prefixes:
        names = [f"{prefix}_{part}" for part in _PARTS]
        for name in names:
            named_column(path, header, name, (), "prefixes")
        texts = [cells[header.index(name)].strip() for name in names]
        if any(texts):
            boxes.append(_Box(line, prefix, _numbers(path, line, names, texts)))
    return boxes


def _long(
    path: Path,
    header: Sequence[str],
    line: int,
    cells: Sequence[str],
    label: str,
    places: Sequence[str],
) -> list[_Box]:
    name = cells[header.index(label)].strip()
    texts = [cells[header.index(place)].strip() for place in places]
    if not name and not any(texts):
        return []
    if not name:
        raise DataError(f"{path}, line {line}: a box without a class in column {label!r}.")
    return [_Box(line, name, _numbers(path, line, places, texts))]


def _numbers(
    path: Path, line: int, names: Sequence[str], texts: Sequence[str]
) -> tuple[float, float, float, float]:
    try:
        x, y, w, h = map(float, texts)
    except ValueError as error:
        seen = ", ".join(f"{name} {text!r}" for name, text in zip(names, texts, strict=True))
        raise DataError(f"{path}, line {line}: {seen}; expected four numbers.") from error
    return x, y, w, h


def _first_rows(path: Path, rows: Sequence[Row], *, once: bool) -> dict[str, Row]:
    """The first row of each image. Raises `DataError` where its rows contradict one another."""
    firsts: dict[str, Row] = {}
    for row in rows:
        first = firsts.setdefault(row.image, row)
        if first is row:
            continue
        if once:
            raise DataError(
                f"{path}, line {row.line}: {row.image!r} is on line {first.line} already; expected "
                "one row for each image."
            )
        for what in ("patient", "site", "split", "time"):
            if getattr(row, what) != getattr(first, what):
                raise DataError(
                    f"{path}, line {row.line}: {row.image!r} has {what} {getattr(row, what)!r}, "
                    f"and {getattr(first, what)!r} on line {first.line}; expected one."
                )
    return firsts


def _people(path: Path, rows: Sequence[Row], columns: Columns) -> People:
    site_names, sites = indexed([row.site or NO_SITE for row in rows])
    _, patients = indexed([row.patient for row in rows])
    return People(
        splits=split_codes(path, rows) if columns.split else None,
        sites=sites if columns.site else None,
        site_names=site_names if columns.site else (),
        patients=patients if columns.patient else None,
        times=times_of(path, rows, columns),
    )
