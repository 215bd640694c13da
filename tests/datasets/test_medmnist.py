"""MedMNIST: the table of facts, the MD5 check, and downloads that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import tiny

from conftest import Serve
from medbench.api import DataError, DataMissing, Place, Unavailable
from medbench_datasets import medmnist_sets
from medbench_datasets._medmnist_facts import MEDMNIST


def test_the_table_of_facts_agrees_with_the_medmnist_package() -> None:
    published = medmnist_sets.published()
    assert sorted(facts.flag for facts in MEDMNIST.values()) == sorted(published)
    for name, facts in MEDMNIST.items():
        known = published[facts.flag]
        assert facts.n_classes == len(known["label"]), name
        assert facts.licence == known["license"], name
        assert facts.non_commercial == ("NC" in known["license"]), name
        assert (facts.n_dims == 3) == facts.flag.endswith("3d"), name
        assert (facts.task_kind == "multilabel") == known["task"].startswith("multi-label"), name
        assert facts.ordinal == known["task"].startswith("ordinal"), name
        sizes = {28} | {int(key[4:]) for key in known if key.startswith("MD5_")}
        assert set(facts.sizes) == sizes, name


def test_the_published_table_is_what_the_package_itself_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Run alone: importing the package would import torch, and write to the home folder.
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = importlib.util.find_spec("medmnist")
    assert spec is not None
    assert spec.origin is not None
    assert (
        medmnist_sets.published()
        == runpy.run_path(str(Path(spec.origin).parent / "info.py"))["INFO"]
    )


def test_organs_from_the_same_scans_share_a_domain() -> None:
    organs = {MEDMNIST[name].domain for name in ("organa", "organc", "organs", "organ3d")}
    assert organs == {"abdominal-ct"}
    others = [facts.domain for name, facts in MEDMNIST.items() if not name.startswith("organ")]
    assert len(set(others)) == 14


def test_every_set_has_its_two_functions() -> None:
    for name in MEDMNIST:
        assert callable(getattr(medmnist_sets, f"open_{name}"))
        assert callable(getattr(medmnist_sets, f"fetch_{name}"))
    with pytest.raises(AttributeError, match="open_brain"):
        _ = medmnist_sets.open_brain


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny file that passes for BreastMNIST: the content, which is published under its MD5."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **tiny((28, 28)))
    content = buffer.getvalue()
    facts: dict[str, Any] = {
        "MD5": hashlib.md5(content).hexdigest(),
        "MD5_64": hashlib.md5(content).hexdigest(),
        "url": "http://127.0.0.1:9/breastmnist.npz",
        "url_64": "http://127.0.0.1:9/breastmnist_64.npz",
        "label": {"0": "malignant", "1": "normal, benign"},
    }
    monkeypatch.setattr(medmnist_sets, "published", lambda: {"breastmnist": facts})
    return content


@pytest.mark.parametrize("name", ["medmnist/breastmnist.npz", "breastmnist.npz"])
def test_files_are_found_in_the_folder_or_beside_it(
    place: Place, data: Path, published: bytes, name: str
) -> None:
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_bytes(published)
    dataset = medmnist_sets.open_set("breast", place)
    assert dataset.info.label_names == ("malignant", "normal, benign")
    assert len(dataset) == 18


def test_an_altered_file_is_told_by_its_md5_and_once(
    place: Place, data: Path, published: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "breastmnist.npz").write_bytes(published[:-1] + b"x")
    actual = hashlib.md5(published[:-1] + b"x").hexdigest()
    expected = hashlib.md5(published).hexdigest()
    with pytest.raises(DataError, match=f"MD5 {actual}.*has {expected}.*delete it and run") as one:
        medmnist_sets.open_set("breast", place)
    assert "medbench data get medmnist/breast" in str(one.value)
    # Known by size and time: the second look does not read the file again.
    monkeypatch.setattr("medbench_datasets._store.hashlib.md5", _never)
    with pytest.raises(DataError, match=actual):
        medmnist_sets.open_set("breast", place)


def _never(*args: object, **kwargs: object) -> None:
    raise AssertionError("the file was read again")


def test_a_set_that_is_not_there_says_how_to_get_it(place: Place, published: bytes) -> None:
    with pytest.raises(DataMissing, match="medbench data get medmnist/breast --param size=64"):
        medmnist_sets.open_set("breast", place, size=64)
    with pytest.raises(DataMissing, match="MEDBENCH_DATA is not set"):
        medmnist_sets.open_set("breast", Place(None, place.cache))
    with pytest.raises(DataError, match="size=32 is not published for breastmnist"):
        medmnist_sets.open_set("breast", place, size=32)


def test_a_download_is_checked_and_then_kept(
    place: Place, data: Path, published: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve({"breastmnist_64.npz": published})
    monkeypatch.setenv(medmnist_sets.MIRROR, url + "/")
    written = medmnist_sets.fetch_set("breast", place, size=64)
    assert written == [data / "medmnist" / "breastmnist_64.npz"]
    assert written[0].read_bytes() == published
    assert len(medmnist_sets.open_set("breast", place, size=64)) == 18
    monkeypatch.setenv(medmnist_sets.MIRROR, "http://127.0.0.1:9")
    assert medmnist_sets.fetch_set("breast", place, size=64) == written  # nothing is asked again


@pytest.mark.parametrize(
    ("served", "cut", "kind", "said"),
    [
        ("altered", None, DataError, "has MD5 .*; expected .*Nothing was kept"),
        ("nothing", None, Unavailable, "answered 404"),
        ("whole", 500, Unavailable, "broke off.*nothing was kept"),
        ("nowhere", None, Unavailable, "cannot be reached"),
    ],
)
def test_a_failed_download_leaves_nothing(
    place: Place,
    data: Path,
    published: bytes,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    served: str,
    cut: int | None,
    kind: type[Exception],
    said: str,
) -> None:
    files = {"altered": published + b"x", "whole": published}
    content = {"breastmnist.npz": files[served]} if served in files else {}
    url = "http://127.0.0.1:9" if served == "nowhere" else serve(content, cut)
    monkeypatch.setenv(medmnist_sets.MIRROR, url)
    with pytest.raises(kind, match=f"(?s){said}"):
        medmnist_sets.fetch_set("breast", place)
    assert [p for p in data.rglob("*") if p.is_file()] == []


def test_a_download_into_a_folder_that_cannot_be_made_says_so(
    place: Place, data: Path, published: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(medmnist_sets.MIRROR, serve({"breastmnist.npz": published}))
    (data / "medmnist").write_text("a file in the way")
    with pytest.raises(Unavailable, match="Cannot write"):
        medmnist_sets.fetch_set("breast", place)
    with pytest.raises(DataMissing, match="MEDBENCH_DATA is not set"):
        medmnist_sets.fetch_set("breast", Place(None, place.cache))


def test_a_full_disk_says_so_and_leaves_nothing(
    place: Place, data: Path, published: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv(medmnist_sets.MIRROR, serve({"breastmnist.npz": published}))
    monkeypatch.setattr("medbench_datasets._store.os.fsync", full)
    with pytest.raises(Unavailable, match=r"No space left on device\. Free space there"):
        medmnist_sets.fetch_set("breast", place)
    assert [p for p in data.rglob("*") if p.is_file()] == []


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "counts", "ordinal"),
    [
        ("breast", (28, 28, 1), [546, 78, 156], False),
        ("pneumonia", (28, 28, 1), [4708, 524, 624], False),
        ("retina", (28, 28, 3), [1080, 120, 400], True),
        ("adrenal3d", (28, 28, 28, 1), [1188, 98, 298], False),
    ],
)
def test_real_sets(
    real: Place, name: str, shape: tuple[int, ...], counts: list[int], ordinal: bool
) -> None:
    dataset = medmnist_sets.open_set(name, real)
    assert dataset.info.image_shape == shape
    assert dataset.info.ordinal is ordinal
    assert dataset.splits is not None
    assert np.bincount(dataset.splits).tolist() == counts
    flag = MEDMNIST[name].flag
    assert real.data is not None
    with np.load(real.data / "medmnist" / f"{flag}.npz") as file:
        expected = file["val_images"][-1]
        assert (dataset.labels[-1] == file["test_labels"][-1]).all()
    index = counts[0] + counts[1] - 1
    assert (dataset.read(np.array([index]))[0].squeeze() == expected.squeeze()).all()


@pytest.mark.data
def test_a_real_file_with_one_byte_changed_is_refused(
    real: Place, place: Place, data: Path
) -> None:
    assert real.data is not None
    content = bytearray((real.data / "medmnist" / "breastmnist.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (data / "breastmnist.npz").write_bytes(bytes(content))
    with pytest.raises(DataError, match="750601b1f35ba3300ea97c75c52ff8f6"):
        medmnist_sets.open_set("breast", place)
