"""Folders and tables of image files: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import save_image
from PIL import Image

from medbench.api import DataError, DataMissing, Place
from medbench_datasets._images import ImageFiles
from medbench_datasets.folder import open_folder
from medbench_datasets.table import open_table


@pytest.fixture
def classes(data: Path) -> Path:
    """Folders of two classes with three images each, and files that are no part of them."""
    root = data / "cells"
    for label, value in (("b", 100), ("a", 50)):
        for k in range(3):
            save_image(root / label / f"{k}.png", value + k)
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "b" / "Thumbs.db").write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / "README.md").write_text("about")
    return root


@pytest.fixture
def sites(data: Path) -> Path:
    """Two sites, of which one lacks a class."""
    root = data / "hospitals"
    for k, (site, label) in enumerate([("north", "x"), ("south", "x"), ("south", "y")]):
        save_image(root / site / label / "0.png", 10 * k)
    (root / "north" / "y").mkdir()
    return root


def test_class_folders_in_sorted_order(place: Place, classes: Path) -> None:
    dataset = open_folder(place, argument="cells")
    assert dataset.info.label_names == ("a", "b")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.info.image_shape == (8, 10, 1)
    assert dataset.info.domain == "user:cells"
    assert dataset.sites is None
    assert dataset.splits is None
    assert dataset.read(np.array([5, 0]))[:, 0, 0, 0].tolist() == [102, 50]


def test_sites_hold_classes_and_need_not_hold_all(place: Place, sites: Path) -> None:
    dataset = open_folder(place, argument="hospitals")
    assert dataset.info.site_names == ("north", "south")
    assert dataset.info.label_names == ("x", "y")
    assert dataset.sites is not None
    assert dataset.sites.tolist() == [0, 1, 1]
    assert dataset.labels.tolist() == [0, 0, 1]


def test_size_and_channels_are_as_asked(place: Place, classes: Path) -> None:
    dataset = open_folder(place, argument="cells", size=16, channels=3)
    assert dataset.info.image_shape == (16, 16, 3)
    assert (dataset.read(np.array([3])) == 100).all()


def test_images_that_differ_in_size_or_colour_are_made_alike(place: Place, classes: Path) -> None:
    save_image(classes / "a" / "9.jpg", 200, size=(20, 30), mode="RGB")
    dataset = open_folder(place, argument="cells")
    assert dataset.info.image_shape == (224, 224, 3)
    assert dataset.read(np.array([3])).shape == (1, 224, 224, 3)


def test_images_are_reduced_with_antialiasing(place: Place, data: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    (data / "s" / "a").mkdir(parents=True)
    Image.fromarray(stripes).save(data / "s" / "a" / "0.png")
    pixels = open_folder(place, argument="s", size=16).read(np.array([0]))
    assert 118 <= pixels.min() <= pixels.max() <= 137


def test_nothing_is_decoded_before_it_is_read(
    place: Place, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    open_folder(place, argument="cells")


def test_the_digest_follows_bytes_names_and_shape(place: Place, classes: Path) -> None:
    first = open_folder(place, argument="cells").digest
    assert open_folder(place, argument=str(classes), domain="x").digest == first
    assert open_folder(place, argument="cells", size=16).digest != first
    save_image(classes / "a" / "0.png", 51)
    second = open_folder(place, argument="cells").digest
    assert second != first
    (classes / "a" / "0.png").rename(classes / "b" / "9.png")
    assert open_folder(place, argument="cells").digest not in (first, second)


def test_the_digest_is_remembered_while_nothing_changes(
    place: Place, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_folder(place, argument="cells").digest
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read again"))
    assert open_folder(place, argument="cells").digest == first


def _break(root: Path, how: str) -> None:
    match how:
        case "text":
            (root / "a" / "notes.txt").write_text("x")
        case "not an image":
            (root / "a" / "3.png").write_bytes(b"not a png at all")
        case "empty file":
            (root / "a" / "3.png").write_bytes(b"")
        case "16 bit":
            save_image(root / "a" / "3.png", 1000, mode="I;16")
        case "empty class":
            (root / "c").mkdir()
        case "nested":
            save_image(root / "c" / "deep" / "0.png")
        case "loose image":
            save_image(root / "0.png")
        case "too deep":
            save_image(root / "a" / "deep" / "0.png")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("text", "notes.txt is not an image by its name; expected .png"),
        ("not an image", r"3\.png is not a readable image \(16 bytes\)"),
        ("empty file", r"3\.png is not a readable image \(0 bytes\)"),
        ("16 bit", r"3\.png has pixels of type I;16; expected 8 bits"),
        ("empty class", "c holds no images: fill it or take it away"),
        ("nested", "the layout is not clear, for a/ holds files and c/ holds folders"),
        ("loose image", r"0\.png lies outside any class folder"),
        ("too deep", "layout is not clear"),
    ],
)
def test_a_wrong_folder_is_one_clear_error(
    place: Place, classes: Path, how: str, said: str
) -> None:
    _break(classes, how)
    with pytest.raises(DataError, match=said):
        open_folder(place, argument="cells")


def test_a_folder_without_classes_is_refused(place: Place, data: Path, sites: Path) -> None:
    (data / "empty").mkdir()
    with pytest.raises(DataError, match="has no folders in it; expected one for each class"):
        open_folder(place, argument="empty")
    with pytest.raises(DataMissing, match="Not found"):
        open_folder(place, argument="nowhere")
    with pytest.raises(DataError, match="is a folder inside the class folder"):
        open_folder(place, argument="hospitals", layout="class")


def test_an_image_that_breaks_in_its_middle_is_named_when_read(place: Place, data: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = data / "n" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    dataset = open_folder(place, argument="n")
    with pytest.raises(DataError, match=r"a/0\.png cannot be decoded"):
        dataset.read(np.array([0]))


TABLE = """image,label,patient,site,split
0.png,sick,p1,north,train
1.png,well,p2,south,TEST
2.png,sick,p1,north,val
"""


def _table(data: Path, text: str, folder: str = "t") -> Path:
    for k in range(3):
        save_image(data / folder / f"{k}.png", 10 * k)
    path = data / "t" / "index.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_gives_labels_patients_sites_and_splits(place: Place, data: Path) -> None:
    _table(data, TABLE)
    dataset = open_table(place, argument="t/index.csv")
    assert dataset.info.label_names == ("sick", "well")
    assert dataset.info.site_names == ("north", "south")
    assert dataset.labels.tolist() == [0, 1, 0]
    assert [None if c is None else c.tolist() for c in _columns(dataset)] == [
        [0, 2, 1],
        [0, 1, 0],
        [0, 1, 0],
    ]
    assert dataset.read(np.array([2, 1]))[:, 0, 0, 0].tolist() == [20, 10]


def _columns(dataset: ImageFiles) -> list[np.ndarray | None]:
    return [dataset.splits, dataset.sites, dataset.patients]


def test_columns_and_folder_can_be_named_otherwise(place: Place, data: Path) -> None:
    text = "\ufeffname,grade,who\n0.png,10,a\n1.png,2,b\n2.png,10,a\n"
    _table(data, text, folder="t/pictures")
    dataset = open_table(
        place,
        argument="t/index.csv",
        image_column="name",
        label_column="grade",
        patient_column="who",
        images="pictures",
    )
    # Whole numbers are ordered by value.
    assert dataset.info.label_names == ("2", "10")
    assert _columns(dataset)[:2] == [None, None]


def test_images_are_looked_for_in_a_folder_beside_the_table(place: Place, data: Path) -> None:
    _table(data, "file,label\n0.png,a\n1.png,b\n", folder="t/images")
    assert len(open_table(place, argument="t/index.csv")) == 2


def test_rows_without_label_or_with_unwanted_ones_can_be_dropped(place: Place, data: Path) -> None:
    _table(data, "file,label\n0.png,a\n1.png,\n2.png,?\n")
    dataset = open_table(place, argument="t/index.csv", drop_unlabelled=True, drop_labels="?")
    assert dataset.info.label_names == ("a",)
    with pytest.raises(DataError, match="drop_labels names 'b', which no row has"):
        open_table(place, argument="t/index.csv", drop_labels="b")


def test_an_empty_site_is_a_site_of_its_own(place: Place, data: Path) -> None:
    _table(data, "file,label,site\n0.png,a,x\n1.png,b,\n")
    assert open_table(place, argument="t/index.csv").info.site_names == ("(unknown)", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\n0.png,a\n\n1.png,\n2.png,\n", "'label' is empty in 2 of 3 rows, line 4, 5"),
        (TABLE.replace("p2", ""), "'patient' is empty in 1 of 3 rows, line 3"),
        (TABLE.replace("TEST", "tset"), "line 3: split 'tset' is not known; expected train, val"),
        (TABLE.replace("TEST", "val"), "none of test"),
        (TABLE.replace("1.png", "7.png"), "line 3: the image '7.png' is not in .*1 of 3 rows"),
        (TABLE.replace("label", "lable"), "no column 'label'.* Did you mean 'lable'"),
        (TABLE.replace("image,", "picture,"), "no column 'image' or 'file'"),
        (TABLE.replace("north,val", "north,val,more"), "line 4: 6 cells where the header has 5"),
        (TABLE.replace("site", "patient"), "two columns named 'patient'"),
        ("image,label\n", "has no rows to use"),
        ("", "no column 'image' or 'file'"),
        ('image,label\n"0.png,a\n', "is not a CSV table"),
    ],
)
def test_a_wrong_table_is_one_clear_error(place: Place, data: Path, text: str, said: str) -> None:
    _table(data, text)
    with pytest.raises(DataError, match=said):
        open_table(place, argument="t/index.csv")


def test_a_table_in_another_encoding_is_refused(place: Place, data: Path) -> None:
    path = _table(data, "")
    path.write_bytes("image,label\n0.png,gesäß\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        open_table(place, argument="t/index.csv")


@pytest.mark.data
def test_real_white_blood_cells_at_three_sites(real: Place) -> None:
    dataset = open_folder(real, argument="wbc_sites")
    assert len(dataset) == 996
    assert dataset.info.image_shape == (64, 64, 3)
    assert dataset.info.label_names == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert dataset.info.site_names == ("cellavision_blog", "pbc_barcelona", "tecom_jiangxi")
    assert dataset.read(np.array([995, 0])).std() > 10


@pytest.mark.data
def test_real_chest_radiographs_from_a_table(real: Place) -> None:
    def opened(**more: object) -> ImageFiles:
        return open_table(
            real,
            argument="chest_sites/index.csv",
            label_column="view",
            patient_column="patientid",
            site_column="country",
            size=64,
            **more,  # type: ignore[arg-type]
        )

    with pytest.raises(DataError, match="'view' is empty in 33 of 353 rows, line 274"):
        opened()
    dataset = opened(drop_unlabelled=True, drop_labels="?")
    assert dataset.info.label_names == ("AP", "AP Supine", "PA")
    assert len(dataset) == 319
    assert dataset.read(np.arange(3)).shape[1:3] == (64, 64)
    assert len(opened(drop_unlabelled=True)) == 320
