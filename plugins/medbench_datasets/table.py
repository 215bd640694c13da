"""A CSV table of images as a dataset: ``csv:PATH``, with labels, patients, sites and splits."""

from __future__ import annotations

from medbench.api import DataError, DatasetInfo, Place, did_you_mean
from medbench_datasets._images import ImageFiles, image_shape, read_headers
from medbench_datasets._table import (
    NO_SITE,
    Columns,
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
from medbench_datasets._user import located


def open_table(
    place: Place,
    *,
    argument: str,
    image_column: str | None = None,
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
) -> ImageFiles:
    """The images a table lists, in its order; classes are the labels, sorted.

    Columns ``patient``, ``site`` and ``split`` are used when they are there, under these names or
    those given. Raises `DataError` that names the line for an empty label or patient, an unknown
    split word, an image that is not there.
    """
    path = located(place, argument, kind="file", example="csv:chest_sites/index.csv")
    header, cells = read_cells(path)
    image = named_column(path, header, image_column, ("image", "file"), "image_column")
    label = named_column(path, header, label_column, (), "label_column")
    columns = Columns(
        image=image,
        label=label,
        patient=optional_column(path, header, patient_column, "patient"),
        site=optional_column(path, header, site_column, "site"),
        split=optional_column(path, header, split_column, "split"),
        time=named_column(path, header, time_column, (), "time_column") if time_column else None,
    )
    rows = rows_of(header, cells, columns)
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
    refuse_empty(path, rows, "label", label, "Fill them in, or set drop_unlabelled: true.")
    if columns.patient is not None:
        refuse_empty(
            path,
            rows,
            "patient",
            columns.patient,
            "Fill them in: without, one person could be in support and query at once.",
        )
    if not rows:
        raise DataError(f"{path} has no rows to use; expected a header and one row for each image.")
    root = image_folder(place, path, images, rows)
    lost = [row for row in rows if not (root / row.image).is_file()]
    if lost:
        raise DataError(
            f"{path}, line {lost[0].line}: the image {lost[0].image!r} is not in {root} "
            f"({len(lost)} of {len(rows)} rows are so). Put it there, or name its folder in the "
            "parameter `images`."
        )
    names = [row.image for row in rows]
    shape = image_shape(read_headers(root, sorted(set(names)), place.cache), size, channels)
    label_names, labels = indexed([row.label for row in rows])
    site_names, sites = indexed([row.site or NO_SITE for row in rows])
    _, patients = indexed([row.patient for row in rows])
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
        splits=split_codes(path, rows) if columns.split else None,
        sites=sites if columns.site else None,
        patients=patients if columns.patient else None,
        times=times_of(path, rows, columns),
    )
