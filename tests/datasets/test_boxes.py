"""Data sets with boxes: Pascal VOC, COCO, tables; what is read, and what is refused by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import save_image
from PIL import Image

from medbench.api import DataError, DataMissing, Place
from medbench_datasets.box_table import open_boxes
from medbench_datasets.coco import open_coco
from medbench_datasets.voc import open_voc

# --- Pascal VOC ----------------------------------------------------------------------------------


def thing(name: str, *corners: object, difficult: int = 0) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{box}</bndbox></object>"
    )


def annotate(root: Path, stem: str, *things: str, size: tuple[int, int] = (20, 10)) -> Path:
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{''.join(things)}</annotation>"
    )
    return path


@pytest.fixture
def voc(data: Path) -> Path:
    """Three images of 20 x 10 pixels; the last has no object."""
    root = data / "cells"
    for stem in ("a", "b", "c"):
        save_image(root / "JPEGImages" / f"{stem}.png", 50, size=(20, 10))
    annotate(root, "a", thing("white", 1, 1, 4, 10), thing("red", 11, 2, 20, 5))
    annotate(root, "b", thing("red", 1, 1, 20, 10, difficult=1), thing("white", 3, 3, 3, 3))
    annotate(root, "c")
    return root


def lists(root: Path, **parts: str) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for part, stems in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(stems.split()) + "\n")


def test_voc_boxes_reach_from_the_first_to_behind_the_last_pixel(place: Place, voc: Path) -> None:
    dataset = open_voc(place, argument="cells")
    assert dataset.info.task_kind == "detection"
    assert dataset.info.label_names == ("red", "white")
    assert dataset.info.image_shape == (10, 20, 1)
    first, second, third = dataset.read_boxes(np.array([0, 1, 2]))
    assert first.xyxy.tolist() == [[0, 0, 4, 10], [10, 1, 20, 5]]
    assert first.labels.tolist() == [1, 0]
    assert second.xyxy.tolist()[1] == [2, 2, 3, 3]
    assert second.ignored.tolist() == [True, False]
    assert third.xyxy.shape == (0, 4)
    # Labels are the classes that occur; what is ignored does not.
    assert dataset.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_boxes_follow_their_image_when_it_is_resized(place: Place, voc: Path) -> None:
    dataset = open_voc(place, argument="cells", size=40)
    (boxes,) = dataset.read_boxes(np.array([0]))
    assert dataset.read(np.array([0])).shape == (1, 40, 40, 1)
    assert boxes.xyxy.tolist() == [[0, 0, 8, 40], [20, 4, 40, 20]]


def test_boxes_lie_where_the_object_is_drawn(place: Place, data: Path) -> None:
    pixels = np.zeros((10, 20), np.uint8)
    pixels[2:5, 6:12] = 255
    root = data / "drawn"
    (root / "JPEGImages").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "JPEGImages" / "a.png")
    annotate(root, "a", thing("it", 7, 3, 12, 5))
    dataset = open_voc(place, argument="drawn")
    x0, y0, x1, y1 = dataset.read_boxes(np.array([0]))[0].xyxy[0].astype(int)
    inside = dataset.read(np.array([0]))[0, y0:y1, x0:x1, 0]
    assert inside.min() == 255
    assert inside.size == (pixels > 0).sum()


def test_voc_lists_give_parts_and_leave_out_what_they_do_not_name(place: Place, voc: Path) -> None:
    lists(voc, train="b", test="a")
    dataset = open_voc(place, argument="cells")
    assert dataset.splits is not None
    assert dataset.splits.tolist() == [0, 2]
    assert dataset.labels.tolist() == [[0, 1], [1, 1]]
    assert len(open_voc(place, argument="cells", lists=False)) == 3


def test_the_digest_follows_images_boxes_and_shape(place: Place, voc: Path) -> None:
    digest = open_voc(place, argument="cells").digest
    assert open_voc(place, argument=str(voc), licence="MIT").digest == digest
    assert open_voc(place, argument="cells", size=16).digest != digest
    annotate(voc, "c", thing("red", 2, 2, 5, 5))
    moved = open_voc(place, argument="cells").digest
    annotate(voc, "c", thing("red", 2, 2, 5, 6))
    assert len({digest, moved, open_voc(place, argument="cells").digest}) == 3


def test_a_table_tells_sites_and_patients_of_images(place: Place, voc: Path) -> None:
    (voc / "who.csv").write_text("id,patient,hospital\nb,2,south\na,1,north\nc,1,\n")
    dataset = open_voc(place, argument="cells", table="who.csv", site_column="hospital")
    assert dataset.sites is not None
    assert dataset.patients is not None
    assert [dataset.info.site_names[k] for k in dataset.sites] == ["north", "south", "(unknown)"]
    assert dataset.patients.tolist() == [0, 1, 0]
    (voc / "who.csv").write_text("id,patient\na,1\nb,2\n")
    with pytest.raises(DataError, match=r"who.csv has no row for the image 'JPEGImages/c\.png'"):
        open_voc(place, argument="cells", table="who.csv")
    with pytest.raises(DataError, match="Name the CSV file in the parameter `table`"):
        open_voc(place, argument="cells", site_column="hospital")


def _spoil(voc: Path, how: str) -> None:
    match how:
        case "cut off":
            path = voc / "Annotations" / "a.xml"
            path.write_bytes(path.read_bytes()[:-20])
        case "other xml":
            (voc / "Annotations" / "a.xml").write_text("<html></html>")
        case "entities":
            text = '<!DOCTYPE a [<!ENTITY b "c">]><annotation></annotation>'
            (voc / "Annotations" / "a.xml").write_text(text)
        case "no name":
            annotate(voc, "a", thing("", 1, 1, 2, 2))
        case "no corner":
            path = annotate(voc, "a", thing("red", 1, 1, 2, 2))
            path.write_text(path.read_text().replace("<ymin>1</ymin>", ""))
        case "word":
            annotate(voc, "a", thing("red", 1, "x", 2, 2))
        case "nan":
            annotate(voc, "a", thing("red", 1, "nan", 2, 2))
        case "outside":
            annotate(voc, "a", thing("red", 1, 1, 25, 5))
        case "turned":
            annotate(voc, "a", thing("red", 9, 1, 5, 5))
        case "other image":
            save_image(voc / "JPEGImages" / "a.png", 50, size=(40, 20))
        case "no image":
            (voc / "JPEGImages" / "a.png").unlink()
        case "no folder":
            (voc / "JPEGImages").rename(voc / "pictures")
        case "listed, not there":
            lists(voc, train="a", test="zz")
        case "listed twice":
            lists(voc, train="a", test="a")
        case "no test":
            lists(voc, train="a", val="b")
        case "nothing":
            for stem in "abc":
                annotate(voc, stem)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", r"a\.xml is not whole XML: .*\(\d+ bytes\)"),
        ("other xml", r"a\.xml begins with <html>; expected <annotation>"),
        ("entities", r"a\.xml declares a document type or entities"),
        ("no name", r"a\.xml: object 1 has no <name>"),
        ("no corner", r"a\.xml: object 1 \(red\): <ymin> is missing; expected a number"),
        ("word", r"<ymin> is 'x'; expected a number"),
        ("nan", r"a\.xml, object 1 \(red\): the box 0, nan, 2, 2 .* holds no numbers"),
        ("outside", r"a\.xml, object 1 \(red\): the box 0, 0, 25, 5 .* lies 5 pixels outside its"),
        ("turned", r"the box 8, 0, 5, 5 .* has no area"),
        ("other image", r"a\.xml is for an image of 20 x 10, and the image has 40 x 20"),
        ("no image", r"a\.xml has no image: .* holds no a\.jpg"),
        ("no folder", "has no folder JPEGImages; expected Annotations"),
        ("listed, not there", r"zz\.xml is not there, and ImageSets/Main lists 'zz'"),
        ("listed twice", r"test\.txt lists 'a', which is listed already"),
        ("no test", "lists train and val but no test images"),
        ("nothing", "no file holds an <object>"),
    ],
)
def test_wrong_voc_is_one_clear_error(place: Place, voc: Path, how: str, said: str) -> None:
    _spoil(voc, how)
    with pytest.raises(DataError, match=said):
        open_voc(place, argument="cells")


# --- COCO ----------------------------------------------------------------------------------------

TRIANGLE = [2, 2, 12, 2, 2, 8]


def coco_data(stems: str = "a b", **changes: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7 + k, "file_name": f"{stem}.png", "width": 20, "height": 10}
            for k, stem in enumerate(stems.split())
        ],
        "categories": [{"id": 9, "name": "polyp"}, {"id": 4, "name": "ulcer"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 9,
                "bbox": [2, 2, 10, 6],
                "segmentation": [TRIANGLE],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 4,
                "bbox": [0, 0, 5, 5],
                "iscrowd": 1,
                # by columns: the first 5 rows of the first 5 columns
                "segmentation": {"size": [10, 20], "counts": [0, *[5] * 9, 155]},
            },
        ],
        **changes,
    }


def write_coco(root: Path, name: str, data: dict[str, Any]) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def coco(data: Path) -> Path:
    root = data / "scope"
    for stem in ("a", "b"):
        save_image(root / "images" / f"{stem}.png", 50, size=(20, 10))
    write_coco(root, "annotations/instances_all.json", coco_data())
    return root


def test_coco_boxes_and_crowds(place: Place, coco: Path) -> None:
    dataset = open_coco(place, argument="scope")
    assert dataset.info.label_names == ("ulcer", "polyp")  # by the categories' numbers
    first, second = dataset.read_boxes(np.array([0, 1]))
    assert first.xyxy.tolist() == [[2, 2, 12, 8], [0, 0, 5, 5]]
    assert first.labels.tolist() == [1, 0]
    assert first.ignored.tolist() == [False, True]
    assert len(second.labels) == 0
    assert dataset.labels.tolist() == [[0, 1], [0, 0]]
    assert dataset.splits is None


def test_coco_outlines_are_painted(place: Place, coco: Path) -> None:
    dataset = open_coco(place, argument="scope", task="segmentation")
    assert dataset.info.task_kind == "segmentation"
    assert dataset.labels.tolist() == [[1, 1], [0, 0]]
    masks = dataset.read_masks(np.array([1, 0]))
    assert masks.shape == (2, 2, 10, 20)
    assert not masks[0].any()
    square = np.zeros((10, 20), bool)
    square[:5, :5] = True
    assert (masks[1, 0] == square).all()
    # Half of 10 x 6 pixels, up to the pixels of its edges, inside its box.
    rows, columns = np.nonzero(masks[1, 1])
    assert 2 <= columns.min() <= columns.max() < 12
    assert 2 <= rows.min() <= rows.max() < 8
    assert abs(len(rows) - 30) <= 8
    assert dataset.digest != open_coco(place, argument="scope").digest


def test_coco_files_of_parts(place: Place, data: Path) -> None:
    root = data / "parts"
    for part, stem, grey in (("train", "a", 50), ("valid", "b", 60), ("test", "c", 70)):
        save_image(root / part / f"{stem}.png", grey, size=(20, 10))
        write_coco(root, f"{part}/_annotations.coco.json", coco_data(stem))
    dataset = open_coco(place, argument="parts")
    assert dataset.splits is not None
    # Files are taken by name: test, train, valid, each with an image of its own grey.
    assert dataset.splits.tolist() == [2, 0, 1]
    assert dataset.read(np.arange(3))[:, 0, 0, 0].tolist() == [70, 50, 60]
    chosen = open_coco(place, argument="parts", annotations="test/_annotations.coco.json")
    assert len(chosen) == 1
    assert chosen.splits is None
    write_coco(root, "extra/_annotations.coco.json", coco_data("d"))
    save_image(root / "extra" / "d.png", 50, size=(20, 10))
    with pytest.raises(DataError, match="expected one file for each of train, val and test"):
        open_coco(place, argument="parts")


def changed(**keys: Any) -> list[dict[str, Any]]:
    return [{**coco_data()["annotations"][0], **keys}]


@pytest.mark.parametrize(
    ("changes", "task", "said"),
    [
        ({"images": 3}, "detection", "expected the lists images, annotations and categories"),
        ({"annotations": changed(id="x")}, "detection", r"annotations\[0\] has id 'x'"),
        ({"annotations": changed() * 2}, "detection", "two entries of annotations have id 1"),
        ({"annotations": changed(image_id=1)}, "detection", "annotation 1 has image_id 1, and"),
        ({"annotations": changed(category_id=1)}, "detection", "has category_id 1, and there"),
        ({"annotations": changed(bbox=[1, 2, 3])}, "detection", r"has bbox \[1, 2, 3\]; expected"),
        ({"annotations": changed(bbox=[1, 2, 3, None])}, "detection", "expected four numbers"),
        ({"annotations": changed(bbox=[1, 2, 0, 3])}, "detection", "has no area"),
        (
            {"annotations": changed(bbox=[15, 2, 9, 3])},
            "detection",
            r"annotation 1 \(polyp\): the box 15, 2, 24, 5 .* lies 4 pixels outside its image",
        ),
        ({"annotations": changed(segmentation=[])}, "segmentation", "expected polygons or run"),
        ({"annotations": changed(segmentation=[[1, 2, 3]])}, "segmentation", "three corners"),
        (
            {"annotations": changed(segmentation=[[0, 0, 30, 0, 0, 5]])},
            "segmentation",
            "outside its image of 20 x 10",
        ),
        (
            {"annotations": changed(segmentation={"size": [9, 9], "counts": [81]})},
            "segmentation",
            r"the mask has \[9, 9\] \(height, width\), and its image \[10, 20\]",
        ),
        (
            {"annotations": changed(segmentation={"size": [10, 20], "counts": [0, 5]})},
            "segmentation",
            "run lengths add up to 5 pixels; expected 200",
        ),
        ({"categories": [{"id": 9, "name": "p"}, {"id": 4, "name": "p"}]}, "detection", "one name"),
        ({"images": [{"id": 7, "file_name": "z.png"}]}, "detection", "lists the image 'z.png'"),
        (
            {"images": [{"id": 7, "file_name": "a.png", "width": 9, "height": 9}]},
            "detection",
            r"a\.png has 20 x 10 pixels, and its COCO file says 9 x 9",
        ),
    ],
)
def test_wrong_coco_is_one_clear_error(
    place: Place, coco: Path, changes: dict[str, Any], task: str, said: str
) -> None:
    write_coco(coco, "annotations/instances_all.json", coco_data(**changes))
    with pytest.raises(DataError, match=said):
        open_coco(place, argument="scope", task=task)


def test_coco_files_that_are_cut_off_or_missing(place: Place, coco: Path) -> None:
    path = coco / "annotations" / "instances_all.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"instances_all\.json is not whole JSON"):
        open_coco(place, argument="scope")
    path.unlink()
    with pytest.raises(DataMissing, match=r"has none of annotations/instances_\*\.json"):
        open_coco(place, argument="scope")


# --- tables --------------------------------------------------------------------------------------


@pytest.fixture
def table(data: Path) -> Path:
    for stem in ("a", "b"):
        save_image(data / "t" / "images" / f"{stem}.png", 50, size=(20, 10))
    path = data / "t" / "index.csv"
    path.write_text(
        "file,patient,l_x,l_y,l_w,l_h,r_x,r_y,r_w,r_h\n"
        "a.png,1,0,0,4,5,10,0,4.5,5\n"
        "b.png,2,,,,,1,1,2,2\n"
    )
    return path


def test_a_row_an_image_with_boxes_in_columns(place: Place, table: Path) -> None:
    dataset = open_boxes(place, argument="t/index.csv", prefixes="r, l")
    assert dataset.info.label_names == ("r", "l")
    first, second = dataset.read_boxes(np.array([0, 1]))
    assert first.xyxy.tolist() == [[10, 0, 14.5, 5], [0, 0, 4, 5]]
    assert second.labels.tolist() == [0]
    assert dataset.labels.tolist() == [[1, 1], [1, 0]]
    assert dataset.patients is not None


def test_a_row_a_box(place: Place, table: Path) -> None:
    table.write_text("file,label,x,y,w,h\na.png,n,1,2,3,4\nb.png,,,,,\na.png,m,0,0,2,2\n")
    dataset = open_boxes(place, argument="t/index.csv")
    assert dataset.info.label_names == ("m", "n")
    first, second = dataset.read_boxes(np.array([0, 1]))
    assert first.xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 2, 2]]
    assert first.labels.tolist() == [1, 0]
    assert len(second.labels) == 0


@pytest.mark.parametrize(
    ("old", "new", "prefixes", "said"),
    [
        ("4.5", "wide", "l, r", r"line 2: r_x '10', .*r_w 'wide', .*expected four numbers"),
        ("4.5", "", "l, r", r"line 2: .*r_w ''"),
        ("4.5", "14.5", "l, r", r"line 2 \(r\): the box 10, 0, 24.5, 5 .*4.5 pixels outside"),
        ("4.5", "4.5", "l, z", "has no column 'z_x'"),
        ("b.png", "c.png", "l, r", r"line 3: the image 'c\.png' is not in"),
        ("b.png", "a.png", "l, r", r"line 3: 'a\.png' is on line 2 already"),
        ("4.5", "4.5", None, "has no column 'label'"),
    ],
)
def test_wrong_tables_are_one_clear_error(
    place: Place, table: Path, old: str, new: str, prefixes: str | None, said: str
) -> None:
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=said):
        open_boxes(place, argument="t/index.csv", prefixes=prefixes)


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.data
def test_bccd_has_the_boxes_that_its_files_have(real: Place) -> None:
    import re

    assert real.data is not None
    dataset = open_voc(real, argument="bccd")
    assert dataset.splits is not None
    assert np.bincount(dataset.splits).tolist() == [120, 0, 72]
    assert dataset.info.label_names == ("Platelets", "RBC", "WBC")
    counts = np.zeros(3, int)
    for boxes in dataset.read_boxes(np.arange(len(dataset))):
        counts += np.bincount(boxes.labels, minlength=3)
    text = "".join(p.read_text() for p in (real.data / "bccd" / "Annotations").glob("*.xml"))
    for name, count in zip(dataset.info.label_names, counts, strict=True):
        assert count == len(re.findall(f"<name>{name}</name>", text))
    assert dataset.read(np.array([3])).shape == (1, 480, 640, 3)


@pytest.mark.data
def test_chest_lungs_are_boxes_of_patients_at_sites(real: Place) -> None:
    assert real.data is not None
    dataset = open_boxes(
        real,
        argument="chest_sites/index.csv",
        prefixes="right, left",
        patient_column="patientid",
        site_column="country",
        size=224,
    )
    assert dataset.patients is not None
    assert len(np.unique(dataset.patients)) == 203
    with (real.data / "chest_sites" / "index.csv").open() as file:
        row = next(csv.DictReader(file))
    x, y, w, h = (float(row[f"right_{part}"]) for part in "xywh")
    stretch = 224 / float(row["h"])
    found = dataset.read_boxes(np.array([0]))[0].xyxy[0]
    assert found == pytest.approx([x, y * stretch, x + w, (y + h) * stretch])
    # On most images the right lung lies left of the left one.
    boxes = dataset.read_boxes(np.arange(len(dataset)))
    assert np.mean([b.xyxy[0, 0] < b.xyxy[1, 0] for b in boxes]) > 0.95
