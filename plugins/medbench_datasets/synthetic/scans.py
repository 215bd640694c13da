"""Made-up lesions in aligned CT and MRI, of which each tells but half of the class."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from medbench.api import (
    ClassSplit,
    DataError,
    Dataset,
    DatasetInfo,
    Modality,
    Place,
    derive_seed,
)
from medbench_datasets._layout import checked_indices
from medbench_datasets._store import combined
from medbench_datasets.synthetic.canvas import (
    frame,
    grid,
    inside,
    radius,
    smooth_noise,
    wave,
    wide,
)
from medbench_datasets.synthetic.draws import Draws, Floats, Ints

GENERATOR = 1
"""Version of the images; whatever changes a pixel or a label raises it."""

OUTLINES = ("round", "lobed", "rod", "ring")
TEXTURES = ("smooth", "coarse", "striped", "bright rim")
_N_CLASSES = len(OUTLINES) * len(TEXTURES)
# Of ten images in a row of a class six are for training, one for validation, three for test.
_SPLITS = np.array([0, 2, 0, 0, 2, 0, 1, 0, 2, 0], np.uint8)
_AT_ONCE = 64


def open_scans(place: Place, *, size: int = 28, images_per_class: int = 40, seed: int = 0) -> Scans:
    """The set ``synthetic-scans``. Raises `DataError` for sizes it cannot be made in."""
    del place  # nothing is on disk
    return Scans(size=size, images_per_class=images_per_class, seed=seed)


@final
class Scans(Dataset):
    """One lesion an image: CT shows its outline, MRI its texture, both its place and size.

    A class is a pair of outline and texture. CT is painted without knowing the texture, and MRI
    without knowing the outline, so neither modality holds anything about the other half. The class
    split ``default`` tests two outlines with two textures, pairs that are new of halves that are
    not: who sees one modality is right half of the time in these four classes, and no more. Every
    image is of a patient of its own.
    """

    def __init__(self, *, size: int = 28, images_per_class: int = 40, seed: int = 0) -> None:
        if size < 16 or images_per_class < 10:
            raise DataError(
                f"synthetic-scans cannot be made with size={size}, "
                f"images_per_class={images_per_class}; expected at least 16 pixels an edge and 10 "
                "images."
            )
        self._size = size
        self._key = ("synthetic-scans", GENERATOR, size, images_per_class, seed)
        self._seed = derive_seed("synthetic-scans", seed)
        self.labels = np.repeat(np.arange(_N_CLASSES, dtype=np.int64), images_per_class)
        self.splits = np.tile(np.resize(_SPLITS, images_per_class), _N_CLASSES)
        self.patients = np.arange(len(self.labels), dtype=np.int64)
        self.info = DatasetInfo(
            name="synthetic-scans",
            label_names=tuple(
                f"{outline}, {texture}" for outline in OUTLINES for texture in TEXTURES
            ),
            image_shape=(size, size, 2),
            domain="synthetic-scans",
            modality="simulated CT and MRI",
            licence="Apache-2.0",
            class_splits={"default": _class_split()},
            modalities=(Modality("ct"), Modality("mri")),
        )

    @property
    def digest(self) -> str:
        """BLAKE2b of the generator's version and parameters, which determine every pixel."""
        return combined(*self._key)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), size, size, 2)`` uint8, CT then MRI, painted when read."""
        indices = checked_indices(indices, len(self))
        found = np.empty((len(indices), *self.info.image_shape), np.uint8)
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            outlines, textures = np.divmod(self.labels[some], len(TEXTURES))
            draws = Draws(self._seed, some)
            found[start : start + _AT_ONCE, ..., 0] = self._ct(draws, outlines)
            found[start : start + _AT_ONCE, ..., 1] = self._mri(draws, textures)
        return found

    def _lesion(self, draws: Draws) -> tuple[Floats, Floats]:
        """Coordinates in the lesion's own frame, the same in both modalities."""
        x, y = grid(self._size)
        centre = draws.uniform("x", -0.22, 0.22), draws.uniform("y", -0.22, 0.22)
        return frame(x, y, centre, draws.direction("turn"), draws.uniform("size", 0.42, 0.58))

    def _ct(self, draws: Draws, outlines: Ints) -> NDArray[np.uint8]:
        u, v = self._lesion(draws)
        edge = wide(4.0 / self._size / draws.uniform("size", 0.42, 0.58))
        outline = wide(outlines)
        lobed = np.maximum(
            inside(radius(u - 0.5, v) - 0.55, edge), inside(radius(u + 0.5, v) - 0.55, edge)
        )
        rod = inside(radius(u - np.clip(u, -0.8, 0.8), v) - 0.3, edge)
        ring = inside(radius(u, v) - 0.95, edge) - inside(radius(u, v) - 0.5, edge)
        shape = np.select(
            [outline == 0, outline == 1, outline == 2],
            [inside(radius(u, v) - 0.8, edge), lobed, rod],
            ring,
        )
        ground = smooth_noise(draws, "ct/ground", *grid(self._size), 5.0) - 0.5
        pixels = wide(draws.uniform("ct/level", 0.2, 0.35)) + 0.15 * ground
        pixels = pixels + wide(draws.uniform("ct/contrast", 0.3, 0.5)) * shape
        return _stored(draws, "ct", pixels)

    def _mri(self, draws: Draws, textures: Ints) -> NDArray[np.uint8]:
        u, v = self._lesion(draws)
        texture = wide(textures)
        distance = radius(u, v)
        # A soft disc, whatever the outline is.
        body = inside(distance - 0.9, 0.5)
        coarse = np.clip((smooth_noise(draws, "mri/coarse", u, v, 5.0) - 0.5) * 6.0, -1.0, 1.0)
        stripes = wave(2.0 * v + wide(draws.uniform("mri/phase")))
        rim = 2.0 * inside(np.abs(distance - 0.75) - 0.18, 0.2) - 1.0
        shade = np.select(
            [texture == 1, texture == 2, texture == 3], [coarse, stripes, rim], 0.0 * u
        )
        ground = smooth_noise(draws, "mri/ground", *grid(self._size), 4.0) - 0.5
        pixels = wide(draws.uniform("mri/level", 0.25, 0.4)) + 0.15 * ground
        strength = wide(draws.uniform("mri/strength", 0.7, 1.0))
        pixels = pixels + body * (0.25 + 0.25 * strength * shade)
        return _stored(draws, "mri", pixels)


def _stored(draws: Draws, name: str, pixels: Floats) -> NDArray[np.uint8]:
    """With noise, in 8 bits."""
    sigma = wide(draws.uniform(f"{name}/sigma", 0.03, 0.07))
    noisy = pixels + sigma * draws.normal(f"{name}/noise", *pixels.shape[1:])
    found: NDArray[np.uint8] = np.floor(np.clip(noisy, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return found


def _class_split() -> ClassSplit:
    """Two outlines with two textures for test, the two others of both for validation.

    The rest, in which every half occurs with two of the other, is for training.
    """
    roles: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number in range(_N_CLASSES):
        outline, texture = divmod(number, len(TEXTURES))
        late = (outline >= 2, texture >= 2)
        role = "test" if all(late) else "train" if any(late) else "val"
        roles[role].append(number)
    return ClassSplit(tuple(roles["train"]), tuple(roles["val"]), tuple(roles["test"]))
