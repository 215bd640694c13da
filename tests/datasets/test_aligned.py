"""Tables of aligned images, and NIfTI volumes with several channels, as modalities."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from dataset_files import save_image
from test_nifti import describe, save

from medbench.api import DataError, Modality, Place
from medbench_datasets._volumes import eight_bits
from medbench_datasets.aligned import open_aligned
from medbench_datasets.msd import open_msd

HEADER = "ct_file,mri_file,label,patient"
NAMES = "ct=ct_file, mri=mri_file"


@pytest.fixture
def table(data: Path) -> Path:
    """Four rows, each with two grey images whose value tells row and modality."""
    root, rows = data / "brains", [HEADER]
    for k in range(4):
        save_image(root / "ct" / f"{k}.png", 10 * k)
        save_image(root / "mri" / f"{k}.png", 10 * k + 100)
        rows.append(f"ct/{k}.png,mri/{k}.png,{'ab'[k % 2]},p{k}")
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    return root


def read(place: Place, **params: str | int) -> np.ndarray:
    dataset = open_aligned(place, argument="brains/index.csv", modalities=NAMES, **params)  # type: ignore[arg-type]
    return dataset.read(np.array([2, 0]))


def test_a_row_has_an_image_of_each_modality_in_its_own_channel(place: Place, table: Path) -> None:
    dataset = open_aligned(place, argument="brains/index.csv", modalities=NAMES)
    assert dataset.info.modalities == (Modality("ct"), Modality("mri"))
    assert dataset.info.modality == "ct and mri"
    assert dataset.info.image_shape == (8, 10, 2)
    assert dataset.info.label_names == ("a", "b")
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert dataset.patients is not None
    images = dataset.read(np.array([2, 0]))
    assert images[:, 3, 4].tolist() == [[20, 120], [0, 100]]
    assert read(place, size=16).shape == (2, 16, 16, 2)
    swapped = open_aligned(
        place, argument="brains/index.csv", modalities="mri=mri_file, ct=ct_file"
    )
    assert swapped.digest != dataset.digest
    before = dataset.digest
    save_image(table / "mri" / "3.png", 7)
    again = open_aligned(place, argument="brains/index.csv", modalities=NAMES)
    assert again.digest != before


def test_a_coloured_modality_beside_a_grey_one(place: Place, table: Path) -> None:
    for k in range(4):
        save_image(table / "mri" / f"{k}.png", k, mode="RGB")
    dataset = open_aligned(place, argument="brains/index.csv", modalities=NAMES)
    assert dataset.info.modalities == (Modality("ct"), Modality("mri", 3))
    assert dataset.read(np.array([1]))[0, 0, 0].tolist() == [10, 1, 0, 254]


def test_files_of_a_row_that_differ_in_size_are_named(place: Place, table: Path) -> None:
    save_image(table / "mri" / "2.png", 5, size=(9, 10))
    with pytest.raises(DataError, match=r"2\.png \(mri\) has 10x9 .*2\.png \(ct\) .* row 8x10"):
        read(place)
    # Bringing both to one size would hide that they do not lie on one another.
    with pytest.raises(DataError, match="Register and resample"):
        read(place, size=16)


@pytest.mark.parametrize("modalities", ["", "ct_file", "ct_file, ct_file", "ct=, mri=mri_file"])
def test_modalities_that_do_not_name_two_columns_are_refused(
    place: Place, table: Path, modalities: str
) -> None:
    with pytest.raises(DataError, match="does not name two or more"):
        open_aligned(place, argument="brains/index.csv", modalities=modalities)


def test_a_column_or_file_that_is_not_there_is_named(place: Place, table: Path) -> None:
    with pytest.raises(DataError, match="no column 'pet'"):
        open_aligned(place, argument="brains/index.csv", modalities="ct_file, pet")
    (table / "mri" / "3.png").unlink()
    with pytest.raises(DataError, match=r"line 5: the image 'mri/3\.png' is not in"):
        read(place)


# --- NIfTI ---------------------------------------------------------------------------------------


@pytest.fixture
def task(data: Path) -> Path:
    """One volume with two channels, the second the first upside down and brighter."""
    root = data / "Task98"
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    save(root / "imagesTr" / "a.nii.gz", np.stack([values, 1000 - 3 * values], axis=-1))
    label = np.zeros((4, 5, 6), np.uint8)
    label[1, 2, 3] = 1
    save(root / "labelsTr" / "a.nii.gz", label)
    describe(root, "a", modality={"0": "FLAIR", "1": "T1 gd"})
    return root


def test_all_channels_of_a_volume_are_modalities_each_with_its_own_greys(
    place: Place, task: Path
) -> None:
    both = open_msd(place, argument="Task98", channel=-1)
    single = [open_msd(place, argument="Task98", channel=k) for k in (0, 1)]
    assert both.info.modalities == (Modality("FLAIR"), Modality("T1-gd"))
    assert both.info.image_shape == (6, 5, 4, 2)
    assert both.info.modality == "FLAIR and T1 gd"
    images = both.read(np.array([0]))
    for k, one in enumerate(single):
        np.testing.assert_array_equal(images[..., k], one.read(np.array([0]))[..., 0])
    stored = nibabel.load(task / "imagesTr" / "a.nii.gz").get_fdata()[..., 1]
    wanted = eight_bits(stored.transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.float32), None)
    np.testing.assert_array_equal(images[0, ..., 1], wanted)
    assert len({d.digest for d in (both, *single)}) == 3
    slices = open_msd(place, argument="Task98", channel=-1, slices=True, size=8)
    assert slices.info.image_shape == (8, 8, 2)
    assert slices.read_masks(np.array([3])).shape == (1, 2, 8, 8)


def test_channels_and_names_that_do_not_match_are_told(place: Place, task: Path) -> None:
    describe(task, "a", modality={"0": "FLAIR"})
    with pytest.raises(DataError, match=r"a\.nii\.gz has 2 channels, .* names 1 modalities"):
        open_msd(place, argument="Task98", channel=-1)
    describe(task, "a", modality={"0": "T1", "1": "T1"})
    with pytest.raises(DataError, match="names of letters and digits that differ"):
        open_msd(place, argument="Task98", channel=-1)
    describe(task, "a", modality={"0": "CT", "1": "PET"})
    with pytest.raises(DataError, match="one window does not fit 2 modalities"):
        open_msd(place, argument="Task98", channel=-1, window="0, 100")
