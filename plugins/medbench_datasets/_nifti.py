"""NIfTI files through nibabel: shape and spacing from the header, voxels when asked for."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, DataMissing
from medbench_datasets._optional import needed
from medbench_datasets._volumes import Scan

_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "micron": 1e-3, "meter": 1e3}


def read_header(path: Path, name: str) -> tuple[Scan, NDArray[np.float64], int]:
    """The scan as read below, its affine (4, 4), and how many channels it has."""
    image = _opened(path)
    if len(image.shape) not in (3, 4) or 0 in image.shape:
        raise DataError(
            f"{path} has shape {image.shape}; expected three axes, or four with channels last."
        )
    turn = _turn(path, image)
    unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    sizes = np.sqrt((np.asarray(image.affine)[:3, :3] ** 2).sum(axis=0)) * unit
    shape, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    for axis in range(3):
        place = 2 - int(turn[axis, 0])  # right, forward, up become width, height, depth
        shape[place], spacing[place] = int(image.shape[axis]), float(sizes[axis])
    channels = image.shape[3] if len(image.shape) == 4 else 1
    scan = Scan(name, (shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
    return scan, np.asarray(image.affine, np.float64), channels


def read_voxels(path: Path, channel: int = 0) -> NDArray[Any]:
    """``(D, H, W)``: feet to head, front to back, the person's right to left.

    Axial slices so lie as radiologists look at them. Raises `DataError` for files that were
    truncated, or hold something else than numbers.
    """
    nibabel = needed("nibabel", str(path))
    image = _opened(path)
    try:
        data = image.dataobj[..., channel] if len(image.shape) == 4 else image.dataobj
        values = np.asanyarray(data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read to its end ({type(error).__name__}: {error}); it has "
            f"{path.stat().st_size} bytes. It was truncated or altered: get it again."
        ) from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path} holds voxels of type {values.dtype}; expected one number each.")
    straight = nibabel.orientations.apply_orientation(values, _turn(path, image))
    found: NDArray[Any] = straight.transpose(2, 1, 0)[:, ::-1, ::-1]
    return np.ascontiguousarray(found)


def _opened(path: Path) -> Any:
    nibabel = needed("nibabel", str(path))
    if not path.is_file():
        raise DataMissing(f"Not found: {path}.")
    try:
        image = nibabel.load(path)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} is not a readable NIfTI file ({type(error).__name__}: {error}); it has "
            f"{path.stat().st_size} bytes. Replace it."
        ) from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise DataError(f"{path} is {type(image).__name__}; expected NIfTI (.nii or .nii.gz).")
    return image


def _turn(path: Path, image: Any) -> NDArray[np.float64]:
    """How the axes lie in the body; raises `DataError` where the affine does not say."""
    nibabel = needed("nibabel", str(path))
    affine = np.asarray(image.affine, np.float64)
    if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
        turn: NDArray[np.float64] = nibabel.orientations.io_orientation(affine)
        if np.isfinite(turn).all():
            return turn
    raise DataError(
        f"{path} has an affine that does not place its axes in space ({affine[:3].tolist()}); "
        "expected three directions with lengths in mm. Correct the header."
    )
