"""A CSV table of images as a dataset: ``csv:PATH``, with labels, patients, sites and splits."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DatasetInfo, Place, did_you_mean
from medbench_datasets._images import ImageFiles, image_shape, read_headers
from medbench_datasets._layout import PARTS
from medbench_datasets._user import located

_NO_SITE = "(unknown)"


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    label: str
    patient: str
    site: str
    split: str


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    patient: str | None
    site: str | None
    split: str | None


def open_table(
    place: Place,
    *,
    argument: str,
    image_column: str | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
    site_column: str | None = None,
    split_column: str | None = None,
    images: str | None = None,
    drop_unlabelled: bool = False,
    drop_labels: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> ImageFiles:
    """The images a table lists, in its order; classes are the labels, sorted.

    Columns ``patient``, ``site`` and ``split`` are used when they are there, under these names or
    those given. Raises `DataError` that names the line for an empty label or patient, an unknown
    split word, an image that is not there.
    """
    path = located(place, argument, kind="file", example="csv:chest_sites/index.csv")
    header, cells = _read(path)
    columns = _Columns(
        image=_column(path, header, image_column, ("image", "file"), "image_column"),
        label=_column(path, header, label_column, (), "label_column"),
        patient=_optional_column(path, header, patient_column, "patient"),
        site=_optional_column(path, header, site_column, "site"),
        split=_optional_column(path, header, split_column, "split"),
    )
    rows = _rows(header, cells, columns)
    dropped = {label.strip() for label in (drop_labels or "").split(",")} - {""}
    if dropped - {row.label for row in rows}:
        unknown = sorted(dropped - {row.label for row in rows})[0]
        raise DataError(
            f"{path}: drop_labels names {unknown!r}, which no row has."
            f"{did_you_mean(unknown, {row.label for row in rows} - {''})}"
        )
    rows = [row for row in rows if row.label not in dropped]
    if drop_unlabelled:
        rows = [row for row in rows if row.label]
    _refuse_empty(path, rows, "label", columns.label, "Fill them in, or set drop_unlabelled: true.")
    if columns.patient is not None:
        _refuse_empty(
            path,
            rows,
            "patient",
            columns.patient,
            "Fill them in: without, one person could be in support and query at once.",
        )
    if not rows:
        raise DataError(f"{path} has no rows to use; expected a header and one row for each image.")
    root = _image_folder(place, path, images, rows)
    lost = [row for row in rows if not (root / row.image).is_file()]
    if lost:
        raise DataError(
            f"{path}, line {lost[0].line}: the image {lost[0].image!r} is not in {root} "
            f"({len(lost)} of {len(rows)} rows are so). Put it there, or name its folder in the "
            "parameter `images`."
        )
    names = [row.image for row in rows]
    shape = image_shape(read_headers(root, sorted(set(names)), place.cache), size, channels)
    label_names, labels = _indexed([row.label for row in rows])
    site_names, sites = _indexed([row.site or _NO_SITE for row in rows])
    _, patients = _indexed([row.patient for row in rows])
    info = DatasetInfo(
        name=f"csv:{argument}",
        label_names=label_names,
        image_shape=shape,
        domain=domain or f"user:{path.stem}",
        modality=modality,
        licence=licence,
        non_commercial=non_commercial,
        site_names=site_names if columns.site else (),
    )
    return ImageFiles(
        info,
        root=root,
        names=names,
        cache=place.cache,
        labels=labels,
        splits=_splits(path, rows) if columns.split else None,
        sites=sites if columns.site else None,
        patients=patients if columns.patient else None,
    )


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and for each row its line in the file and its cells."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            cells = [(reader.line_num, row) for row in reader if any(c.strip() for c in row)]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV table: {error}. Check quotes and commas.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise DataError(f"{path} has two columns named {twice[0]!r}: rename one.")
    for line, row in cells:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} cells where the header has {len(header)}. "
                "Quote cells that contain a comma."
            )
    return header, cells


def _column(
    path: Path, header: Sequence[str], given: str | None, usual: Sequence[str], parameter: str
) -> str:
    wanted = [given] if given is not None else list(usual)
    for name in wanted:
        if name in header:
            return name
    named = " or ".join(repr(name) for name in wanted)
    raise DataError(
        f"{path} has no column {named}; it has {', '.join(header) or 'none'}."
        f"{did_you_mean(wanted[0], header) if header else ''} Name it in `{parameter}`."
    )


def _optional_column(
    path: Path, header: Sequence[str], given: str | None, usual: str
) -> str | None:
    if given is None:
        return usual if usual in header else None
    return _column(path, header, given, (), f"{usual}_column")


def _rows(
    header: Sequence[str], cells: Sequence[tuple[int, list[str]]], columns: _Columns
) -> list[_Row]:
    def cell(row: list[str], column: str | None) -> str:
        return row[header.index(column)].strip() if column is not None else ""

    return [
        _Row(
            line=line,
            image=cell(row, columns.image),
            label=cell(row, columns.label),
            patient=cell(row, columns.patient),
            site=cell(row, columns.site),
            split=cell(row, columns.split),
        )
        for line, row in cells
    ]


def _refuse_empty(path: Path, rows: Sequence[_Row], what: str, column: str, advice: str) -> None:
    empty = [row.line for row in rows if not getattr(row, what)]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(
            f"{path}: column {column!r} is empty in {len(empty)} of {len(rows)} rows, line "
            f"{', '.join(map(str, empty[:5]))}{more}. {advice}"
        )


def _image_folder(place: Place, path: Path, images: str | None, rows: Sequence[_Row]) -> Path:
    """Where the table's images lie: as given, else beside the table or in ``images/`` there."""
    if images is not None:
        beside = path.parent / images
        if beside.is_dir():
            return beside
        return place.find(images, hint="Name the folder of the images in `images`.")
    for folder in (path.parent, path.parent / "images"):
        # One moved image shall not hide the others: the folder that holds more rows is meant.
        if any((folder / row.image).is_file() for row in rows[:50]):
            return folder
    raise DataError(
        f"{path}, line {rows[0].line}: the image {rows[0].image!r} is neither in {path.parent} nor "
        "in images/ there. Name its folder in the parameter `images`."
    )


def _indexed(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct values in order (numbers by value, else as text), and the index of each."""
    distinct = set(values)
    names = sorted(distinct, key=int) if all(_is_count(v) for v in distinct) else sorted(distinct)
    position = {name: k for k, name in enumerate(names)}
    return tuple(names), np.array([position[value] for value in values], np.int64)


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and str(int(value)) == value


def _splits(path: Path, rows: Sequence[_Row]) -> NDArray[np.uint8] | None:
    """``(n,)`` uint8; None when all rows are in one part."""
    words = [row.split.lower() for row in rows]
    for row, word in zip(rows, words, strict=True):
        if word not in PARTS:
            raise DataError(
                f"{path}, line {row.line}: split {row.split!r} is not known; expected train, val "
                "or test."
            )
    if len(set(words)) == 1:
        return None
    if "test" not in words:
        raise DataError(
            f"{path} has rows of {' and '.join(sorted(set(words)))} but none of test: expected "
            "test rows as well, or no split column."
        )
    return np.array([PARTS.index(word) for word in words], np.uint8)
