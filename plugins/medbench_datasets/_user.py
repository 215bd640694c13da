"""What users' own data have in common: where they lie, and the parameters that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medbench.api import DataError, Place


def located(place: Place, argument: str, *, kind: Literal["file", "folder"], example: str) -> Path:
    """The file or folder a user named, absolute or below the data folder.

    Raises `DataMissing` when it is not there, `DataError` when it is not of the kind expected.
    """
    if not argument:
        raise DataError(f"No path given: write it after the colon, as in {example}.")
    path = place.find(
        argument,
        hint=f"Give a path below the data folder or an absolute one, as in {example}.",
    )
    right = path.is_file() if kind == "file" else path.is_dir()
    if not right:
        seen = "a folder" if path.is_dir() else "a file"
        raise DataError(f"{path} is {seen}; expected a {kind}, as in {example}.")
    return path


def split_names(text: str) -> tuple[str, ...]:
    """Comma-separated names, all there and all different."""
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"labels={text!r} has an empty or repeated name; expected names such as 'benign, "
            "malignant', one for each class in order."
        )
    return names
