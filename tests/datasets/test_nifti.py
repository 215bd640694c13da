"""Volumes in the Decathlon's layout: orientation, spacing, slices, windows, and every fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medbench.api import DataError, DataMissing, Place, Unavailable
from medbench_datasets._volumes import eight_bits, smoothed
from medbench_datasets.msd import open_msd

# Right, forward, up in voxels of 1, 2 and 3 mm.
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def save(path: Path, values: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def describe(root: Path, names: str = "a b", **changes: Any) -> None:
    about = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
            for n in names.split()
        ],
        "test": ["./imagesTs/z.nii.gz"],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(about))


@pytest.fixture
def task(data: Path) -> Path:
    """Two volumes, 4 to the right, 5 forward, 6 up; the value of a voxel tells its place."""
    root = data / "Task99"
    x, y, z = np.meshgrid(np.arange(4), np.arange(5), np.arange(6), indexing="ij")
    place_of = (100 * x + 10 * y + z).astype(np.int16)
    for name in "ab":
        save(root / "imagesTr" / f"{name}.nii.gz", place_of)
    first, second = np.zeros((2, 4, 5, 6), np.uint8)
    first[0, 4, 5] = 1  # left, front, head
    first[1:3, 1, 2] = 2
    second[3, 0, 0] = 1
    save(root / "labelsTr" / "a.nii.gz", first)
    save(root / "labelsTr" / "b.nii.gz", second)
    describe(root)
    return root


def test_volumes_lie_feet_to_head_front_to_back_right_to_left(place: Place, task: Path) -> None:
    dataset = open_msd(place, argument="Task99", window="0, 345")
    assert dataset.info.image_shape == (6, 5, 4, 1)
    assert dataset.info.label_names == ("liver", "tumour")
    assert dataset.info.modality == "CT"
    assert dataset.labels.tolist() == [[1, 1], [1, 0]]
    assert dataset.spacings is not None
    assert dataset.spacings.tolist() == [[3, 2, 1]] * 2
    pixels = dataset.read(np.array([0]))[0, ..., 0]
    for up, back, left in ((0, 0, 0), (5, 4, 3), (2, 1, 3)):
        value = 100 * (3 - left) + 10 * (4 - back) + up
        assert pixels[up, back, left] == round(value * 255 / 345)
    masks = dataset.read_masks(np.array([1, 0]))
    assert masks.shape == (2, 2, 6, 5, 4)
    assert np.argwhere(masks[1, 0]).tolist() == [[5, 0, 3]]
    assert np.argwhere(masks[1, 1]).tolist() == [[2, 3, 1], [2, 3, 2]]
    assert np.argwhere(masks[0, 0]).tolist() == [[0, 4, 0]]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_a_volume_stored_in_another_direction_is_the_same_volume(
    place: Place, task: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    expected = open_msd(place, argument="Task99")
    for folder in ("imagesTr", "labelsTr"):
        for name in "ab":
            path = task / folder / f"{name}.nii.gz"
            values = np.asanyarray(nibabel.load(path).dataobj)
            affine = np.eye(4)
            for new, old in enumerate(axes):
                sign = flips[old]
                affine[:3, new] = 0
                affine[old, new] = sign * AFFINE[old, old]
                if sign < 0:
                    affine[old, 3] = AFFINE[old, old] * (values.shape[old] - 1)
            turned = values[tuple(slice(None, None, s) for s in flips)].transpose(axes)
            save(task / f"other/{folder}" / f"{name}.nii.gz", turned, affine)
    (task / "other" / "dataset.json").write_text((task / "dataset.json").read_text())
    found = open_msd(place, argument="Task99/other")
    both = np.array([0, 1])
    assert (found.read(both) == expected.read(both)).all()
    assert (found.read_masks(both) == expected.read_masks(both)).all()
    assert found.spacings is not None
    assert found.spacings.tolist() == [[3, 2, 1]] * 2


def test_slices_are_images_of_one_patient(place: Place, task: Path) -> None:
    dataset = open_msd(place, argument="Task99", slices=True, window="0, 345")
    assert len(dataset) == 12
    assert dataset.info.image_shape == (5, 4, 1)
    assert dataset.patients is not None
    assert dataset.patients.tolist() == [0] * 6 + [1] * 6
    assert dataset.labels.tolist()[:6] == [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
    assert dataset.spacings is not None
    assert dataset.spacings[0].tolist() == [2, 1]
    whole = open_msd(place, argument="Task99", window="0, 345")
    chosen = np.array([8, 2, 5])
    assert (dataset.read(chosen) == whole.read(np.array([1, 0, 0]))[[0, 1, 2], [2, 2, 5]]).all()
    masks = dataset.read_masks(chosen)
    expected = whole.read_masks(np.array([1, 0, 0]))[[0, 1, 2], :, [2, 2, 5]]
    assert (masks == expected).all()


def test_volumes_are_brought_to_one_size_and_their_spacing_with_them(
    place: Place, task: Path
) -> None:
    dataset = open_msd(place, argument="Task99", size=12)
    assert dataset.info.image_shape == (12, 12, 12, 1)
    assert dataset.spacings is not None
    assert dataset.spacings[0] == pytest.approx([6 * 3 / 12, 5 * 2 / 12, 4 * 1 / 12])
    masks = dataset.read_masks(np.array([0]))
    assert masks[0, 0].sum() == 2 * 2 * 3  # 12 places for 6, 5 and 4: the first of 5 has two


def test_volumes_of_several_shapes_need_a_size(place: Place, task: Path) -> None:
    for folder, dtype in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
        save(task / folder / "b.nii.gz", np.zeros((4, 5, 7), dtype))
    with pytest.raises(DataError, match="the volumes have 2 shapes"):
        open_msd(place, argument="Task99")
    assert open_msd(place, argument="Task99", size=8).info.image_shape == (8, 8, 8, 1)
    assert open_msd(place, argument="Task99", slices=True).info.image_shape == (5, 4, 1)


def test_one_of_several_channels(place: Place, task: Path) -> None:
    values = np.zeros((4, 5, 6, 2), np.float32)
    values[..., 1] = np.arange(6)
    for name in "ab":
        save(task / "imagesTr" / f"{name}.nii.gz", values)
    describe(task, modality={"0": "T1", "1": "FLAIR"})
    dataset = open_msd(place, argument="Task99", channel=1, window="0, 5")
    assert dataset.info.modality == "FLAIR"
    assert dataset.read(np.array([0]))[0, :, 0, 0, 0].tolist() == [0, 51, 102, 153, 204, 255]
    first = open_msd(place, argument="Task99")
    assert first.digest != dataset.digest
    assert first.read(np.array([0])).max() == 0
    with pytest.raises(DataError, match=r"has 2 channels; channel=2 is not among 0\.\.\.1"):
        open_msd(place, argument="Task99", channel=2)


def test_the_digest_follows_voxels_and_settings(place: Place, task: Path) -> None:
    digest = open_msd(place, argument="Task99").digest
    assert open_msd(place, argument=str(task), licence="x").digest == digest
    assert open_msd(place, argument="Task99", window="0, 9").digest != digest
    assert open_msd(place, argument="Task99", slices=True).digest != digest
    save(task / "labelsTr" / "b.nii.gz", np.ones((4, 5, 6), np.uint8))
    assert open_msd(place, argument="Task99").digest != digest


def test_volumes_are_read_only_when_asked_for(
    place: Place, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_msd(place, argument="Task99")
    monkeypatch.setattr("medbench_datasets.msd.read_voxels", lambda *a: pytest.fail("read"))
    open_msd(place, argument="Task99")


def test_a_table_tells_sites_of_volumes(place: Place, task: Path) -> None:
    (task / "who.csv").write_text("id,site,patient\na,north,p1\nb,south,p2\n")
    dataset = open_msd(place, argument="Task99", slices=True, table="who.csv")
    assert dataset.info.site_names == ("north", "south")
    assert dataset.sites is not None
    assert dataset.sites.tolist() == [0] * 6 + [1] * 6


def _spoil(task: Path, how: str) -> None:
    image, label = task / "imagesTr" / "a.nii.gz", task / "labelsTr" / "a.nii.gz"
    zeros = np.zeros((4, 5, 6), np.uint8)
    match how:
        case "no description":
            (task / "dataset.json").unlink()
        case "description cut off":
            path = task / "dataset.json"
            path.write_text(path.read_text()[:-9])
        case "no training":
            describe(task, training=[])
        case "no structures":
            describe(task, labels={"0": "background"})
        case "outside":
            describe(task, training=[{"image": "../../a.nii.gz", "label": "../b.nii.gz"}])
        case "volume missing":
            image.unlink()
        case "not nifti":
            image.write_bytes(b"not a volume" * 40)
        case "cut off":
            label.write_bytes(label.read_bytes()[:-25])
        case "other shape":
            save(label, zeros[:, :, 1:])
        case "other place":
            save(label, zeros, AFFINE + _shift(5.0))
        case "unknown value":
            save(label, zeros + np.uint8(3))
        case "no label map":
            save(label, zeros.astype(np.float32) + 0.5)
        case "two axes":
            save(image, np.zeros((4, 5), np.int16))


def _shift(by: float) -> NDArray[np.float64]:
    moved = np.zeros((4, 4))
    moved[0, 3] = by
    return moved


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no description", r"dataset\.json\. Expected the layout of the Medical Segmentation"),
        ("description cut off", r"dataset\.json is not whole JSON"),
        ("no training", r"training is '\[\]'; expected a list"),
        ("no structures", "labels names no structure"),
        ("outside", r"training\[0\] names '\.\./\.\./a\.nii\.gz', outside the folder"),
        ("volume missing", r"imagesTr/a\.nii\.gz is not there"),
        ("not nifti", r"imagesTr/a\.nii\.gz is not a readable NIfTI file .*480 bytes"),
        ("cut off", r"labelsTr/a\.nii\.gz (cannot be read to its end|is not a readable NIfTI)"),
        ("other shape", r"labelsTr/a\.nii\.gz has \(5, 5, 4\) voxels .* has \(6, 5, 4\)"),
        ("other place", r"labelsTr/a\.nii\.gz lies elsewhere in space .* up to 5 mm"),
        ("unknown value", r"labelsTr/a\.nii\.gz holds the value 3; dataset\.json describes 0 and"),
        ("no label map", r"labelsTr/a\.nii\.gz holds values that are not whole numbers"),
        ("two axes", r"imagesTr/a\.nii\.gz has shape \(4, 5\); expected three axes"),
    ],
)
def test_wrong_volumes_are_one_clear_error(place: Place, task: Path, how: str, said: str) -> None:
    _spoil(task, how)
    with pytest.raises(DataError, match=said):
        open_msd(place, argument="Task99")


def test_voxels_that_are_no_numbers_are_refused_when_read(place: Place, task: Path) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 1, 1] = np.nan
    save(task / "imagesTr" / "a.nii.gz", values)
    dataset = open_msd(place, argument="Task99")
    with pytest.raises(DataError, match=r"imagesTr/a\.nii\.gz holds voxels that are NaN"):
        dataset.read(np.array([0]))


def test_a_window_is_two_numbers(place: Place, task: Path) -> None:
    for window in ("5", "9, 1", "a, b", "0, inf"):
        with pytest.raises(DataError, match="expected two numbers"):
            open_msd(place, argument="Task99", window=window)


def test_without_nibabel_the_error_names_the_extra(
    place: Place, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(Unavailable, match=r"pip install 'medbench\[medical\]'"):
        open_msd(place, argument="Task99")
    assert issubclass(DataMissing, DataError)


def test_windows_and_percentiles_by_hand() -> None:
    values = np.array([-1000.0, -160.0, 40.0, 240.0, 3000.0], np.float32)
    assert eight_bits(values, (-160.0, 240.0)).tolist() == [0, 0, 128, 255, 255]
    steps = np.arange(1001, dtype=np.float32)
    found = eight_bits(steps, None)
    assert found[[0, 5, 995, 1000]].tolist() == [0, 0, 255, 255]
    assert found[500] == 128
    assert eight_bits(np.full(3, 7, np.float32), None).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [(12, 9), (40, 50), (20, 9)])
def test_planes_are_resized_as_images_are(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    expected = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(smoothed(values, size).astype(int) - np.asarray(expected)).max() <= 1
