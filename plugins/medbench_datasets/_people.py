"""Sites, patients and splits of images that a table beside them tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Place
from medbench_datasets._table import (
    NO_SITE,
    Columns,
    Row,
    indexed,
    named_column,
    optional_column,
    read_cells,
    refuse_empty,
    rows_of,
    split_codes,
)


@dataclass(frozen=True)
class People:
    """Columns over the images; None for what is not known."""

    splits: NDArray[np.uint8] | None = None
    sites: NDArray[np.int64] | None = None
    site_names: tuple[str, ...] = ()
    patients: NDArray[np.int64] | None = None
    times: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Table:
    """How a table is named and read: the parameters of every dataset that may have one."""

    path: str | None
    image_column: str | None
    patient_column: str | None
    site_column: str | None
    split_column: str | None


def read_people(place: Place, root: Path, table: Table, names: Sequence[str]) -> People:
    """What a table (in `root`, or below the data folder) says of images, found by name or stem.

    Raises `DataError` for an image that no row names, or two rows name.
    """
    if table.path is None:
        given = [c for c in (table.patient_column, table.site_column, table.split_column) if c]
        if given:
            raise DataError(
                f"{root}: the column {given[0]!r} is named, and no table to find it in. Name the "
                "CSV file in the parameter `table`."
            )
        return People()
    beside = root / table.path
    path = beside if beside.is_file() else place.find(table.path, hint="Named in `table`.")
    header, cells = read_cells(path)
    columns = Columns(
        image=named_column(
            path, header, table.image_column, ("image", "file", "id"), "image_column"
        ),
        label=None,
        patient=optional_column(path, header, table.patient_column, "patient"),
        site=optional_column(path, header, table.site_column, "site"),
        split=optional_column(path, header, table.split_column, "split"),
    )
    rows = _in_order(path, rows_of(header, cells, columns), columns.image, names)
    if columns.patient is not None:
        refuse_empty(path, rows, "patient", columns.patient, "Fill them in.")
    site_names, sites = indexed([row.site or NO_SITE for row in rows])
    _, patients = indexed([row.patient for row in rows])
    return People(
        splits=split_codes(path, rows) if columns.split else None,
        sites=sites if columns.site else None,
        site_names=site_names if columns.site else (),
        patients=patients if columns.patient else None,
    )


def _in_order(path: Path, rows: Sequence[Row], column: str, names: Sequence[str]) -> list[Row]:
    known: dict[str, Row] = {}
    for row in rows:
        if row.image in known:
            raise DataError(
                f"{path}, line {row.line}: {row.image!r} is in column {column!r} already on line "
                f"{known[row.image].line}; expected one row for each image."
            )
        known[row.image] = row
    found = []
    for name in names:
        base = Path(name).name
        keys = (name, base, base.removesuffix(".gz").removesuffix(".nii"), Path(name).stem)
        key = next((key for key in keys if key in known), None)
        if key is None:
            raise DataError(
                f"{path} has no row for the image {name!r} in column {column!r} (it has "
                f"{', '.join(list(known)[:3])} ...). Add it, or name the right column in "
                "`image_column`."
            )
        found.append(known[key])
    return found
