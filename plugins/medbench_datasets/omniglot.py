"""Omniglot: 1623 handwritten characters, the set that tells whether a method is implemented right.

Preparation as in the literature: drawings of 105 pixels are reduced to 28, ink is bright on black,
and rotations by 90, 180 and 270 degrees are classes of their own (Santoro et al. 2016; Vinyals et
al. 2016; Snell et al. 2017; Finn et al. 2017).

On the reduction: MAML's script asks PIL for LANCZOS and ProtoNet's code asks for PIL's default, but
the drawings are 1-bit images, for which PIL always takes the nearest pixel. Published numbers of
both are therefore numbers on nearest-pixel images, and ``nearest`` is the default here; the
smoother reductions that later re-implementations use (grey first, then resize) can be chosen.
Nearest-pixel reduction from 105 to 28 commutes with turning by 90 degrees, so that the order of
the two, in which those codes differ, does not matter.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medbench.api import ClassSplit, DataError, DataMissing, Dataset, DatasetInfo, Place
from medbench_datasets._download import download
from medbench_datasets._layout import checked_indices
from medbench_datasets._npz import Mapped
from medbench_datasets._omniglot_files import (
    EDGE,
    N_DRAWINGS,
    Character,
    find_sources,
    iterate_drawings,
    read_characters,
    split_part,
)
from medbench_datasets._store import combined, file_digest, replacing

MIRROR = "MEDBENCH_OMNIGLOT_URL"
"""Environment variable: a base address that serves the two zips in GitHub's place."""

OFFICIAL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


class Omniglot(Dataset):
    """The characters, each drawn by 20 people, with the splits of Lake and, if there, of Vinyals.

    Looks below ``omniglot/`` in the data folder for ``images_background.npz`` and
    ``images_evaluation.npz`` with ``characters.json``, else for the official zips of these names.
    The split of Vinyals (1028/172/423 characters) comes from ``vinyals_{train,val,test}.json``
    beside them; without these, only the split ``lake`` (964 background, 659 evaluation) is known.
    """

    def __init__(
        self,
        place: Place,
        *,
        size: int = 28,
        interpolation: str = "nearest",
        rotations: bool = True,
        invert: bool = True,
    ) -> None:
        self._size, self._interpolation, self._invert = size, interpolation, invert
        self._turns = 4 if rotations else 1
        self._cache = place.cache
        self._sources = find_sources(place)
        folder = self._sources[0].parent
        self._split_files = [folder / f"vinyals_{part}.json" for part in ("train", "val", "test")]
        self._rows = read_characters(self._sources, place.cache)
        characters = sorted(self._rows)
        self._prepared: Mapped | None = None
        n_classes = len(characters) * self._turns
        self.labels = np.repeat(np.arange(n_classes, dtype=np.int64), N_DRAWINGS)
        self.info = DatasetInfo(
            name="omniglot",
            label_names=tuple(
                f"{alphabet}/{character}" + (f"/rot{90 * turn:03d}" if rotations else "")
                for _, alphabet, character in characters
                for turn in range(self._turns)
            ),
            image_shape=(size, size, 1),
            domain="handwriting",
            modality="drawings",
            licence="MIT",
            class_splits=self._class_splits(characters),
        )

    @property
    def digest(self) -> str:
        """BLAKE2b of the source and split files and of how the drawings are prepared."""
        beside = [self._sources[0].with_name("characters.json"), *self._split_files]
        files = [*self._sources, *(file for file in beside if file.exists())]
        return combined(
            "omniglot",
            1,
            *(file_digest(file, self._cache).blake2b for file in files),
            self._size,
            self._interpolation,
            self._invert,
            self._turns,
        )

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), size, size, 1)`` uint8; turned as they are read."""
        indices = checked_indices(indices, len(self))
        classes, drawings = np.divmod(indices, N_DRAWINGS)
        characters, turns = np.divmod(classes, self._turns)
        if self._prepared is None:
            self._prepared = self._prepare()
        images = np.asarray(self._prepared()[characters * N_DRAWINGS + drawings])
        for turn in range(1, self._turns):
            chosen = np.flatnonzero(turns == turn)
            images[chosen] = np.rot90(images[chosen], turn, axes=(1, 2))
        return images[..., None]

    def _prepare(self) -> Mapped:
        """The reduced drawings of all characters in the cache, made when they are not there yet."""
        digests = [file_digest(file, self._cache).blake2b for file in self._sources]
        key = combined("reduced", 1, *digests, self._size, self._interpolation, self._invert)
        target = self._cache / "omniglot" / f"{key[:32]}.npy"
        shape = (len(self._rows) * N_DRAWINGS, self._size, self._size)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        offset = header.tell()
        if not target.exists() or target.stat().st_size != offset + int(np.prod(shape)):
            reduced = np.zeros(shape, np.uint8)
            position = {character: k for k, character in enumerate(sorted(self._rows))}
            for character, drawings in iterate_drawings(self._sources, self._rows, self._cache):
                start = position[character] * N_DRAWINGS
                for k, drawing in enumerate(drawings):
                    reduced[start + k] = self._reduce(drawing)
            with replacing(target) as file:
                file.write(header.getvalue())
                file.write(reduced.tobytes())
        return Mapped(target, offset, np.dtype(np.uint8), shape)

    def _reduce(self, paper: NDArray[np.bool_]) -> NDArray[np.uint8]:
        ink = ~paper if self._invert else paper
        image = Image.fromarray(ink.astype(np.uint8) * 255)
        if self._size != EDGE:
            image = image.resize((self._size, self._size), _FILTERS[self._interpolation])
        return np.asarray(image, np.uint8)

    def _class_splits(self, characters: list[Character]) -> dict[str, ClassSplit]:
        def classes(chosen: list[int]) -> tuple[int, ...]:
            return tuple(k * self._turns + turn for k in chosen for turn in range(self._turns))

        background = [k for k, c in enumerate(characters) if c[0] == "images_background"]
        evaluation = [k for k, c in enumerate(characters) if c[0] == "images_evaluation"]
        splits = {"lake": ClassSplit(classes(background), (), classes(evaluation))}
        absent = [file.name for file in self._split_files if not file.exists()]
        if len(absent) == 3:
            return splits
        if absent:
            raise DataMissing(
                f"{self._split_files[0].parent} lacks {', '.join(absent)}: expected all three "
                "files of the Vinyals split, or none."
            )
        position = {character: k for k, character in enumerate(characters)}
        parts = [classes(split_part(file, position)) for file in self._split_files]
        if len(set().union(*parts)) < sum(map(len, parts)):
            raise DataError(
                f"{self._split_files[0].parent}: the files of the Vinyals split share characters; "
                "expected disjoint parts. Get them again."
            )
        splits["vinyals"] = ClassSplit(*parts)
        return splits


def fetch(place: Place, **params: Any) -> list[Path]:
    """Download the two official zips from GitHub, or the mirror in MEDBENCH_OMNIGLOT_URL.

    The files of the Vinyals split are not among them: without these only ``lake`` is known.
    """
    if place.data is None:
        raise DataMissing(
            "MEDBENCH_DATA is not set: set it to the folder in which data are to be kept."
        )
    base = os.environ.get(MIRROR, OFFICIAL).rstrip("/")
    written = []
    for part, md5 in MD5.items():
        target = place.data / "omniglot" / f"{part}.zip"
        if not target.exists() or file_digest(target, place.cache).md5 != md5:
            download(f"{base}/{part}.zip", target, md5=md5)
        written.append(target)
    return written
