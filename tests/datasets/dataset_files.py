"""Tiny files of every layout that the bundled datasets read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Arrays = dict[str, NDArray[Any]]


def tiny(shape: tuple[int, ...] = (8, 8), n_classes: int = 2, n: int = 6) -> Arrays:
    """Arrays of a small file in MedMNIST's layout; image k of a part is filled with k."""
    arrays: Arrays = {}
    for start, part in enumerate(("train", "val", "test")):
        values = (np.arange(n, dtype=np.uint8) + 10 * start).reshape(n, *([1] * len(shape)))
        arrays[f"{part}_images"] = np.broadcast_to(values, (n, *shape)).copy()
        arrays[f"{part}_labels"] = (np.arange(n, dtype=np.uint8) % n_classes)[:, None]
    return arrays


def save_image(
    path: Path, value: int = 100, size: tuple[int, int] = (10, 8), mode: str = "L"
) -> Path:
    """One flat image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 0, 255 - value)).save(path)
    return path
