"""Made-up volumes of twisted vessels, of which single slices show but half of the class."""

from __future__ import annotations

import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from medbench.api import ClassSplit, DataError, Dataset, DatasetInfo, Place, derive_seed
from medbench_datasets._layout import checked_indices
from medbench_datasets._store import combined
from medbench_datasets.synthetic.draws import Draws, Floats, Ints

GENERATOR = 1
"""Version of the volumes; whatever changes a voxel or a label raises it."""

TURNS = (-2, -1, 1, 2)
FORMS = ("round", "hollow", "double", "flat")
_N_CLASSES = len(TURNS) * len(FORMS)
# Of ten volumes in a row of a class six are for training, one for validation, three for test.
_SPLITS = np.array([0, 2, 0, 0, 2, 0, 1, 0, 2, 0], np.uint8)
_AT_ONCE = 64


def open_vessels(
    place: Place,
    *,
    size: int = 16,
    images_per_class: int = 40,
    labels: str = "classes",
    seed: int = 0,
) -> Vessels:
    """The set ``synthetic-vessels``. Raises `DataError` for sizes it cannot be made in."""
    del place  # nothing is on disk
    return Vessels(size=size, images_per_class=images_per_class, labels=labels, seed=seed)


@final
class Vessels(Dataset):
    """A vessel winds around the axis of depth; a class is its turns and its cross-section.

    It turns a whole number of times, left or right, from a random start. So every class has a
    section at every angle, and the slices of a volume, without their order, are the same for all
    turns: they tell the four cross-sections apart, and no more. The class split ``default`` tests
    new pairs of turns and cross-sections, two of each cross-section: who sees but slices is right
    half of the time in four classes. Every volume is of a patient of its own.

    With ``labels`` = ``masks`` a volume's target is the vessel, as a structure of its class.
    """

    def __init__(
        self,
        *,
        size: int = 16,
        images_per_class: int = 40,
        labels: str = "classes",
        seed: int = 0,
    ) -> None:
        if size < 12 or images_per_class < 10:
            raise DataError(
                f"synthetic-vessels cannot be made with size={size}, "
                f"images_per_class={images_per_class}; expected at least 12 voxels an edge and 10 "
                "volumes."
            )
        self._size = size
        masks = labels == "masks"
        self._key: tuple[str | int, ...] = (
            "synthetic-vessels", GENERATOR, size, images_per_class, seed,
            *(["masks"] if masks else []),
        )  # fmt: skip
        self._seed = derive_seed("synthetic-vessels", seed)
        self._classes = np.repeat(np.arange(_N_CLASSES, dtype=np.int64), images_per_class)
        self.labels = np.eye(_N_CLASSES, dtype=np.uint8)[self._classes] if masks else self._classes
        self.splits = np.tile(np.resize(_SPLITS, images_per_class), _N_CLASSES)
        self.patients = np.arange(len(self.labels), dtype=np.int64)
        self.info = DatasetInfo(
            name="synthetic-vessels",
            label_names=tuple(
                f"{form}, {abs(turns)} {'left' if turns < 0 else 'right'}"
                for turns in TURNS
                for form in FORMS
            ),
            image_shape=(size, size, size, 1),
            domain="synthetic-vessels",
            modality="simulated angiography",
            licence="Apache-2.0",
            task_kind="segmentation" if masks else "classification",
            class_splits={"default": _class_split()},
        )

    @property
    def digest(self) -> str:
        """BLAKE2b of the generator's version and parameters, which determine every voxel."""
        return combined(*self._key)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Volumes ``(len(indices), size, size, size, 1)`` uint8, painted when they are read."""
        indices = checked_indices(indices, len(self))
        found = np.empty((len(indices), *self.info.image_shape), np.uint8)
        for start in range(0, len(indices), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            found[some] = self._painted(indices[some])[..., None]
        return found

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Masks ``(len(indices), 16, size, size, size)`` of the vessel, with ``labels`` masks.

        They hold the voxels that are at least half as bright as the vessel's axis.
        """
        if self.info.task_kind != "segmentation":
            return super().read_masks(indices)
        indices = checked_indices(indices, len(self))
        found = np.zeros((len(indices), _N_CLASSES, *self.info.image_shape[:-1]), np.bool_)
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            rows = np.arange(start, start + len(some))
            found[rows, self._classes[some]] = self._vessel(Draws(self._seed, some), some) >= 0.5
        return found

    def _painted(self, indices: Ints) -> NDArray[np.uint8]:
        """Volumes ``(b, D, H, W)``."""
        draws = Draws(self._seed, indices)
        shape = self._vessel(draws, indices)
        voxels = _between(draws, "ground", 0.1, 0.3) + _between(draws, "light", 0.4, 0.7) * shape
        noise = draws.normal("noise", *voxels.shape[1:])
        voxels = voxels + _between(draws, "noise level", 0.02, 0.06) * noise
        found: NDArray[np.uint8] = np.floor(np.clip(voxels, 0.0, 1.0) * 255.0 + 0.5).astype(
            np.uint8
        )
        return found

    def _vessel(self, draws: Draws, indices: Ints) -> Floats:
        """Vessels ``(b, D, H, W)``, 0 outside to 1 inside; lengths are shares of the edge."""
        classes = self._classes[indices]
        turns = np.array(TURNS)[classes // len(FORMS)]
        form = (classes % len(FORMS))[:, None, None, None]
        ux, uy = (v[:, :, None, None] for v in _directions(draws, turns, self._size))
        at = (np.arange(self._size) + 0.5) / self._size - 0.5
        depth = at[None, :, None, None]
        # The axis is a little aslant, and off the centre.
        x = at[None, None, None, :] - _wide(draws, "x", 0.07) - _wide(draws, "x slope", 0.1) * depth
        y = at[None, None, :, None] - _wide(draws, "y", 0.07) - _wide(draws, "y slope", 0.1) * depth
        radius = _between(draws, "radius", 0.24, 0.30)
        width = _between(draws, "width", 0.10, 0.13)
        along, across = ux * x + uy * y, ux * y - uy * x
        near = ((along - radius) ** 2 + across**2) / width**2
        far = ((along + radius) ** 2 + across**2) / width**2
        flat = (along - radius) ** 2 / (2.0 * width) ** 2 + across**2 / (0.5 * width) ** 2
        hollow = np.clip(_bump(near) - _bump(4.0 * near), 0.0, 1.0)
        shape: Floats = np.select(
            [form == 0, form == 1, form == 2],
            [_bump(near), hollow, np.maximum(_bump(near), _bump(far))],
            _bump(flat),
        )
        return shape


def _bump(squared: Floats) -> Floats:
    """1 inside, 0 outside, one half at squared distance 1."""
    return 1.0 / (1.0 + squared * squared * squared)


def _between(draws: Draws, name: str, low: float, high: float) -> Floats:
    return draws.uniform(name, low, high)[:, None, None, None]


def _wide(draws: Draws, name: str, most: float) -> Floats:
    return _between(draws, name, -most, most)


def _directions(draws: Draws, turns: Ints, size: int) -> tuple[Floats, Floats]:
    """Where the vessel lies from the axis in each slice, ``(b, D)`` x and y of unit vectors.

    A slice's direction is the one before, turned once more: additions and multiplications alone,
    which every machine rounds alike.
    """
    angles = {n: 2.0 * math.pi * n / size for n in TURNS}
    cos = np.array([_series(angles[n], 0) for n in turns.tolist()])
    sin = np.array([_series(angles[n], 1) for n in turns.tolist()])
    x, y = draws.direction("start")
    xs, ys = [], []
    for _ in range(size):
        xs.append(x)
        ys.append(y)
        x, y = x * cos - y * sin, x * sin + y * cos
    return np.stack(xs, axis=1), np.stack(ys, axis=1)


def _series(angle: float, first: int) -> float:
    """Cosine (`first` 0) or sine (1) of an angle of at most about 1, by its power series."""
    term = angle**first
    total = term
    for n in range(first + 2, first + 26, 2):
        term = -term * angle * angle / (n * (n - 1))
        total += term
    return total


def _class_split() -> ClassSplit:
    """Half of the pairs, each factor equally often, for training; a quarter for either other."""
    train: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for t in range(len(TURNS)):
        for f in range(len(FORMS)):
            (train if (t + f) % 2 == 0 else rest).append((t * len(FORMS) + f, f))
    val = tuple(c for c, f in rest if f < len(FORMS) // 2)
    test = tuple(c for c, f in rest if f >= len(FORMS) // 2)
    return ClassSplit(tuple(c for c, _ in train), val, test)
