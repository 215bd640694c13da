"""Made-up cells of patients with images of every class, who differ more than their classes do."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError, Dataset, DatasetInfo, Place, derive_seed
from medbench_datasets._layout import checked_indices
from medbench_datasets._store import combined
from medbench_datasets.synthetic.cells import CELLS
from medbench_datasets.synthetic.draws import Draws, Floats, Ints
from medbench_datasets.synthetic.scanner import scanned
from medbench_datasets.synthetic.scene import Batch, Scene

GENERATOR = 1
"""Version of the images; whatever changes a pixel or a label raises it."""

# Of ten patients in a row six are for training, one for validation, three for test.
_SPLITS = np.array([0, 2, 0, 0, 2, 0, 1, 0, 2, 0], np.uint8)
_AT_ONCE = 64
_DAYS = 30.0
# By what share each class's red, green and blue are stronger or weaker.
_UPTAKES = 0.15 * np.array(
    [[1, -1, 0], [0, 1, -1], [-1, 0, 1], [-1, 1, 0], [0, -1, 1], [1, 0, -1]], np.float64
)


def open_patients(
    place: Place,
    *,
    size: int = 28,
    n_patients: int = 60,
    images_per_class: int = 6,
    n_classes: int = 5,
    labels: str = "classes",
    seed: int = 0,
) -> Patients:
    """The set ``synthetic-patients``. Raises `DataError` for sizes it cannot be made in."""
    del place  # nothing is on disk
    return Patients(
        size=size,
        n_patients=n_patients,
        images_per_class=images_per_class,
        n_classes=n_classes,
        labels=labels,
        seed=seed,
    )


@final
class Patients(Dataset):
    """Every patient has `images_per_class` images of each class, taken one after the other.

    A class is a pair of the form of the nucleus and the texture of the cytoplasm, as in
    ``synthetic:cells``; besides, each class takes up the stain in colours of its own. All images of
    a patient are stained alike, and those of patients differ in it by more than classes do. The
    stain fades a little from visit to visit. So the colour tells the classes of one patient apart,
    and of others it says nothing: there the form must. ``labels``: ``classes``, or ``masks`` of the
    cell. Image splits keep patients apart.
    """

    def __init__(
        self,
        *,
        size: int = 28,
        n_patients: int = 60,
        images_per_class: int = 6,
        n_classes: int = 5,
        labels: str = "classes",
        seed: int = 0,
    ) -> None:
        if size < 16 or n_patients < 10 or images_per_class < 2 or not 2 <= n_classes <= 30:
            raise DataError(
                f"synthetic-patients cannot be made with size={size}, n_patients={n_patients}, "
                f"images_per_class={images_per_class}, n_classes={n_classes}; expected at least 16 "
                "pixels, 10 patients, 2 images a class and 2...30 classes."
            )
        self._size = size
        self._key = (
            "synthetic-patients",
            GENERATOR,
            size,
            n_patients,
            images_per_class,
            n_classes,
            labels,
            seed,
        )
        self._seed = derive_seed("synthetic-patients", seed)
        each = n_classes * images_per_class
        n = n_patients * each
        self.patients = np.repeat(np.arange(n_patients, dtype=np.int64), each)
        # Visits bring one image of every class, in the order of the classes.
        self._visits = np.tile(np.repeat(np.arange(images_per_class), n_classes), n_patients)
        self._classes = np.tile(np.arange(n_classes, dtype=np.int64), n // n_classes)
        self.times = _DAYS * self._visits.astype(np.float64)
        self.splits = np.resize(_SPLITS, n_patients)[self.patients]
        forms, patterns = CELLS.forms, CELLS.patterns
        # 6 and 5 have no common factor: going round both visits every pair once, mixing both.
        pairs = [(k % len(forms), k % len(patterns)) for k in range(n_classes)]
        self._forms = np.array([form for form, _ in pairs], np.int64)[self._classes]
        self._patterns = np.array([pattern for _, pattern in pairs], np.int64)[self._classes]
        masks = labels == "masks"
        self.labels = np.ones((n, 1), np.uint8) if masks else self._classes
        names = tuple(f"{forms[form]}, {patterns[pattern]}" for form, pattern in pairs)
        self.info = DatasetInfo(
            name="synthetic-patients",
            label_names=("cell",) if masks else names,
            image_shape=(size, size, CELLS.channels),
            domain="synthetic-patients",
            modality=f"simulated {CELLS.modality}",
            licence="Apache-2.0",
            task_kind="segmentation" if masks else "classification",
        )

    @property
    def digest(self) -> str:
        """BLAKE2b of the generator's version and parameters, which determine every pixel."""
        return combined(*self._key)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), size, size, 3)`` uint8, painted when they are read."""
        indices = checked_indices(indices, len(self))
        found = np.empty((len(indices), *self.info.image_shape), np.uint8)
        for start in range(0, len(indices), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            batch, scene = self._scene(indices[some])
            rows = indices[some]
            uptake = _UPTAKES[self._classes[rows] % len(_UPTAKES)]
            stained = _stained(batch.patient, self._visits[rows], uptake, scene.pixels)
            found[some] = scanned(batch, stained)
        return found

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, 1, size, size)`` of the cell, with ``labels`` = ``masks``."""
        if self.info.task_kind != "segmentation":
            return super().read_masks(indices)
        indices = checked_indices(indices, len(self))
        found = np.empty((len(indices), 1, self._size, self._size), np.bool_)
        for start in range(0, len(indices), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            found[some, 0] = self._scene(indices[some])[1].masks.any(axis=1)
        return found

    def _scene(self, indices: Ints) -> tuple[Batch, Scene]:
        assert self.patients is not None
        batch = Batch(
            image=Draws(derive_seed(self._seed, "image"), indices),
            patient=Draws(derive_seed(self._seed, "patient"), self.patients[indices]),
            site=Draws(derive_seed(self._seed, "site"), np.zeros_like(indices)),
            forms=self._forms[indices],
            patterns=self._patterns[indices],
            size=self._size,
        )
        return batch, CELLS.paint(batch)


def _stained(patient: Draws, visits: Ints, uptake: Floats, pixels: Floats) -> Floats:
    """Pixels ``(b, S, S, 3)`` as the patient's stain shows them.

    Each colour is weakened by the patient's own share, and by the class's `uptake` ``(b, 3)``.
    """
    strength = patient.uniform("stain", 0.35, 0.85, 3) - 0.005 * visits[:, None]
    return np.clip(pixels * (strength * (1.0 + uptake))[:, None, None, :], 0.0, 1.0)
