"""Rows of a CSV table of images: read, with every fault told by its line."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Place, did_you_mean
from medbench_datasets._layout import PARTS

NO_SITE = "(unknown)"
_NO_TIME = ("", "?")


@dataclass(frozen=True)
class Row:
    """One line of a table; what it has no column for is empty."""

    line: int
    image: str
    label: str
    patient: str
    site: str
    split: str
    time: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use."""

    image: str
    label: str | None
    patient: str | None
    site: str | None
    split: str | None
    time: str | None = None


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
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


def named_column(
    path: Path, header: Sequence[str], given: str | None, usual: Sequence[str], parameter: str
) -> str:
    """The column asked for, else the first usual one; `DataError` naming `parameter` if none."""
    wanted = [given] if given is not None else list(usual)
    for name in wanted:
        if name in header:
            return name
    named = " or ".join(repr(name) for name in wanted)
    raise DataError(
        f"{path} has no column {named}; it has {', '.join(header) or 'none'}."
        f"{did_you_mean(wanted[0], header) if header else ''} Name it in `{parameter}`."
    )


def optional_column(path: Path, header: Sequence[str], given: str | None, usual: str) -> str | None:
    """The column asked for, else the usual one if it is there."""
    if given is None:
        return usual if usual in header else None
    return named_column(path, header, given, (), f"{usual}_column")


def rows_of(
    header: Sequence[str], cells: Sequence[tuple[int, list[str]]], columns: Columns
) -> list[Row]:
    """The cells in use, stripped, of every row."""

    def cell(row: list[str], column: str | None) -> str:
        return row[header.index(column)].strip() if column is not None else ""

    return [
        Row(
            line=line,
            image=cell(row, columns.image),
            label=cell(row, columns.label),
            patient=cell(row, columns.patient),
            site=cell(row, columns.site),
            split=cell(row, columns.split),
            time=cell(row, columns.time),
        )
        for line, row in cells
    ]


def refuse_empty(path: Path, rows: Sequence[Row], what: str, column: str, advice: str) -> None:
    """Raise `DataError` naming the lines where a column is empty."""
    empty = [row.line for row in rows if not getattr(row, what)]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(
            f"{path}: column {column!r} is empty in {len(empty)} of {len(rows)} rows, line "
            f"{', '.join(map(str, empty[:5]))}{more}. {advice}"
        )


def image_folder(place: Place, path: Path, images: str | None, rows: Sequence[Row]) -> Path:
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


def indexed(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct values in order (numbers by value, else as text), and the index of each."""
    distinct = set(values)
    names = sorted(distinct, key=int) if all(_is_count(v) for v in distinct) else sorted(distinct)
    position = {name: k for k, name in enumerate(names)}
    return tuple(names), np.array([position[value] for value in values], np.int64)


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and str(int(value)) == value


def times_of(path: Path, rows: Sequence[Row], columns: Columns) -> NDArray[np.float64] | None:
    """``(n,)`` when each image was taken, NaN for an empty cell or ``?``; None without the column.

    Numbers as they are, dates (2024-05-31) in days. Raises `DataError` naming the line of another
    text, and where there are no patients whose images could be put in order.
    """
    if columns.time is None:
        return None
    if columns.patient is None:
        raise DataError(
            f"{path}: the column {columns.time!r} puts the images of a patient in order, and no "
            "column tells patients. Name it in `patient_column`."
        )
    return np.array([_moment(path, row, columns.time) for row in rows], np.float64)


def _moment(path: Path, row: Row, column: str) -> float:
    if row.time in _NO_TIME:
        return math.nan
    try:
        found = float(row.time)
    except ValueError:
        found = math.inf
    if math.isfinite(found):
        return found
    try:
        return float(datetime.date.fromisoformat(row.time).toordinal())
    except ValueError as error:
        raise DataError(
            f"{path}, line {row.line}: {row.time!r} in column {column!r} is neither a number nor a "
            "date such as 2024-05-31."
        ) from error


def split_codes(path: Path, rows: Sequence[Row]) -> NDArray[np.uint8] | None:
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
