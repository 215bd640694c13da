"""DICOM series as volumes: order, units, patients and sites, and every fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from medbench.api import DataError, DataMissing, Place, Unavailable
from medbench_datasets.dicom import open_dicom

SERIES = "1.2.826.0.1.3680043.8.498.1"


def save(path: Path, values: NDArray[Any], **changes: Any) -> Path:
    """One slice of signed 16 bits; a change to None takes the attribute away."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    stated = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "PatientID": "p1",
        "Modality": "CT",
        "InstanceNumber": 1,
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelSpacing": [0.5, 0.25],
        "SliceThickness": 9,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelData": values.astype("<i2").tobytes(),
        **changes,
    }
    for keyword, value in stated.items():
        if value is not None:
            setattr(file, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, uid: str, n: int = 4, value: int = 0, **changes: Any) -> None:
    """Slices 2.5 mm apart, in files whose names run against their places."""
    for k in range(n):
        where = {"ImagePositionPatient": [0, 0, 2.5 * k], "InstanceNumber": k + 1}
        save(
            folder / f"{n - k}.dcm",
            np.full((6, 8), value + 10 * k),
            SeriesInstanceUID=uid,
            **{**where, **changes},
        )


@pytest.fixture
def ct(data: Path) -> Path:
    """A series of each of two classes, of two patients."""
    series(data / "ct" / "sick" / "one", f"{SERIES}.1")
    series(data / "ct" / "well" / "two", f"{SERIES}.2", value=100, PatientID="p2")
    return data / "ct"


def test_slices_are_put_in_order_of_their_places(place: Place, ct: Path) -> None:
    dataset = open_dicom(place, argument="ct", window="0, 255")
    assert dataset.info.task_kind == "classification"
    assert dataset.info.label_names == ("sick", "well")
    assert dataset.info.image_shape == (4, 6, 8, 1)
    assert dataset.info.modality == "CT"
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.patients is not None
    assert dataset.patients.tolist() == [0, 1]
    assert dataset.sites is None
    assert dataset.spacings is not None
    assert dataset.spacings.tolist() == [[2.5, 0.5, 0.25]] * 2
    found = dataset.read(np.array([1, 0]))[:, :, 0, 0, 0]
    assert found.tolist() == [[100, 110, 120, 130], [0, 10, 20, 30]]


def test_values_are_in_the_units_of_the_rescale(place: Place, ct: Path) -> None:
    series(ct / "sick" / "one", f"{SERIES}.1", RescaleSlope=2, RescaleIntercept=-1024, value=512)
    dataset = open_dicom(place, argument="ct", window="0, 255")
    assert dataset.read(np.array([0]))[0, :, 0, 0, 0].tolist() == [0, 20, 40, 60]


def test_slices_of_a_series_stay_with_their_patient(place: Place, ct: Path) -> None:
    dataset = open_dicom(place, argument="ct", slices=True, window="0, 255")
    assert dataset.info.image_shape == (6, 8, 1)
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.patients is not None
    assert dataset.patients.tolist() == [0] * 4 + [1] * 4
    assert dataset.read(np.array([6, 1]))[:, 0, 0, 0].tolist() == [120, 10]


def test_radiographs_are_images(place: Place, data: Path) -> None:
    for k, label in enumerate(("ap", "pa")):
        save(
            data / "cr" / label / "x",
            np.arange(48).reshape(6, 8),
            SeriesInstanceUID=f"{SERIES}.{k}",
            ImageOrientationPatient=None,
            ImagePositionPatient=None,
            InstitutionName=f"hospital {k}",
            PhotometricInterpretation=f"MONOCHROME{k + 1}",
        )
    dataset = open_dicom(place, argument="cr", window="0, 47")
    assert dataset.info.image_shape == (6, 8, 1)
    assert dataset.info.site_names == ("hospital 0", "hospital 1")
    black_is_high, white_is_high = dataset.read(np.array([0, 1]))[..., 0].astype(int)
    assert white_is_high[0, 0] == 0
    assert white_is_high[5, 7] == 255
    assert (black_is_high + white_is_high == 255).all()


def test_a_keyword_of_the_header_may_be_the_class(place: Place, ct: Path) -> None:
    series(ct / "sick" / "one", f"{SERIES}.1", BodyPartExamined="LIVER")
    series(ct / "well" / "two", f"{SERIES}.2", BodyPartExamined="BRAIN")
    dataset = open_dicom(place, argument="ct", label="BodyPartExamined")
    assert dataset.info.label_names == ("BRAIN", "LIVER")
    assert dataset.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="'Bodypart' is no DICOM keyword"):
        open_dicom(place, argument="ct", label="Bodypart")


def test_without_places_slices_go_by_their_numbers(place: Place, ct: Path) -> None:
    series(ct / "sick" / "one", f"{SERIES}.1", ImagePositionPatient=None)
    dataset = open_dicom(place, argument="ct", window="0, 255")
    assert dataset.read(np.array([0]))[0, :, 0, 0, 0].tolist() == [0, 10, 20, 30]


def test_series_of_one_folder_are_told_apart(place: Place, data: Path) -> None:
    for k in range(2):
        for z in range(2):
            save(
                data / "mix" / "a" / f"{k}{z}.dcm",
                np.full((6, 8), k),
                SeriesInstanceUID=f"{SERIES}.{k}",
                ImagePositionPatient=[0, 0, z],
            )
    assert len(open_dicom(place, argument="mix")) == 2


def test_the_digest_follows_pixels_and_settings(place: Place, ct: Path) -> None:
    digest = open_dicom(place, argument="ct").digest
    assert open_dicom(place, argument=str(ct), licence="x").digest == digest
    assert open_dicom(place, argument="ct", window="0, 9").digest != digest
    save(
        ct / "sick" / "one" / "1.dcm",
        np.full((6, 8), 31),
        SeriesInstanceUID=f"{SERIES}.1",
        ImagePositionPatient=[0, 0, 7.5],
    )
    assert open_dicom(place, argument="ct").digest != digest


def _spoil(ct: Path, how: str) -> None:
    folder, uid = ct / "sick" / "one", f"{SERIES}.1"
    path, values = folder / "1.dcm", np.zeros((6, 8))
    last = {"SeriesInstanceUID": uid, "ImagePositionPatient": [0, 0, 7.5]}
    match how:
        case "text":
            path.write_text("not an image " * 20)
        case "missing slice":
            (folder / "2.dcm").unlink()
        case "same place":
            save(path, values, **{**last, "ImagePositionPatient": [0, 0, 5.0]})
        case "turned":
            save(path, values, **last, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
        case "other size":
            save(path, np.zeros((6, 9)), **last)
        case "colour":
            save(path, values, **last, PhotometricInterpretation="RGB")
        case "frames":
            save(path, values, **last, NumberOfFrames=3)
        case "no series":
            save(path, values, ImagePositionPatient=[0, 0, 7.5], SeriesInstanceUID=None)
        case "no class":
            series(ct, f"{SERIES}.3")
        case "no numbers":
            series(folder, uid, ImagePositionPatient=None, InstanceNumber=5)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("text", r"1\.dcm is not a DICOM file \(260 bytes\)"),
        ("missing slice", r"Between .*3\.dcm and .*1\.dcm are 5\.00 mm, and elsewhere .* 2\.50 mm"),
        ("same place", r"lie at the same place \(5\.00 mm\)"),
        ("turned", "is turned against .* expected parallel slices"),
        ("other size", "has Columns .* of the same series"),
        ("colour", r"1\.dcm is RGB; expected MONOCHROME1 or MONOCHROME2"),
        ("frames", r"1\.dcm holds 3 frames"),
        ("no series", r"1\.dcm has no SeriesInstanceUID"),
        ("no class", "lies in no class folder; expected CLASS"),
        ("no numbers", "have no positions, and share an InstanceNumber"),
    ],
)
def test_wrong_series_are_one_clear_error(place: Place, ct: Path, how: str, said: str) -> None:
    _spoil(ct, how)
    with pytest.raises(DataError, match=said):
        open_dicom(place, argument="ct")


def test_pixels_that_are_cut_off_are_told_when_read(place: Place, ct: Path) -> None:
    path = ct / "sick" / "one" / "2.dcm"
    path.write_bytes(path.read_bytes()[:-30])
    dataset = open_dicom(place, argument="ct")
    with pytest.raises(DataError, match=r"2\.dcm cannot be (decoded|read as DICOM)"):
        dataset.read(np.array([0]))


def test_compressed_slices_are_read_where_a_decoder_is_there(place: Place, ct: Path) -> None:
    path = ct / "sick" / "one" / "2.dcm"
    file = pydicom.dcmread(path)
    file.compress(RLELossless)
    file.save_as(path)
    dataset = open_dicom(place, argument="ct", window="0, 255")
    assert dataset.read(np.array([0]))[0, 2].ravel().tolist() == [20] * 48


def test_a_folder_without_dicom_and_a_machine_without_pydicom(
    place: Place, ct: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "none").mkdir()
    with pytest.raises(DataMissing, match="holds no DICOM files"):
        open_dicom(place, argument="none")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(Unavailable, match=r"pip install 'medbench\[medical\]'"):
        open_dicom(place, argument="ct")
