"""One COCO json file, held against the format: images, categories, annotations."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medbench.api import DataError

_PARTS = ("images", "annotations", "categories")


@dataclass
class CocoImage:
    """One image as the file describes it, with its annotations."""

    name: str
    size: tuple[int, int] | None
    """Height and width as stated."""
    annotations: list[CocoAnnotation] = field(default_factory=list)


@dataclass(frozen=True)
class CocoAnnotation:
    """One object: its category's name, box x0, y0, x1, y1 and outline."""

    where: str
    category: str
    box: tuple[float, float, float, float]
    outline: Any
    crowd: bool


@dataclass(frozen=True)
class CocoFile:
    """What one file holds; categories in the order of their numbers."""

    path: Path
    categories: tuple[str, ...]
    images: tuple[CocoImage, ...]


def read_coco(path: Path) -> CocoFile:
    """A COCO instances file. Raises `DataError` naming file, entry and what was expected."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not whole JSON: {error} ({path.stat().st_size} bytes). Copy it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(p), list) for p in _PARTS):
        seen = ", ".join(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise DataError(
            f"{path} holds {seen or 'nothing'}; expected the lists images, annotations and "
            "categories of a COCO instances file."
        )
    categories = _by_id(path, data["categories"], "categories")
    names = {k: _text(path, f"category {k}", entry, "name") for k, entry in categories.items()}
    if len(set(names.values())) < len(names):
        raise DataError(f"{path}: two categories have one name ({sorted(names.values())}).")
    images = {
        k: CocoImage(_text(path, f"image {k}", entry, "file_name"), _size(path, k, entry))
        for k, entry in _by_id(path, data["images"], "images").items()
    }
    for k, entry in _by_id(path, data["annotations"], "annotations").items():
        where = f"{path}, annotation {k}"
        image = _known(where, entry, "image_id", images)
        category = _known(where, entry, "category_id", names)
        box = _box(where, entry)
        crowd = bool(entry.get("iscrowd", 0))
        image.annotations.append(
            CocoAnnotation(f"{where} ({category})", category, box, entry.get("segmentation"), crowd)
        )
    return CocoFile(path, tuple(names[k] for k in sorted(names)), tuple(images.values()))


def _by_id(path: Path, entries: list[Any], what: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise DataError(
                f"{path}: {what}[{place}] has id {number!r}; expected a whole number in each entry."
            )
        if number in found:
            raise DataError(f"{path}: two entries of {what} have id {number}; expected one.")
        found[number] = entry
    return found


def _text(path: Path, what: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {what} has {key} {value!r}; expected text.")
    return value


def _size(path: Path, k: int, entry: dict[str, Any]) -> tuple[int, int] | None:
    if "height" not in entry and "width" not in entry:
        return None
    size = (entry.get("height"), entry.get("width"))
    if not all(isinstance(length, int) and length > 0 for length in size):
        raise DataError(
            f"{path}: image {k} has height {size[0]!r} and width {size[1]!r}; expected pixels."
        )
    return int(entry["height"]), int(entry["width"])


def _known(where: str, entry: dict[str, Any], key: str, known: dict[int, Any]) -> Any:
    number = entry.get(key)
    if number not in known:
        raise DataError(f"{where} has {key} {number!r}, and there is no such entry in the file.")
    return known[number]


def _box(where: str, entry: dict[str, Any]) -> tuple[float, float, float, float]:
    box = entry.get("bbox")
    numbers = [
        float(v)
        for v in (box if isinstance(box, list) else [])
        if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    ]
    if not isinstance(box, list) or len(box) != 4 or len(numbers) != 4:
        raise DataError(f"{where} has bbox {box!r}; expected four numbers x, y, width, height.")
    x, y, width, height = numbers
    return x, y, x + width, y + height
