"""DICOM files grouped into series, put in order and held to be whole."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Unavailable
from medbench_datasets._optional import needed
from medbench_datasets._volumes import Scan

_SUFFIXES = (".dcm", ".dicom", ".ima", "")
_GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class Series:
    """One series: its scan, its files from one end to the other, and what the headers tell."""

    scan: Scan
    files: tuple[str, ...]
    label: str
    patient: str
    institution: str
    modality: str
    inverted: bool


def dicom_files(root: Path) -> list[str]:
    """Names of all files below `root` that should be DICOM: .dcm, .dicom, .ima or no suffix."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.suffix.lower() in _SUFFIXES
        and path.name != "DICOMDIR"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def read_series(root: Path, names: Sequence[str], label: str) -> list[Series]:
    """All series among the files, by name; `label` is ``folder`` or a DICOM keyword.

    Raises `DataError` naming the file for what is no DICOM, lacks an attribute or has several
    frames or colours, and naming the series for slices that do not make one whole volume.
    """
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name in names:
        header = _header(root / name)
        groups.setdefault(str(_need(root / name, header, "SeriesInstanceUID")), []).append(
            (name, header)
        )
    folders = [{str(Path(name).parent) for name, _ in group} for group in groups.values()]
    single = [next(iter(f)) for f in folders if len(f) == 1]
    found = []
    for (uid, group), where in zip(groups.items(), folders, strict=True):
        folder = next(iter(where))
        own = len(where) == 1 and single.count(folder) == 1 and folder != "."
        found.append(_series(root, folder if own else uid, group, label))
    return sorted(found, key=lambda series: series.scan.name)


def read_slice(path: Path) -> NDArray[np.float32]:
    """The values of one file ``(H, W)``, in the units of its rescale (HU for CT)."""
    pydicom = needed("pydicom", str(path))
    header = _header(path, pixels=True)
    try:
        values = header.pixel_array
    except AttributeError as error:
        raise DataError(f"{path} has no pixels: {error}. Leave it out.") from error
    except (RuntimeError, NotImplementedError) as error:
        syntax = pydicom.uid.UID(header.file_meta.TransferSyntaxUID).name
        if "missing" in str(error) or isinstance(error, NotImplementedError):
            raise Unavailable(
                f"{path} is compressed as {syntax}, and no decoder for it is installed. Install "
                "one: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg."
            ) from error
        raise DataError(f"{path} cannot be decoded ({syntax}): {error}.") from error
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(
            f"{path} cannot be decoded ({type(error).__name__}: {error}); it has "
            f"{path.stat().st_size} bytes. It was truncated or altered: replace it."
        ) from error
    slope = float(getattr(header, "RescaleSlope", None) or 1.0)
    offset = float(getattr(header, "RescaleIntercept", None) or 0.0)
    found: NDArray[np.float32] = (np.asarray(values, np.float64) * slope + offset).astype(
        np.float32
    )
    return found


def _header(path: Path, *, pixels: bool = False) -> Any:
    pydicom = needed("pydicom", str(path))
    try:
        with warnings.catch_warnings():
            # Values that break a rule of their type are common, and none is used here unchecked.
            warnings.simplefilter("ignore", UserWarning)
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except pydicom.errors.InvalidDicomError as error:
        raise DataError(
            f"{path} is not a DICOM file ({path.stat().st_size} bytes); expected DICOM in every "
            "file named .dcm, .dicom, .ima or without suffix. Move it out of the folder."
        ) from error
    except (OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise DataError(
            f"{path} cannot be read as DICOM ({type(error).__name__}: {error}). Replace it."
        ) from error


def _need(path: Path, header: Any, keyword: str) -> Any:
    value = header.get(keyword)
    if value is None or value == "":
        raise DataError(f"{path} has no {keyword}; expected it in every file. Leave the file out.")
    return value


def _series(root: Path, name: str, group: Sequence[tuple[str, Any]], label: str) -> Series:
    first_name, first = group[0]
    for file, header in group:
        path = root / file
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1:
            raise DataError(
                f"{path} holds {frames} frames; expected one slice a file. Split it into slices."
            )
        colours = str(_need(path, header, "PhotometricInterpretation"))
        if colours not in _GREY:
            raise DataError(f"{path} is {colours}; expected {' or '.join(_GREY)} (grey values).")
        for what in ("Rows", "Columns", "PhotometricInterpretation"):
            if _need(path, header, what) != _need(root / first_name, first, what):
                raise DataError(
                    f"{path} has {what} {header.get(what)}, and {root / first_name} of the same "
                    f"series {first.get(what)}; expected the same. Take the odd one out."
                )
    order, step = _ordered(root, group)
    spacing = first.get("PixelSpacing") or first.get("ImagerPixelSpacing") or (np.nan, np.nan)
    thickness = step or float(
        first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0
    )
    if label == "folder":
        parts = Path(first_name).parts
        if len(parts) < 2:
            raise DataError(
                f"{root / first_name} lies in no class folder; expected CLASS/.../*.dcm, or a "
                "DICOM keyword in `label`, such as label=BodyPartExamined."
            )
        text = parts[0]
    else:
        text = str(_need(root / first_name, first, label)).strip()
    return Series(
        Scan(
            name,
            (len(group), int(first.Rows), int(first.Columns)),
            (thickness, float(spacing[0]), float(spacing[1])),
        ),
        tuple(group[k][0] for k in order),
        text,
        str(first.get("PatientID") or "").strip(),
        str(first.get("InstitutionName") or "").strip(),
        str(first.get("Modality") or "").strip(),
        str(first.PhotometricInterpretation) == "MONOCHROME1",
    )


def _ordered(root: Path, group: Sequence[tuple[str, Any]]) -> tuple[list[int], float | None]:
    """The order of the slices, and the distance between them in mm where it is known."""
    if len(group) == 1:
        return [0], None
    where = [_position(header) for _, header in group]
    known = [place for place in where if place is not None]
    if len(known) < len(group):
        numbers = [int(_need(root / name, header, "InstanceNumber")) for name, header in group]
        if len(set(numbers)) < len(numbers):
            raise DataError(
                f"{root / group[0][0]} and other files of its series have no positions, and share "
                "an InstanceNumber; expected one or the other to put slices in order."
            )
        return sorted(range(len(group)), key=numbers.__getitem__), None
    directions = np.array([direction for direction, _ in known])
    turned = np.flatnonzero(np.abs(directions - directions[0]).max(axis=1) > 1e-3)
    if len(turned):
        raise DataError(
            f"{root / group[int(turned[0])][0]} is turned against {root / group[0][0]} of the same "
            "series (ImageOrientationPatient); expected parallel slices. Take it out."
        )
    row, column = directions[0][:3], directions[0][3:]
    along = np.array([place for _, place in known]) @ np.cross(row, column)
    order = np.argsort(along, kind="stable").tolist()
    steps = np.diff(along[order])
    # The lower of two middle ones: a gap beside a single step must not pass for the usual.
    step = float(np.sort(steps)[(len(steps) - 1) // 2])
    if steps.min() < 1e-3:
        k = int(steps.argmin())
        raise DataError(
            f"{root / group[order[k]][0]} and {root / group[order[k + 1]][0]} of one series lie at "
            f"the same place ({along[order[k]]:.2f} mm); expected one slice at each. Split the "
            "series."
        )
    if np.abs(steps - step).max() > 0.1 * step:
        k = int(np.abs(steps - step).argmax())
        raise DataError(
            f"Between {root / group[order[k]][0]} and {root / group[order[k + 1]][0]} are "
            f"{steps[k]:.2f} mm, and elsewhere in the series {step:.2f} mm; expected even steps. A "
            "slice is missing, or does not belong there."
        )
    return order, step


def _position(header: Any) -> tuple[list[float], list[float]] | None:
    direction, place = header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")
    if not direction or not place or len(direction) != 6 or len(place) != 3:
        return None
    return [float(v) for v in direction], [float(v) for v in place]
