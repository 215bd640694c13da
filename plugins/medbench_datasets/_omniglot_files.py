"""Where Omniglot's drawings, their names and the Vinyals split lie, and how each file is read."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medbench.api import DataError, DataMissing, Place
from medbench_datasets._npz import NpzFile

N_DRAWINGS = 20
EDGE = 105

Character = tuple[str, str, str]
"""Part (``images_background`` or ``images_evaluation``), alphabet, character."""

_PNG = re.compile(r"images_(?:background|evaluation)/([^/]+)/(character\d+)/(\d+_\d+)\.png")


def find_sources(place: Place) -> list[Path]:
    """The two files with drawings, arrays before zips."""
    hint = (
        "Put images_background and images_evaluation there, as .npz or as the official .zip: "
        "medbench data get omniglot"
    )
    first = place.find(
        "omniglot/images_background.npz", "omniglot/images_background.zip", hint=hint
    )
    second = first.with_name(f"images_evaluation{first.suffix}")
    if not second.exists():
        raise DataMissing(f"Not found: {second}, though {first.name} is there. {hint}")
    return [first, second]


def read_characters(sources: list[Path], cache: Path) -> dict[Character, int]:
    """Every character, and its row (arrays) or number of drawings (zips) in its source."""
    found: dict[Character, int] = {}
    if sources[0].suffix == ".zip":
        for source in sources:
            for (alphabet, character), pngs in _pngs(source).items():
                if len(pngs) != N_DRAWINGS:
                    raise DataError(
                        f"{source}: {alphabet}/{character} has {len(pngs)} drawings; expected "
                        f"{N_DRAWINGS}. Get the file again: medbench data get omniglot"
                    )
                found[source.stem, alphabet, character] = len(pngs)
        return found
    path = sources[0].with_name("characters.json")
    if not path.exists():
        raise DataMissing(f"Not found: {path}, which names the rows of {sources[0].name}.")
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            named = (str(entry["part"]), str(entry["alphabet"]), str(entry["character"]))
            found[named] = int(entry["row"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be understood ({type(error).__name__}: {error}); expected a list of "
            "{part, alphabet, character, row}."
        ) from error
    for source in sources:
        file = NpzFile(source, cache)
        if "images" not in file:
            raise DataError(f"{source} holds {', '.join(file.names)}; expected an array images.")
        header = file.header("images")
        rows = sorted(row for (part, _, _), row in found.items() if part == source.stem)
        expected = (len(rows), N_DRAWINGS, EDGE, EDGE)
        if header.shape != expected or header.dtype != np.bool_ or rows != list(range(len(rows))):
            raise DataError(
                f"{source}: images has dtype {header.dtype} and shape {header.shape}; expected "
                f"bool {expected}, by {path.name}."
            )
    return found


def iterate_drawings(
    sources: list[Path], rows: dict[Character, int], cache: Path
) -> Iterator[tuple[Character, list[NDArray[np.bool_]]]]:
    """Each character with its drawings ``(105, 105)``, True where there is paper."""
    for source in sources:
        if source.suffix == ".npz":
            of_row = {row: c for c, row in rows.items() if c[0] == source.stem}
            for row, drawings in enumerate(NpzFile(source, cache).rows("images")):
                yield of_row[row], list(drawings)
            continue
        with zipfile.ZipFile(source) as archive:
            for (alphabet, character), pngs in _pngs(source).items():
                yield (
                    (source.stem, alphabet, character),
                    [_decode(archive, source, png) for png in pngs],
                )


def _decode(archive: zipfile.ZipFile, source: Path, name: str) -> NDArray[np.bool_]:
    try:
        with Image.open(io.BytesIO(archive.read(name)), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{source}: {name} cannot be decoded: {error}. Get the file again: "
            "medbench data get omniglot"
        ) from error
    if pixels.shape != (EDGE, EDGE):
        raise DataError(f"{source}: {name} has shape {pixels.shape}; expected {(EDGE, EDGE)}.")
    return np.asarray(pixels > 127)


def _pngs(source: Path) -> dict[tuple[str, str], list[str]]:
    """Names of the drawings in an official zip, by alphabet and character, all in order."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = sorted(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{source} is not a whole zip file ({error}). Delete it and get it again: "
            "medbench data get omniglot"
        ) from error
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := _PNG.fullmatch(name):
            found.setdefault((match[1], match[2]), []).append(name)
    if not found:
        raise DataError(f"{source} holds no {source.stem}/ALPHABET/characterNN/*.png.")
    return found


def split_part(file: Path, position: dict[Character, int]) -> list[int]:
    """Indices of the characters that one file of the Vinyals split names, ascending."""
    try:
        named = [
            (f"images_{part}", str(alphabet), str(character))
            for part, alphabets in json.loads(file.read_text(encoding="utf-8")).items()
            for alphabet, characters in alphabets.items()
            for character in characters
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{file} cannot be understood ({error}); expected "
            '{"background": {ALPHABET: [CHARACTER, ...]}, "evaluation": {...}}.'
        ) from error
    unknown = [character for character in named if character not in position]
    if unknown:
        raise DataError(
            f"{file} names {'/'.join(unknown[0])}, which is not among the drawings "
            f"({len(unknown)} such characters)."
        )
    return sorted(position[character] for character in named)
