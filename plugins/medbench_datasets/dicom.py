"""DICOM series read to volumes, or slice by slice: ``dicom:FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DataMissing, DatasetInfo, Place
from medbench_datasets._dicom_series import Series, dicom_files, read_series, read_slice
from medbench_datasets._optional import needed
from medbench_datasets._people import Table, read_people
from medbench_datasets._store import manifest, remember, remembered
from medbench_datasets._table import indexed
from medbench_datasets._user import located
from medbench_datasets._volumes import Scan, Volumes, delivered_shape, window_of


class DicomVolumes(Volumes):
    """Series whose slices are read when they are asked for."""

    def __init__(self, info: DatasetInfo, *, series: Sequence[Series], **rest: Any) -> None:
        files = [name for one in series for name in one.files]
        super().__init__(info, files=files, scans=[one.scan for one in series], **rest)
        self._series = tuple(series)

    def _load(self, volume: int) -> NDArray[np.float32]:
        return np.stack([read_slice(self._root / name) for name in self._series[volume].files])

    def _inverted(self, volume: int) -> bool:
        return self._series[volume].inverted


def open_dicom(
    place: Place,
    *,
    argument: str,
    label: str = "folder",
    slices: bool = False,
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
) -> DicomVolumes:
    """The series below one folder, as a classification dataset.

    The class of a series is the first folder on the way to it, or what `label` (a DICOM keyword)
    says. Where every series has one file (radiographs) they are images, else volumes, or slices if
    asked for. Patients are ``PatientID`` where all files have one; sites ``InstitutionName``
    likewise; a table overrules both.
    """
    root = located(place, argument, kind="folder", example="dicom:ct")
    pydicom = needed("pydicom", str(root))
    if label != "folder" and not pydicom.datadict.tag_for_keyword(label):
        raise DataError(
            f"label={label!r} is no DICOM keyword; expected folder, or one such as "
            "BodyPartExamined, SeriesDescription or Modality."
        )
    chosen_window = window_of(window)
    names = dicom_files(root)
    if not names:
        raise DataMissing(f"{root} holds no DICOM files (.dcm, .dicom, .ima or without suffix).")
    key = f"{manifest(root, names)} {label}"
    known = remembered(place.cache, "dicom", key)
    if known is None:
        known = {"series": [asdict(one) for one in read_series(root, names, label)]}
        remember(place.cache, "dicom", key, known)
    series = [_restored(one) for one in known["series"]]
    flat = slices or all(one.scan.shape[0] == 1 for one in series)
    label_names, labels = indexed([one.label for one in series])
    people = read_people(
        place,
        root,
        Table(table, image_column, patient_column, site_column, split_column),
        [one.scan.name for one in series],
    )
    if people.patients is None and all(one.patient for one in series):
        people = replace(people, patients=indexed([one.patient for one in series])[1])
    if people.sites is None and all(one.institution for one in series):
        site_names, sites = indexed([one.institution for one in series])
        people = replace(people, sites=sites, site_names=site_names)
    info = DatasetInfo(
        name=f"dicom:{argument}",
        label_names=label_names,
        image_shape=delivered_shape(root, [one.scan for one in series], size, slices=flat),
        domain=domain or f"user:{root.name}",
        modality=modality or ", ".join(sorted({one.modality or "unstated" for one in series})),
        licence=licence,
        non_commercial=non_commercial,
        site_names=people.site_names,
    )
    depths = [one.scan.shape[0] if flat else 1 for one in series]
    return DicomVolumes(
        info,
        series=series,
        root=root,
        cache=place.cache,
        labels=np.repeat(labels, depths),
        people=people,
        slices=flat,
        window=chosen_window,
    )


def _restored(one: dict[str, Any]) -> Series:
    scan = one["scan"]
    return Series(
        **{
            **one,
            "scan": Scan(scan["name"], tuple(scan["shape"]), tuple(scan["spacing"])),
            "files": tuple(one["files"]),
        }
    )
