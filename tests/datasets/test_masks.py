"""Data sets with masks: label maps beside images, and .npz files; read, and refused by name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from dataset_files import save_image
from numpy.typing import NDArray
from PIL import Image

from medbench.api import ContractError, DataError, Place
from medbench_datasets._targets import resized
from medbench_datasets.label_maps import instance_boxes, open_masks
from medbench_datasets.npz_masks import open_npz_masks


def save_map(path: Path, values: NDArray[np.int64], dtype: str = "uint8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)
    return path


@pytest.fixture
def maps() -> list[NDArray[np.int64]]:
    """Two maps of 8 x 10 pixels; the second has no pixel of 2."""
    first, second = np.zeros((8, 10), np.int64), np.zeros((8, 10), np.int64)
    first[1:3, 2:5], first[5:8, 6:10] = 1, 2
    second[0, 0] = 1
    return [first, second]


@pytest.fixture
def folder(data: Path, maps: list[NDArray[np.int64]]) -> Path:
    for stem, found in zip("ab", maps, strict=True):
        save_image(data / "m" / "images" / f"{stem}.jpg", 50)
        save_map(data / "m" / "labels" / f"{stem}.png", found)
    return data / "m"


def test_values_are_classes(place: Place, folder: Path, maps: list[NDArray[np.int64]]) -> None:
    dataset = open_masks(place, argument="m", labels="liver, spleen")
    assert dataset.info.task_kind == "segmentation"
    assert dataset.info.label_names == ("liver", "spleen")
    assert dataset.labels.tolist() == [[1, 1], [1, 0]]
    masks = dataset.read_masks(np.array([1, 0]))
    assert masks.dtype == np.bool_
    for row, found in zip(masks, reversed(maps), strict=True):
        assert (row[0] == (found == 1)).all()
        assert (row[1] == (found == 2)).all()
    assert open_masks(place, argument="m").info.label_names == ("class 1", "class 2")
    with pytest.raises(ContractError, match="has no boxes"):
        dataset.read_boxes(np.array([0]))


def test_masks_follow_their_image_when_it_is_resized(
    place: Place, folder: Path, maps: list[NDArray[np.int64]]
) -> None:
    masks = open_masks(place, argument="m", size=40).read_masks(np.array([0]))
    assert masks.shape == (1, 2, 40, 40)
    # 8 x 10 to 40 x 40: each pixel becomes 5 x 4.
    assert (masks[0, 0] == np.repeat(np.repeat(maps[0] == 1, 5, axis=0), 4, axis=1)).all()


@pytest.mark.parametrize(("shape", "size"), [((9, 7), (4, 5)), ((5, 6), (13, 8)), ((8, 8), (3, 8))])
def test_resizing_takes_the_neighbour_that_pillow_takes(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    expected = Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST)
    assert (resized(values, size) == np.asarray(expected)).all()


def test_one_class_may_have_any_value(place: Place, folder: Path) -> None:
    for stem in "ab":
        save_map(folder / "labels" / f"{stem}.png", np.eye(8, 10, dtype=np.int64) * 255)
    dataset = open_masks(place, argument="m", labels="lesion")
    assert dataset.labels.tolist() == [[1], [1]]
    assert (dataset.read_masks(np.array([0]))[0, 0] == np.eye(8, 10, dtype=bool)).all()


def test_instances_are_one_class_and_give_boxes(place: Place, folder: Path) -> None:
    found = np.zeros((8, 10), np.int64)
    found[1:3, 2:5], found[5, 9] = 700, 3
    save_map(folder / "labels" / "a.png", found, "uint16")
    save_map(folder / "labels" / "b.png", found * 0, "uint16")
    dataset = open_masks(place, argument="m", kind="instance", task="detection", size=20)
    assert dataset.info.task_kind == "detection"
    assert dataset.labels.tolist() == [[1], [0]]
    first, second = dataset.read_boxes(np.array([0, 1]))
    # 8 rows become 20 (2.5 each), 10 columns become 20 (2 each); in the order of values.
    assert first.xyxy.tolist() == [[18, 12.5, 20, 15], [4, 2.5, 10, 7.5]]
    assert second.xyxy.shape == (0, 4)
    masks = open_masks(place, argument="m", kind="instance").read_masks(np.array([0]))
    assert (masks[0, 0] == (found > 0)).all()


def test_boxes_enclose_their_objects_exactly() -> None:
    found = np.random.default_rng(1).integers(0, 4, (7, 9)).astype(np.int32)
    for value, box in zip((1, 2, 3), instance_boxes(found), strict=True):
        rows, columns = np.nonzero(found == value)
        low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
        assert box.tolist() == [*low, *high]


def test_the_digest_follows_maps_images_and_names(place: Place, folder: Path) -> None:
    digest = open_masks(place, argument="m").digest
    assert open_masks(place, argument=str(folder), domain="x").digest == digest
    assert open_masks(place, argument="m", labels="a, b").digest != digest
    assert open_masks(place, argument="m", kind="instance").digest != digest
    save_map(folder / "labels" / "b.png", np.eye(8, 10, dtype=np.int64))
    assert open_masks(place, argument="m").digest != digest


def _spoil(folder: Path, how: str) -> None:
    path = folder / "labels" / "a.png"
    match how:
        case "size":
            save_map(path, np.ones((8, 9), np.int64))
        case "no map":
            path.unlink()
        case "no image":
            (folder / "images" / "a.jpg").unlink()
        case "colour":
            Image.new("RGB", (10, 8), (1, 2, 3)).save(path)
        case "cut off":
            path.write_bytes(path.read_bytes()[:40])
        case "value":
            save_map(path, np.full((8, 10), 7))
        case "empty":
            for stem in "ab":
                save_map(folder / "labels" / f"{stem}.png", np.zeros((8, 10), np.int64))
        case "folder":
            (folder / "labels").rename(folder / "targets")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("size", r"a\.png has 9 x 8 pixels, and its image .*a\.jpg has 10 x 8"),
        ("no map", "holds no label map named 'a'"),
        ("no image", "holds no image named 'a'"),
        ("colour", r"a\.png has pixels of type RGB; expected one whole number"),
        ("cut off", r"a\.png cannot be decoded"),
        ("value", r"holds the value 7; expected 0 for background and 1\.\.\.2 for x, y"),
        ("empty", "every label map is empty"),
        ("folder", r"has no folder 'labels' \(it has images, targets\)"),
    ],
)
def test_wrong_maps_are_one_clear_error(place: Place, folder: Path, how: str, said: str) -> None:
    _spoil(folder, how)
    with pytest.raises(DataError, match=said):
        open_masks(place, argument="m", labels="x, y")


def test_kinds_and_tasks_that_do_not_go_together(place: Place, folder: Path) -> None:
    with pytest.raises(DataError, match="do not go together"):
        open_masks(place, argument="m", task="detection")
    with pytest.raises(DataError, match="instances are of one class, and labels names 2"):
        open_masks(place, argument="m", kind="instance", labels="a, b")


# --- .npz ----------------------------------------------------------------------------------------


def arrays(key: str = "label") -> dict[str, NDArray[np.uint8]]:
    """Three parts of two images; image k of all is k and holds class 1, every other class 2 too."""
    found = {}
    for start, part in ((0, "train"), (2, "val"), (4, "test")):
        images, masks = np.zeros((2, 6, 5, 3), np.uint8), np.zeros((2, 6, 5), np.uint8)
        for k in range(2):
            images[k] = start + k
            masks[k, 0, k] = 1
            masks[k, 1 + k, 2:4] = 2 * k
        found[f"{part}_images"], found[f"{part}_{key}"] = images, masks
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["label", "masks"])
def test_npz_files_hold_images_and_masks(place: Place, data: Path, save, key: str) -> None:
    save(data / "x.npz", **arrays(key))
    dataset = open_npz_masks(place, argument="x.npz", labels="cup, disc")
    assert dataset.info.label_names == ("cup", "disc")
    assert dataset.splits is not None
    assert dataset.splits.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.labels.tolist() == [[1, 0], [1, 1]] * 3
    masks = dataset.read_masks(np.array([5, 0]))
    assert masks.shape == (2, 2, 6, 5)
    assert np.argwhere(masks[0]).tolist() == [[0, 0, 1], [1, 2, 2], [1, 2, 3]]
    assert np.argwhere(masks[1]).tolist() == [[0, 0, 0]]
    assert dataset.read(np.array([5, 0]))[:, 0, 0, 0].tolist() == [5, 0]


def test_npz_files_with_several_sets(place: Place, data: Path) -> None:
    named = {f"{name}_2": array for name, array in arrays().items()}
    np.savez(data / "x.npz", **arrays(), **named)
    chosen = open_npz_masks(place, argument="x.npz", category="2")
    assert len(chosen) == 6
    assert chosen.digest != open_npz_masks(place, argument="x.npz").digest


@pytest.mark.parametrize(
    ("changes", "labels", "said"),
    [
        ({"train_label": None}, None, "has train_images but neither train_label nor train_masks"),
        ({"val_label": np.zeros((2, 6, 4), np.uint8)}, None, r"val_label has shape \(2, 6, 4\)"),
        ({"val_label": np.zeros((1, 6, 5), np.uint8)}, None, r"val_label has shape \(1, 6, 5\)"),
        ({"val_label": np.zeros((2, 6, 5))}, None, "dtype float64; expected whole numbers"),
        ({"test_label": np.full((2, 6, 5), 9, np.uint8)}, "a, b", "holds the value 9; expected 0"),
        ({"test_images": None}, None, "but no test part"),
        ({"val_images": np.zeros((2, 6, 4, 3), np.uint8)}, None, "image shapes differ"),
    ],
)
def test_wrong_npz_files_are_one_clear_error(
    place: Place, data: Path, changes, labels: str | None, said: str
) -> None:
    content = {**arrays(), **changes}
    np.savez(data / "x.npz", **{k: v for k, v in content.items() if v is not None})
    with pytest.raises(DataError, match=said):
        open_npz_masks(place, argument="x.npz", labels=labels)


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.data
def test_nuclei_have_as_many_objects_as_their_table_says(real: Place) -> None:
    assert real.data is not None
    options = {"kind": "instance", "table": "meta.csv", "site_column": "kind"}
    dataset = open_masks(real, argument="nuclei", task="detection", **options)
    with (real.data / "nuclei" / "meta.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(dataset) == len(rows) == 130
    names = sorted(rows)
    boxes = dataset.read_boxes(np.arange(130))
    assert [len(b.labels) for b in boxes] == [int(rows[name]["n_nuclei"]) for name in names]
    assert dataset.sites is not None
    sites = [dataset.info.site_names[k] for k in dataset.sites]
    assert sites == [rows[name]["kind"] for name in names]


@pytest.mark.data
def test_nuclei_are_brighter_than_what_is_around_them_under_fluorescence(real: Place) -> None:
    dataset = open_masks(
        real, argument="nuclei", kind="instance", table="meta.csv", site_column="kind", size=96
    )
    assert dataset.sites is not None
    dark = np.flatnonzero(dataset.sites == dataset.info.site_names.index("dark_gray"))
    images = dataset.read(dark)[..., 0].astype(float)
    masks = dataset.read_masks(dark)[:, 0]
    assert all(im[m].mean() > im[~m].mean() for im, m in zip(images, masks, strict=True))
