"""Made-up data of every layout that the page on one's own images shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SITES = ("GE", "Philips", "Siemens")
CLASSES = ("cyst", "nodule", "none")
SIDE = 40


def picture(kind: int, number: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """A disc, larger and brighter with its kind, and the box x, y, w, h around it."""
    rng = np.random.default_rng([kind, number])
    radius = 5 + 2 * kind
    x, y = rng.integers(radius + 1, SIDE - radius - 1, 2).tolist()
    down, across = np.mgrid[:SIDE, :SIDE]
    image = rng.normal(60, 8, (SIDE, SIDE))
    disc = (down - y) ** 2 + (across - x) ** 2 <= radius**2
    image[disc] += 50 + 40 * kind
    box = (x - radius, y - radius, 2 * radius + 1, 2 * radius + 1)
    return image.clip(0, 255).astype(np.uint8), box


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_all(data: Path, n: int = 24) -> None:
    """`n` images of each class and site in folders and in a table, and a few of everything else."""
    rows = ["image,finding,scanner,patient"]
    for s, site in enumerate(SITES):
        for k, kind in enumerate(CLASSES):
            for i in range(n):
                pixels = picture(k, 100 * s + i)[0]
                save(data / "smears" / site / kind / f"{i:03}.png", pixels)
                save(data / "scans" / "2021" / f"{site}-{kind}-{i}.png", pixels)
                rows.append(f"2021/{site}-{kind}-{i}.png,{kind},{site},p{s}{k}{i // 2}")
    (data / "scans" / "index.csv").write_text("\n".join(rows) + "\n")
    _masks_and_boxes(data, n)
    _modalities(data / "brains")
    _volumes(data / "Task09_Spleen")
    for k, kind in enumerate(("abdomen", "chest")):
        for patient in range(3):
            _series(data / "ct" / kind / f"series{patient}", kind.upper(), f"{k}{patient}")


def _modalities(root: Path) -> None:
    rows = ["ct,mri,label,patient,site"]
    for s, site in enumerate(("north", "south")):
        for k, kind in enumerate(("none", "nodule")):
            for i in range(12):
                name = f"{site}-{kind}-{i}.png"
                pixels = picture(k, 100 * s + i)[0]
                save(root / "ct" / name, pixels)
                save(root / "mri" / name, 255 - pixels)
                rows.append(f"ct/{name},mri/{name},{kind},p{s}{k}{i},{site}")
    (root / "index.csv").write_text("\n".join(rows) + "\n")


def _masks_and_boxes(data: Path, n: int) -> None:
    about, lungs, images, marks = ["image,site"], ["image,label,x,y,w,h"], [], []
    for i in range(n):
        pixels, (x, y, w, h) = picture(1, i)
        name = f"{i:03}.png"
        for folder in ("nuclei/images", "cells/JPEGImages", "slides/images", "lungs"):
            save(data / folder / name, pixels)
        disc = np.zeros((SIDE, SIDE), np.uint8)
        disc[y : y + h, x : x + w] = 1
        save(data / "nuclei" / "labels" / name, disc)
        about.append(f"{name},{SITES[i % 2]}")
        lungs.append(f"{name},right,{x},{y},{w},{h}")
        _voc(data / "cells" / "Annotations" / f"{i:03}.xml", x + 1, y + 1, x + w, y + h)
        images.append({"id": i, "file_name": name, "width": SIDE, "height": SIDE})
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        mark = {"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, w, h]}
        marks.append({**mark, "segmentation": [corners]})
    (data / "nuclei" / "index.csv").write_text("\n".join(about) + "\n")
    (data / "lungs" / "index.csv").write_text("\n".join(lungs) + "\n")
    coco = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "gland"}]}
    (data / "slides" / "instances.json").write_text(json.dumps(coco))


def _voc(path: Path, x0: int, y0: int, x1: int, y1: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{SIDE}</width><height>{SIDE}</height></size><object>"
        f"<name>cell</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object></annotation>"
    )


def _volumes(root: Path) -> None:
    training = []
    for name in ("spleen_1", "spleen_2"):
        values = np.random.default_rng(0).normal(0, 50, (16, 16, 5)).astype(np.int16)
        spleen = np.zeros(values.shape, np.uint8)
        spleen[4:9, 5:11, 1:4] = 1
        values[spleen > 0] += 150
        pair = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for key, array in (("image", values), ("label", spleen)):
            path = root / pair[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 5.0, 1.0])), path)
        training.append(pair)
    labels = {"0": "background", "1": "spleen"}
    about = {"modality": {"0": "CT"}, "labels": labels, "training": training}
    (root / "dataset.json").write_text(json.dumps(about))


def _series(folder: Path, part: str, patient: str) -> None:
    uid = generate_uid()
    folder.mkdir(parents=True)
    for k in range(4):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(str(folder / f"{k}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        values = np.random.default_rng(k).integers(0, 200, (16, 16)) + 30 * len(part)
        stated = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": uid,
            "PatientID": patient,
            "Modality": "CT",
            "BodyPartExamined": part,
            "InstanceNumber": k + 1,
            "Rows": 16,
            "Columns": 16,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "PixelSpacing": [0.8, 0.8],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, 5.0 * k],
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            "PixelData": values.astype("<i2").tobytes(),
        }
        for keyword, value in stated.items():
            setattr(file, keyword, value)
        file.save_as(folder / f"{k}.dcm", enforce_file_format=True)
