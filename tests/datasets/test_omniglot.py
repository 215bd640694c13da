"""Omniglot: arrays and official zips give the same classes; splits, rotations, preparation."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Serve
from medbench.api import DataError, DataMissing, Place
from medbench_datasets import omniglot
from medbench_datasets.omniglot import Omniglot

PARTS = {"images_background": ("Latin", 3), "images_evaluation": ("Greek", 2)}


def _drawing(part: str, character: int, k: int) -> np.ndarray:
    """Paper with one stroke, longer for later drawings."""
    paper = np.ones((105, 105), np.bool_)
    row = 10 + 20 * character + (5 if part == "images_evaluation" else 0)
    paper[row : row + 8, 10 : 40 + 3 * k] = False
    return paper


def _zips(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for part, (alphabet, n) in PARTS.items():
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for c in range(n):
                for k in range(20):
                    png = io.BytesIO()
                    Image.fromarray(_drawing(part, c, k)).save(png, "PNG")
                    name = f"{part}/{alphabet}/character{c + 1:02d}/{c:04d}_{k + 1:02d}.png"
                    archive.writestr(name, png.getvalue())


def _arrays(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    names = []
    for part, (alphabet, n) in PARTS.items():
        # Rows in another order than the names, as in real files.
        order = list(reversed(range(n)))
        images = np.stack([[_drawing(part, c, k) for k in range(20)] for c in order])
        np.savez_compressed(folder / f"{part}.npz", images=images)
        for row, c in enumerate(order):
            character = f"character{c + 1:02d}"
            names.append({"part": part, "alphabet": alphabet, "character": character, "row": row})
    (folder / "characters.json").write_text(json.dumps(names))


def _vinyals(folder: Path) -> None:
    parts = {
        "train": {"background": {"Latin": ["character01", "character03"]}, "evaluation": {}},
        "val": {"background": {"Latin": ["character02"]}, "evaluation": {}},
        "test": {"background": {}, "evaluation": {"Greek": ["character02", "character01"]}},
    }
    for part, named in parts.items():
        (folder / f"vinyals_{part}.json").write_text(json.dumps(named))


@pytest.fixture
def zips(data: Path) -> Path:
    _zips(data / "omniglot")
    return data / "omniglot"


@pytest.fixture
def arrays(data: Path) -> Path:
    _arrays(data / "omniglot")
    return data / "omniglot"


def test_arrays_and_zips_are_the_same_dataset(place: Place, zips: Path) -> None:
    from_zips = Omniglot(place)
    every = np.arange(len(from_zips))
    images = from_zips.read(every)
    _arrays(zips)
    from_arrays = Omniglot(place)
    assert from_arrays.info == from_zips.info
    assert (from_arrays.read(every) == images).all()
    assert from_arrays.digest != from_zips.digest  # the digest is of the files


def test_each_rotation_is_a_class_of_its_own(place: Place, zips: Path) -> None:
    dataset = Omniglot(place)
    assert dataset.info.label_names[:5] == (
        "Latin/character01/rot000",
        "Latin/character01/rot090",
        "Latin/character01/rot180",
        "Latin/character01/rot270",
        "Latin/character02/rot000",
    )
    assert len(dataset) == 5 * 4 * 20
    upright, turned = dataset.read(np.array([7, 27]))
    assert dataset.labels[[7, 27]].tolist() == [0, 1]
    assert (turned == np.rot90(upright)).all()


def test_ink_is_bright_on_black_unless_asked_otherwise(place: Place, zips: Path) -> None:
    image = Omniglot(place).read(np.array([19]))
    assert set(np.unique(image)) == {0, 255}
    assert (image > 0).mean() < 0.2
    plain = Omniglot(place, invert=False, rotations=False)
    assert (plain.read(np.array([19])) == 255 - image).all()
    assert plain.info.label_names[0] == "Latin/character01"


def test_nearest_is_what_pil_makes_of_the_official_one_bit_images(place: Place, zips: Path) -> None:
    bit = Image.fromarray(_drawing("images_background", 1, 4))
    assert bit.mode == "1"
    expected = 255 - np.asarray(bit.resize((28, 28), Image.Resampling.LANCZOS), np.uint8) * 255
    dataset = Omniglot(place, rotations=False)
    assert (dataset.read(np.array([24]))[0, :, :, 0] == expected).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_other_reductions_are_smooth(place: Place, zips: Path, interpolation: str) -> None:
    images = Omniglot(place, interpolation=interpolation, size=20).read(np.arange(20))
    assert images.shape == (20, 20, 20, 1)
    assert len(np.unique(images)) > 10


def test_the_split_of_vinyals_is_known_when_its_files_are_there(place: Place, zips: Path) -> None:
    only = Omniglot(place).info.class_splits
    assert list(only) == ["lake"]
    assert (len(only["lake"].train), only["lake"].val, len(only["lake"].test)) == (12, (), 8)
    before = Omniglot(place).digest
    _vinyals(zips)
    dataset = Omniglot(place)
    assert dataset.digest != before
    split = dataset.info.class_splits["vinyals"]
    names = dataset.info.label_names
    assert [names[k] for k in split.train[::4]] == [
        "Latin/character01/rot000",
        "Latin/character03/rot000",
    ]
    assert len(split.val) == 4
    assert [names[k] for k in split.test][3:5] == [
        "Greek/character01/rot270",
        "Greek/character02/rot000",
    ]
    (zips / "vinyals_val.json").unlink()
    with pytest.raises(DataMissing, match=r"lacks vinyals_val\.json: expected all three"):
        Omniglot(place)


def test_reduced_drawings_are_made_once(
    place: Place, zips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Omniglot(place).read(np.arange(400))
    monkeypatch.setattr(omniglot, "iterate_drawings", lambda *args: pytest.fail("prepared again"))
    assert (Omniglot(place).read(np.arange(400)) == first).all()


def test_missing_and_wrong_files_are_named(place: Place, data: Path) -> None:
    with pytest.raises(DataMissing, match=r"images_background\.npz, .*medbench data get omniglot"):
        Omniglot(place)
    folder = data / "omniglot"
    _zips(folder)
    evaluation = folder / "images_evaluation.zip"
    evaluation.write_bytes(evaluation.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"images_evaluation\.zip is not a whole zip file"):
        Omniglot(place)
    evaluation.unlink()
    with pytest.raises(DataMissing, match=r"images_evaluation\.zip, though images_background"):
        Omniglot(place)


def test_wrong_arrays_are_named(place: Place, arrays: Path) -> None:
    np.savez(arrays / "images_background.npz", images=np.zeros((3, 20, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"dtype uint8 and shape .*; expected bool \(3, 20, 105"):
        Omniglot(place)
    (arrays / "characters.json").write_text('[{"part": "x"}]')
    with pytest.raises(DataError, match=r"characters\.json cannot be understood"):
        Omniglot(place)
    (arrays / "characters.json").unlink()
    with pytest.raises(DataMissing, match=r"characters\.json, which names the rows"):
        Omniglot(place)


def test_a_split_that_names_an_unknown_character_is_refused(place: Place, zips: Path) -> None:
    _vinyals(zips)
    (zips / "vinyals_val.json").write_text('{"background": {"Latin": ["character99"]}}')
    with pytest.raises(DataError, match=r"vinyals_val\.json names images_background/Latin/char"):
        Omniglot(place)
    (zips / "vinyals_val.json").write_text('{"background": {"Latin": ["character01"]}}')
    with pytest.raises(DataError, match="share characters"):
        Omniglot(place)


def test_the_official_zips_are_fetched_and_checked(
    place: Place, data: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _zips(tmp_path / "upstream")
    content = {p.name: p.read_bytes() for p in (tmp_path / "upstream").iterdir()}
    monkeypatch.setenv(omniglot.MIRROR, serve(content))
    with pytest.raises(DataError, match="68d2efa1b9178cc56df9314c21c6e718"):
        omniglot.fetch(place, size=28)
    assert list((data / "omniglot").iterdir()) == []
    md5 = {name[:-4]: hashlib.md5(data_).hexdigest() for name, data_ in content.items()}
    monkeypatch.setattr(omniglot, "MD5", md5)
    assert len(omniglot.fetch(place)) == 2
    assert len(Omniglot(place)) == 400


@pytest.mark.data
def test_real_omniglot(real: Place) -> None:
    dataset = Omniglot(real)
    assert len(dataset) == 1623 * 4 * 20
    split = dataset.info.class_splits["vinyals"]
    sizes = [len(split.train), len(split.val), len(split.test)]
    assert sizes == [1028 * 4, 172 * 4, 423 * 4]
    assert not set(split.train) & set(split.test)
    assert len(dataset.info.class_splits["lake"].train) == 964 * 4
    images = dataset.read(np.array([0, 129839]))
    assert images.shape == (2, 28, 28, 1)
    assert 0.02 < (images > 0).mean() < 0.3
