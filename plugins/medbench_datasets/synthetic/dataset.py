"""The synthetic dataset: which image belongs to which class, patient, site and split."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import (
    Boxes,
    ClassSplit,
    DataError,
    Dataset,
    DatasetInfo,
    Place,
    TaskKind,
    Unavailable,
    derive_seed,
)
from medbench_datasets._layout import checked_indices
from medbench_datasets._store import combined, replacing
from medbench_datasets.synthetic.canvas import boxes_of
from medbench_datasets.synthetic.cells import CELLS
from medbench_datasets.synthetic.ct import CT
from medbench_datasets.synthetic.draws import Draws, Ints
from medbench_datasets.synthetic.fundus import FUNDUS
from medbench_datasets.synthetic.scanner import scanned
from medbench_datasets.synthetic.scene import Batch, Domain, Scene
from medbench_datasets.synthetic.xray import XRAY

GENERATOR = 1
"""Version of the images; whatever changes a pixel or a label raises it."""

DOMAINS: dict[str, Domain] = {"cells": CELLS, "fundus": FUNDUS, "xray": XRAY, "ct": CT}
N_SITES = 4
_TARGETS: dict[str, TaskKind] = {"masks": "segmentation", "boxes": "detection"}

_HERE = Path(__file__).parent
_SEAL = 32
_N_FORMS, _N_PATTERNS = 6, 5
_ROLES = "tsvtstvtst"  # of ten classes: five for meta-training, two for validation, three for test
_VALIDATED = (1, 2, 3, 4, 1, 0)  # the pattern with which each form is in validation
_KEPT_BYTES = 320 << 20  # 1800 colour images of 224 pixels fit
# Small enough for the arrays of a block to stay in a core's own cache.
_BLOCK_PIXELS = 64 * 28 * 28

# Of ten patients in a row six are for training, one for validation, three for test; any four in a
# row hold two of training and one of test, so that every site of a class has both.
_SPLITS = np.array([0, 2, 0, 0, 2, 0, 1, 0, 2, 0], np.uint8)


def open_synthetic(
    place: Place,
    *,
    argument: str,
    size: int = 28,
    images_per_class: int = 60,
    n_classes: int = 30,
    labels: str = "classes",
    seed: int = 0,
) -> Synthetic:
    """The set ``synthetic:DOMAIN``. Raises `DataError` for a domain there is not."""
    return Synthetic(
        place,
        domain=argument,
        size=size,
        images_per_class=images_per_class,
        n_classes=n_classes,
        labels=labels,
        seed=seed,
    )


class Synthetic(Dataset):
    """Images painted when they are read; nothing is on disk.

    Classes are pairs of a form and a pattern; the class split ``default`` tests pairs that are new
    of forms and patterns that are not. With ``labels`` = ``findings`` an image has both as labels
    of their own, which makes the set multilabel: two of eleven are true of each image. With
    ``masks`` or ``boxes`` the targets are those of the lesions (of one form an image) or of the
    cell, for segmentation or detection. Each patient
    has three or four images of one class, at one site; image splits keep patients apart.
    """

    def __init__(
        self,
        place: Place,
        *,
        domain: str = "cells",
        size: int = 28,
        images_per_class: int = 60,
        n_classes: int = 30,
        labels: str = "classes",
        seed: int = 0,
    ) -> None:
        if domain not in DOMAINS or size < 16 or not 6 <= n_classes <= 30 or images_per_class < 8:
            raise DataError(
                f"synthetic cannot be made with domain={domain!r}, size={size}, "
                f"images_per_class={images_per_class}, n_classes={n_classes}; expected one of "
                f"{', '.join(DOMAINS)}, size >= 16, at least 8 images and 6...30 classes."
            )
        self._domain = DOMAINS[domain]
        self._key: tuple[object, ...] = (
            "synthetic",
            GENERATOR,
            domain,
            size,
            images_per_class,
            n_classes,
            seed,
        )
        self._seed = derive_seed("synthetic", domain, seed)
        self._size = size
        n = n_classes * images_per_class
        self.labels = np.repeat(np.arange(n_classes, dtype=np.int64), images_per_class)
        within, self.splits, sites = _people(images_per_class, n_classes)
        per_class = int(within.max()) + 1
        self.patients = self.labels * per_class + np.tile(within, n_classes)
        self.sites = sites
        pairs, roles = _classes()
        self._forms = np.array([form for form, _ in pairs], np.int64)[self.labels]
        self._patterns = np.array([pattern for _, pattern in pairs], np.int64)[self.labels]
        names = self._domain
        self.info = DatasetInfo(
            name=f"synthetic:{domain}",
            label_names=tuple(
                f"{names.forms[form]}, {names.patterns[pattern]}"
                for form, pattern in pairs[:n_classes]
            ),
            image_shape=(size, size, names.channels),
            domain=f"synthetic-{domain}",
            modality=f"simulated {names.modality}",
            licence="Apache-2.0",
            site_names=tuple(f"site {chr(ord('A') + k)}" for k in range(N_SITES)),
            class_splits={
                "default": ClassSplit(
                    *(
                        tuple(k for k in range(n_classes) if roles[k] == role)
                        for role in ("t", "v", "s")
                    )
                )
            },
        )
        if labels == "findings":
            self._ask_for_findings()
        elif labels in _TARGETS:
            self._ask_for_objects(labels)
        self._block = max(1, _BLOCK_PIXELS // size**2)
        image_bytes = size**2 * names.channels
        self._n_kept = max(1, _KEPT_BYTES // (self._block * image_bytes))
        self._kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._may_keep_all = n * image_bytes <= _KEPT_BYTES
        self._all: NDArray[np.uint8] | None = None
        self._file = (
            place.cache / "synthetic" / f"{combined(_source_digest(), *self._key)[:32]}.raw"
        )

    def _ask_for_findings(self) -> None:
        found = np.zeros((len(self._forms), _N_FORMS + _N_PATTERNS), np.uint8)
        rows = np.arange(len(found))
        found[rows, self._forms] = 1
        found[rows, _N_FORMS + self._patterns] = 1
        self.labels = found
        self.info = replace(
            self.info,
            label_names=(*self._domain.forms, *self._domain.patterns),
            task_kind="multilabel",
            class_splits={},
        )
        self._key = (*self._key, "findings")

    def _ask_for_objects(self, labels: str) -> None:
        """Masks or boxes of lesions by their form, or of the one cell of each image."""
        found = np.zeros((len(self._forms), len(self._structures())), np.uint8)
        found[np.arange(len(found)), self._structure_of(np.arange(len(found)))] = 1
        self.labels = found
        self.info = replace(
            self.info,
            label_names=self._structures(),
            task_kind=_TARGETS[labels],
            class_splits={},
        )
        self._key = (*self._key, labels)

    def _structures(self) -> tuple[str, ...]:
        return ("cell",) if self._domain is CELLS else self._domain.forms

    def _structure_of(self, indices: Ints) -> Ints:
        """Which structure the objects of each image are; all of one image are alike."""
        if self._domain is CELLS:
            return np.zeros(len(indices), np.int64)
        forms: Ints = self._forms[indices]
        return forms

    @property
    def digest(self) -> str:
        """BLAKE2b of the generator's version and parameters, which determine every pixel."""
        return combined(*self._key)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), size, size, C)`` uint8.

        A few are painted in blocks that are kept; when many are asked for, the whole set is painted
        once and left in the cache folder for other processes, unless it is very large.
        """
        indices = checked_indices(indices, len(self))
        if self._all is None and self._may_keep_all:
            self._all = self._remembered()
            if self._all is None and len(indices) > len(self) // 50:
                self._all = self._paint_all()
        if self._all is not None:
            return self._all[indices]
        images = np.empty((len(indices), *self.info.image_shape), np.uint8)
        blocks = indices // self._block
        for block in np.unique(blocks):
            chosen = np.flatnonzero(blocks == block)
            images[chosen] = self._painted(int(block))[indices[chosen] - block * self._block]
        return images

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, n_structures, H, W)``, with ``labels`` = ``masks``."""
        if self.info.task_kind != "segmentation":
            return super().read_masks(indices)
        found = np.zeros((len(indices), len(self.info.label_names), self._size, self._size), bool)
        found[np.arange(len(indices)), self._structure_of(indices)] = self.masks(indices)
        return found

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """True boxes, one a lesion or cell, with ``labels`` = ``boxes``."""
        if self.info.task_kind != "detection":
            return super().read_boxes(indices)
        return [
            Boxes(
                rows.astype(np.float64),
                np.full(len(rows), structure, np.int64),
                np.zeros(len(rows), np.bool_),
            )
            for rows, structure in zip(
                self.boxes(indices), self._structure_of(indices).tolist(), strict=True
            )
        ]

    def masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(b, H, W)``: the cell, or all lesions together."""
        indices = checked_indices(indices, len(self))
        found = np.zeros((len(indices), self._size, self._size), np.bool_)
        for start in range(0, len(indices), self._block):
            part = indices[start : start + self._block]
            found[start : start + self._block] = self._scene(part)[1].masks.any(axis=1)
        return found

    def boxes(self, indices: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """True boxes of each image, ``(k, 4)`` x0, y0, x1, y1 in pixels, ends excluded.

        One box a lesion (or cell); their union encloses the mask. Lesions may overlap.
        """
        indices = checked_indices(indices, len(self))
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(indices), self._block):
            part = indices[start : start + self._block]
            found.extend(boxes_of(masks) for masks in self._scene(part)[1].masks)
        return found

    def _remembered(self) -> NDArray[np.uint8] | None:
        """All images from the cache; None when they are not there whole."""
        try:
            content = self._file.read_bytes()
        except OSError:
            return None
        pixels, seal = content[:-_SEAL], content[-_SEAL:]
        if hashlib.blake2b(pixels, digest_size=_SEAL).digest() != seal:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(len(self), *self.info.image_shape)

    def _paint_all(self) -> NDArray[np.uint8]:
        blocks = [self._painted(block) for block in range(-(-len(self) // self._block))]
        images = np.concatenate(blocks)
        self._kept.clear()
        pixels = images.tobytes()
        # A cache that cannot be written costs the next process its time, and nothing else.
        with contextlib.suppress(Unavailable, OSError), replacing(self._file) as file:
            file.write(pixels)
            file.write(hashlib.blake2b(pixels, digest_size=_SEAL).digest())
        return images

    def __getstate__(self) -> dict[str, Any]:
        # Painted images are found in the cache again, or painted again.
        return {**self.__dict__, "_all": None, "_kept": OrderedDict()}

    def _painted(self, block: int) -> NDArray[np.uint8]:
        if block in self._kept:
            self._kept.move_to_end(block)
            return self._kept[block]
        start = block * self._block
        batch, scene = self._scene(np.arange(start, min(start + self._block, len(self))))
        images = scanned(batch, scene.pixels)
        self._kept[block] = images
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        return images

    def _scene(self, indices: Ints) -> tuple[Batch, Scene]:
        assert self.patients is not None
        assert self.sites is not None
        batch = Batch(
            image=Draws(derive_seed(self._seed, "image"), indices),
            patient=Draws(derive_seed(self._seed, "patient"), self.patients[indices]),
            site=Draws(derive_seed(self._seed, "site"), self.sites[indices]),
            forms=self._forms[indices],
            patterns=self._patterns[indices],
            size=self._size,
        )
        return batch, self._domain.paint(batch)


@functools.cache
def _source_digest() -> str:
    """A digest of this package's code, so that no cached image outlives the code that made it."""
    return combined(*(p.read_text(encoding="utf-8") for p in sorted(_HERE.glob("*.py"))))


def _classes() -> tuple[list[tuple[int, int]], str]:
    """The 30 pairs of form and pattern, and the role of each in the class split.

    Pairs of even sum are trained on: every form with two or three patterns, every pattern with
    three forms. Of the others each form gives one to validation. Roles alternate, so that the
    first `n` classes are a fair smaller dataset.
    """
    # 6 and 5 have no common factor: going round both visits every pair once, mixing both.
    walk = [(k % _N_FORMS, k % _N_PATTERNS) for k in range(_N_FORMS * _N_PATTERNS)]

    def role_of(form: int, pattern: int) -> str:
        if (form + pattern) % 2 == 0:
            return "t"
        return "v" if pattern == _VALIDATED[form] else "s"

    pools = {role: iter([pair for pair in walk if role_of(*pair) == role]) for role in "tvs"}
    roles = _ROLES * 3
    return [next(pools[role]) for role in roles], roles


def _people(
    images_per_class: int, n_classes: int
) -> tuple[Ints, NDArray[np.uint8], NDArray[np.int64]]:
    """Patient within the class ``(images_per_class,)``, and split and site of every image.

    Patients have three or four images. In each class they are shared out over the sites,
    and over the splits within each site.
    """
    n_patients = (2 * images_per_class + 3) // 7
    bounds = np.arange(n_patients + 1, dtype=np.int64) * images_per_class // n_patients
    lengths = np.diff(bounds)
    within = np.repeat(np.arange(n_patients, dtype=np.int64), lengths)
    by_site = sorted(range(n_patients), key=lambda p: (p % N_SITES, p))
    rank = np.empty(n_patients, np.int64)
    rank[by_site] = np.arange(n_patients)
    splits, sites = [], []
    for k in range(n_classes):
        # Two or three patients are too few for the pattern to hold train and test anywhere.
        shift = 3 * k if n_patients >= 4 else 0
        splits.append(_SPLITS[(rank + shift) % len(_SPLITS)][within])
        sites.append((np.arange(n_patients, dtype=np.int64) % N_SITES + k) % N_SITES)
        sites[-1] = sites[-1][within]
    return within, np.concatenate(splits), np.concatenate(sites)
