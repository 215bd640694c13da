"""Files in MedMNIST's layout: what is read, how it is mapped, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from dataset_files import Arrays, tiny

from medbench.api import DataError, DataMissing, Place
from medbench_datasets import _npz
from medbench_datasets.npz import open_npz


def test_images_come_in_the_order_asked_for_across_parts(place: Place, data: Path) -> None:
    np.savez_compressed(data / "x.npz", **tiny())
    dataset = open_npz(place, argument="x.npz")
    images = dataset.read(np.array([17, 0, 6, 0, 12]))
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images[:, 3, 3, 0].tolist() == [25, 0, 10, 0, 20]
    assert dataset.labels.dtype == np.int64
    assert dataset.splits is not None
    assert np.bincount(dataset.splits).tolist() == [6, 6, 6]


def test_what_is_known_of_a_file_comes_from_its_parameters(place: Place, data: Path) -> None:
    np.savez(data / "x.npz", **tiny())
    plain = open_npz(place, argument="x.npz").info
    assert (plain.name, plain.domain, plain.licence) == ("npz:x.npz", "user:x", "unstated")
    assert plain.label_names == ("class 0", "class 1")
    said = open_npz(
        place,
        argument=str(data / "x.npz"),
        domain="fundus",
        modality="fundus photography",
        licence="CC BY-NC 4.0",
        non_commercial=True,
        labels="benign, malignant, unseen",
    ).info
    assert (said.domain, said.modality, said.non_commercial) == (
        "fundus",
        "fundus photography",
        True,
    )
    assert said.label_names == ("benign", "malignant", "unseen")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 9), (8, 9, 1)),
        ((8, 9, 1), (8, 9, 1)),
        ((8, 9, 3), (8, 9, 3)),
        ((7, 8, 9), (7, 8, 9, 1)),
        ((7, 8, 9, 3), (7, 8, 9, 3)),
    ],
)
def test_pictures_colours_and_volumes_are_told_apart(
    place: Place, data: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    np.savez(data / "x.npz", **tiny(shape))
    dataset = open_npz(place, argument="x.npz")
    assert dataset.info.image_shape == expected
    assert dataset.read(np.array([3])).shape == (1, *expected)


def test_sites_and_patients_are_read_where_they_are(place: Place, data: Path) -> None:
    arrays = tiny()
    for part in ("train", "val", "test"):
        arrays[f"{part}_sites"] = np.array(["b", "a", "b", "a", "b", "b"])
        arrays[f"{part}_patients"] = np.array([7, 7, 8, 8, 9, 9])
    np.savez(data / "x.npz", **arrays)
    dataset = open_npz(place, argument="x.npz")
    assert dataset.info.site_names == ("a", "b")
    assert dataset.sites is not None
    assert dataset.sites[:6].tolist() == [1, 0, 1, 0, 1, 1]
    assert dataset.patients is not None
    # One person in two parts is one person.
    assert len(set(dataset.patients.tolist())) == 3


def test_a_file_of_one_part_has_no_splits(place: Place, data: Path) -> None:
    arrays = {key: value for key, value in tiny().items() if key.startswith("train")}
    np.savez(data / "x.npz", **arrays)
    assert open_npz(place, argument="x.npz").splits is None


def test_several_labels_an_image_are_multilabel(place: Place, data: Path) -> None:
    arrays = tiny()
    for part in ("train", "val", "test"):
        arrays[f"{part}_labels"] = np.eye(6, 3, dtype=np.uint8)
    np.savez(data / "x.npz", **arrays)
    dataset = open_npz(place, argument="x.npz")
    assert dataset.info.task_kind == "multilabel"
    assert dataset.labels.shape == (18, 3)
    assert dataset.labels.dtype == np.uint8


def _maps(dataset: object) -> list[object]:
    return [part() for part in dataset._images]  # type: ignore[attr-defined]


def test_uncompressed_images_are_mapped_in_place(place: Place, data: Path) -> None:
    np.savez(data / "x.npz", **tiny())
    dataset = open_npz(place, argument="x.npz")
    maps = _maps(dataset)
    assert all(isinstance(m, np.memmap) and m.filename == data / "x.npz" for m in maps)
    assert dataset.read(np.array([17]))[0, 0, 0, 0] == 25


def test_large_compressed_images_are_unpacked_once_and_mapped(
    place: Place, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_npz, "LARGE_BYTES", 100)
    np.savez_compressed(data / "x.npz", **tiny())
    dataset = open_npz(place, argument="x.npz")
    maps = _maps(dataset)
    assert all(isinstance(m, np.memmap) and place.cache in Path(m.filename).parents for m in maps)
    assert dataset.read(np.array([17, 0]))[:, 0, 0, 0].tolist() == [25, 0]
    kept = sorted((place.cache / "unpacked").glob("*.npy"))
    times = [p.stat().st_mtime_ns for p in kept]
    assert len(kept) == 3
    open_npz(place, argument="x.npz")
    assert [p.stat().st_mtime_ns for p in kept] == times


_READ_WITH_LITTLE_MEMORY = """
import resource, sys, zlib
from pathlib import Path
import numpy as np
from medbench.api import Place
from medbench_datasets import _npz
from medbench_datasets.npz import open_npz

data, room = Path(sys.argv[1]), int(sys.argv[2])
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
try:
    np.load(data / "x.npz")["train_images"]
except MemoryError:
    print("no room for the whole file")
dataset = open_npz(Place(data, data / "cache"), argument="x.npz")
check = 0
for start in range(0, len(dataset), 64):
    check = zlib.crc32(dataset.read(np.arange(start, min(start + 64, len(dataset)))), check)
print(check)
"""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_224_pixels_are_read_in_a_third_of_the_memory_that_they_would_fill(
    place: Place, data: Path, save: Callable[..., None]
) -> None:
    rng = np.random.default_rng(0)
    # 96 MB, in blocks of one value that deflate quickly.
    images = np.kron(
        rng.integers(0, 256, (2000, 7, 7), dtype=np.uint8), np.ones((32, 32), np.uint8)
    )
    save(data / "x.npz", train_images=images, train_labels=np.arange(2000) % 2)
    found = subprocess.run(
        [sys.executable, "-c", _READ_WITH_LITTLE_MEMORY, str(data), str(images.nbytes // 3)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split("\n")[:2] == ["no room for the whole file", str(zlib.crc32(images))]


def _unpack_at_once(data: Path, ready: Barrier) -> None:
    ready.wait()
    open_npz(Place(data, data / "cache"), argument="x.npz")


def test_processes_that_open_a_large_file_at_once_unpack_it_once(place: Place, data: Path) -> None:
    images = np.zeros((30_000, 28, 28), np.uint8)
    np.savez_compressed(data / "x.npz", train_images=images, train_labels=np.arange(30_000) % 2)
    unpacked = data / "cache" / "unpacked"
    unpacked.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3)
    others = [spawn.Process(target=_unpack_at_once, args=(data, ready)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    (whole,) = unpacked.glob("*.npy")
    assert whole.stat().st_size == images.nbytes + 128
    debris = unpacked / f".{whole.name}.killed.part"
    debris.write_bytes(b"half")
    whole.unlink()
    open_npz(Place(data, data / "cache"), argument="x.npz")
    assert whole.exists()
    assert not debris.exists()


def test_a_mapped_dataset_travels_to_another_process_without_its_pixels(
    place: Place, data: Path
) -> None:
    np.savez(data / "x.npz", **tiny((100, 100)))
    dataset = open_npz(place, argument="x.npz")
    dataset.read(np.array([0]))
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    assert pickle.loads(packed).read(np.array([17]))[0, 0, 0, 0] == 25


def test_the_digest_follows_the_bytes_and_not_the_place(place: Place, data: Path) -> None:
    np.savez(data / "x.npz", **tiny())
    (data / "y.npz").write_bytes((data / "x.npz").read_bytes())
    first = open_npz(place, argument="x.npz").digest
    assert open_npz(place, argument="y.npz", labels="a,b").digest == first
    arrays = tiny()
    arrays["train_labels"][0] = 1
    np.savez(data / "x.npz", **arrays)
    os.utime(data / "x.npz", ns=(1, 1))
    assert open_npz(place, argument="x.npz").digest != first


def _changed(key: str, value: object) -> Arrays:
    return {**tiny(), key: np.asarray(value)}


_NAN = np.zeros((6, 8, 8), np.float32)
_NAN[2, 3, 3] = np.nan


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros(3)}, "holds a; expected the keys of a MedMNIST file"),
        ({k: v for k, v in tiny().items() if k != "val_labels"}, "lacks val_labels"),
        ({k: v for k, v in tiny().items() if "test" not in k}, "no test part"),
        (_changed("train_images", _NAN), "1 pixels that are NaN or infinite"),
        (_changed("train_images", np.zeros((6, 8, 8))), "dtype float64; expected uint8"),
        (_changed("train_images", np.zeros((6, 8, 8), np.int16)), "dtype int16; expected uint8"),
        (_changed("train_images", np.zeros((6, 8, 9), np.uint8)), "image shapes differ"),
        (
            _changed("train_images", np.zeros((5, 8, 8), np.uint8)),
            "holds 5 images; expected one row",
        ),
        (_changed("train_images", np.zeros((6, 8), np.uint8)), r"has shape \(6, 8\); expected"),
        (_changed("train_labels", np.array([0, 1, -1, 0, 1, 0])), "label -1 is negative"),
        (_changed("train_labels", np.array([0, 1, 0.5, 0, 1, 0])), "holds 0.5 .1 such values"),
        (_changed("train_labels", np.array([0, 1, np.nan, 0, 1, 0])), "holds nan"),
        (_changed("train_labels", np.array(["a"] * 6)), "expected whole numbers"),
        (_changed("train_labels", np.array([0, 1, 0, 3, 1, 0])), "no image has label 2"),
        (
            _changed("train_labels", np.full((6, 2), 3)),
            "labels' differ|labels differ|differ in shape",
        ),
        (_changed("train_sites", np.arange(6)), "not test_sites, val_sites"),
    ],
)
def test_a_wrong_file_is_one_clear_error(
    place: Place, data: Path, arrays: Arrays, said: str
) -> None:
    np.savez(data / "x.npz", **arrays)
    with pytest.raises(DataError, match=said) as caught:
        open_npz(place, argument="x.npz")
    assert str(data / "x.npz") in str(caught.value)


def test_labels_beyond_the_names_are_refused(place: Place, data: Path) -> None:
    np.savez(data / "x.npz", **tiny(n_classes=3))
    with pytest.raises(DataError, match="label 2 is out of range in a dataset of 2 classes"):
        open_npz(place, argument="x.npz", labels="a,b")
    with pytest.raises(DataError, match="empty or repeated name"):
        open_npz(place, argument="x.npz", labels="a,,b")


def test_objects_are_refused_without_unpickling_them(place: Place, data: Path) -> None:
    arrays = tiny()
    arrays["train_labels"] = np.array([0, 1, None, 0, 1, 0], dtype=object)
    np.savez(data / "x.npz", **arrays)
    with pytest.raises(DataError, match="dtype object, which only pickle can read"):
        open_npz(place, argument="x.npz")


@pytest.mark.parametrize("kept", [0, 100, 1500])
def test_a_truncated_file_is_refused(place: Place, data: Path, kept: int) -> None:
    np.savez(data / "x.npz", **tiny())
    (data / "x.npz").write_bytes((data / "x.npz").read_bytes()[:kept])
    with pytest.raises(DataError, match=f"not a whole .npz file.*{kept} bytes.*get it again"):
        open_npz(place, argument="x.npz")


def test_an_altered_file_is_refused(place: Place, data: Path) -> None:
    np.savez_compressed(data / "x.npz", **tiny((32, 32)))
    with zipfile.ZipFile(data / "x.npz") as archive:
        start = archive.getinfo("train_images.npy").header_offset
    content = bytearray((data / "x.npz").read_bytes())
    content[start + 100 : start + 110] = b"\x00" * 10
    (data / "x.npz").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"truncated or altered|damaged"):
        open_npz(place, argument="x.npz")


def test_a_file_that_is_not_there_says_where_it_was_looked_for(place: Place, data: Path) -> None:
    with pytest.raises(DataMissing, match=r"Not found: .*none\.npz"):
        open_npz(place, argument="none.npz")
    (data / "folder").mkdir()
    with pytest.raises(DataError, match="is a folder; expected a file"):
        open_npz(place, argument="folder")


@pytest.mark.data
def test_real_blood_cells_in_medmnist_layout(real: Place) -> None:
    dataset = open_npz(real, argument="pbc28.npz", domain="blood-microscopy")
    assert len(dataset) == 3360
    assert dataset.info.image_shape == (28, 28, 3)
    assert len(dataset.info.label_names) == 8
    assert dataset.splits is not None
    assert np.bincount(dataset.splits).tolist() == [2080, 320, 960]
    assert real.data is not None
    with np.load(real.data / "pbc28.npz") as file:
        assert (dataset.read(np.array([3359]))[0] == file["test_images"][-1]).all()
