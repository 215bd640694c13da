"""Checks of data sets: labels and splits that hold, images that decode, a digest that stands."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.api import Dataset, Place
from medbench.conformance import fresh, guards
from medbench.conformance.check import Broken, DoesNotApply, Shelf, in_words
from medbench.conformance.common import COMMON
from medbench.conformance.subject import Subject
from medbench.errors import DataMissing, MedbenchError
from medbench.modalities import wrongly_declared
from medbench.opened import default_place
from medbench.plugins import Entry, Plugin, load_factory

DATASETS = Shelf("datasets")
DATASETS.take(*COMMON)
_IMAGES = 64
_HEX = re.compile(r"[0-9a-f]{16,128}")


@dataclass
class Found:
    """What the checks of one data set share: it is opened once."""

    subject: Subject
    _dataset: Dataset | None = None

    def again(self) -> Dataset:
        """The data set opened once more. Raises `DoesNotApply` where its data are not here."""
        _ = self.dataset
        return self.open()

    def open(self, place: Place | None = None) -> Dataset:
        """Open it anew. Raises what the factory raises."""
        subject = self.subject
        extra = {"argument": subject.argument} if subject.spec.takes_argument else {}
        place = default_place() if place is None else place
        dataset: Dataset = load_factory(subject.entry)(place, **extra, **subject.params)
        return dataset

    @property
    def dataset(self) -> Dataset:
        """The data set. Raises `DoesNotApply` where its data are not here."""
        if self._dataset is None:
            try:
                self._dataset = self.open()
            except DataMissing as why:
                raise DoesNotApply(f"its data are not here: {why}") from why
        return self._dataset

    def some(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Indices of images from all over it."""
        n = len(self.dataset.labels)
        return np.unique(np.linspace(0, n - 1, min(n, _IMAGES)).astype(np.int64))


@DATASETS.add(
    "opens",
    reason="Whoever lacks the data is told what to get; suites go on without an optional set.",
    hint="Look for files with place.find(..., hint=...), which raises medbench.api.DataMissing, "
    "and return a medbench.api.Dataset.",
)
def _opens(found: Found) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            found.open(Place(data=Path(folder), cache=Path(folder) / "cache"))
    except DataMissing:
        pass
    except MedbenchError as error:
        raise Broken(
            f"in an empty data folder it raised {type(error).__name__} ({error}), not DataMissing."
        ) from error
    except Exception as error:
        raise Broken(f"in an empty data folder it {in_words(error)}, not DataMissing.") from error
    try:
        dataset = found.dataset
    except MedbenchError as error:
        # About the user's files or parameters, in words that are for the user.
        hint = (
            "Mend the files, or set parameters with --param NAME=VALUE; 'medbench info "
            f"{found.subject.entry.name}' lists them."
        )
        raise Broken(str(error), hint) from error
    if not isinstance(dataset, Dataset):
        raise Broken(
            f"the factory returned {type(dataset).__name__}, and a medbench.api.Dataset is needed."
        )


@DATASETS.add(
    "licence",
    reason="Tables print the licence, and suites leave non-commercial data out unless told.",
    hint="State the licence's name (an SPDX identifier where there is one) in spec and info; set "
    "non_commercial=True for the NC ones.",
    needs=("opens",),
)
def _licence(found: Found) -> None:
    info, spec = found.dataset.info, found.subject.spec
    own = bool(spec.takes_argument)
    if not own and info.licence.strip().lower() in ("", "unknown", "unstated", "todo"):
        raise Broken(f"info.licence is {info.licence!r}.")
    words = re.split(r"[^A-Za-z]+", info.licence.upper())
    if "NC" in words and not info.non_commercial:
        raise Broken(f"info.licence is {info.licence!r}, and non_commercial is False.")


@DATASETS.add(
    "info",
    reason="Overlap between training and test data is judged by what the spec says.",
    hint="Return in info what the spec says of task_kind, domain, modality, licence and number of "
    "classes.",
    needs=("opens",),
)
def _info(found: Found) -> None:
    info, spec = found.dataset.info, found.subject.spec
    # Members of a family follow the user's files and parameters: slices of volumes, say.
    own = bool(spec.takes_argument)
    n_dims = (2, 3) if own else (spec.n_dims,)
    coloured = bool(info.modalities) or info.image_shape[-1] in (1, 3)
    if len(info.image_shape) - 1 not in n_dims or not coloured:
        raise Broken(
            f"info.image_shape is {info.image_shape}, and {' or '.join(map(str, n_dims))}-D images "
            "with 1 or 3 channels last, or info.modalities, are expected."
        )
    if len(set(info.label_names)) != len(info.label_names):
        raise Broken(f"info.label_names names a class twice: {', '.join(info.label_names)}.")
    pairs: dict[str, tuple[Any, Any]] = {}
    if not own:
        names = ("task_kind", "domain", "modality", "licence", "non_commercial", "ordinal")
        pairs = {name: (getattr(info, name), getattr(spec, name)) for name in names}
        if spec.n_classes is not None:
            pairs["number of classes"] = (len(info.label_names), spec.n_classes)
    wrong = [
        f"{name} is {a!r} in info and {b!r} in the spec" for name, (a, b) in pairs.items() if a != b
    ]
    if wrong:
        raise Broken(f"{'; '.join(wrong)}.")


@DATASETS.add(
    "modalities",
    reason="Wrappers of backbones take an image apart by the modalities that info declares.",
    hint="Give info.modalities in the order of the channels, Modality(name, channels), so that "
    "they add up to the last number of image_shape; leave it empty where there is one alone.",
    needs=("opens",),
)
def _modalities(found: Found) -> None:
    wrong = wrongly_declared(found.dataset.info)
    if wrong:
        raise Broken(wrong)


@DATASETS.add(
    "labels",
    reason="A label is an index into label_names; with several labels, masks or boxes it is a row "
    "of zeros and ones.",
    hint="Give labels as int64 (n,) from 0 to len(label_names) - 1, or uint8 (n, n_labels); count "
    "from zero, and leave out images without a label.",
    needs=("opens",),
)
def _labels(found: Found) -> None:
    labels, info = found.dataset.labels, found.dataset.info
    n = len(info.label_names)
    if info.task_kind != "classification":
        if labels.ndim != 2 or labels.shape[1] != n or not np.isin(labels, (0, 1)).all():
            raise Broken(
                f"labels are {labels.shape} {labels.dtype}, and (n, {n}) of 0 and 1 are needed: "
                f"its task is {info.task_kind}."
            )
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise Broken(f"labels are {labels.shape} {labels.dtype}, and (n,) integers are needed.")
    if not len(labels):
        raise Broken("there are no images.")
    if labels.min() < 0 or labels.max() >= n:
        raise Broken(
            f"labels run from {labels.min()} to {labels.max()}, and there are {n} label names."
        )


@DATASETS.add(
    "splits",
    reason="Classes and images that are tested on must not have been trained on.",
    hint="Give splits as uint8 (n,), 0 train, 1 val, 2 test; and class splits whose three parts "
    "have no class in common.",
    needs=("labels",),
)
def _splits(found: Found) -> None:
    dataset = found.dataset
    n = len(dataset.labels)
    if dataset.splits is not None:
        if dataset.splits.shape != (n,) or not np.isin(dataset.splits, (0, 1, 2)).all():
            values = np.unique(dataset.splits)[:5].tolist()
            raise Broken(
                f"splits are {dataset.splits.shape} with values {values}, and ({n},) of 0, 1, 2 "
                "are needed."
            )
        for number, name in ((0, "train"), (2, "test")):
            if not (dataset.splits == number).any():
                raise Broken(f"splits are given, and no image is in {name}.")
    for name, split in dataset.info.class_splits.items():
        parts = [set(split.train), set(split.val), set(split.test)]
        common = (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
        if common:
            names = [dataset.info.label_names[c] for c in sorted(common)[:3]]
            raise Broken(f"class split {name!r} has classes in two parts: {', '.join(names)}.")
        outside = [c for c in set().union(*parts) if not 0 <= c < len(dataset.info.label_names)]
        if outside:
            raise Broken(f"class split {name!r} has classes that are not there: {outside[:3]}.")


@DATASETS.add(
    "patients",
    reason="Two images of one patient are alike; one in training and one in test inflates scores.",
    hint="Split by patient, not by image; give patients as int64 (n,).",
    needs=("splits",),
)
def _patients(found: Found) -> None:
    dataset = found.dataset
    if dataset.patients is None:
        raise DoesNotApply("it does not know the patients")
    if dataset.patients.shape != (len(dataset.labels),) or dataset.patients.dtype.kind not in "iu":
        raise Broken(
            f"patients are {dataset.patients.shape} {dataset.patients.dtype}, not integers (n,)."
        )
    if dataset.splits is None:
        return
    sides = [np.unique(dataset.patients[dataset.splits == s]) for s in (0, 1, 2)]
    for a, b in ((0, 2), (1, 2), (0, 1)):
        both = np.intersect1d(sides[a], sides[b])
        if len(both):
            names = ("train", "val", "test")
            raise Broken(
                f"{len(both)} patients have images in both {names[a]} and {names[b]}, such as "
                f"patient {both[0]}."
            )


@DATASETS.add(
    "sites",
    reason="Protocols leave one site out, by its name.",
    hint="Give sites as int64 (n,) indices into info.site_names, and site_names without repeats.",
    needs=("labels",),
)
def _sites(found: Found) -> None:
    dataset, names = found.dataset, found.dataset.info.site_names
    if dataset.sites is None:
        if names:
            raise Broken(f"info names {len(names)} sites, and sites is None.")
        raise DoesNotApply("it does not know the sites")
    n = len(dataset.labels)
    if dataset.sites.shape != (n,) or dataset.sites.min() < 0 or dataset.sites.max() >= len(names):
        raise Broken(
            f"sites are {dataset.sites.shape} from {dataset.sites.min()} to {dataset.sites.max()}, "
            f"and ({n},) indices into {len(names)} site names are needed."
        )
    if len(set(names)) != len(names):
        raise Broken(f"info.site_names names a site twice: {', '.join(names)}.")


@DATASETS.add(
    "images",
    reason="Images are read by index, in any order, some of them more than once.",
    hint="Return uint8 (len(indices), *info.image_shape) in the order asked for; give the same "
    "pixels every time.",
    needs=("labels",),
)
def _images(found: Found) -> None:
    dataset = found.dataset
    rows = found.some()
    images = dataset.read(rows)
    want = (len(rows), *dataset.info.image_shape)
    if images.shape != want or images.dtype != np.uint8:
        raise Broken(f"read returned {images.shape} {images.dtype}, and {want} uint8 is needed.")
    backwards = dataset.read(rows[::-1].copy())
    if not np.array_equal(backwards[::-1], images):
        raise Broken("asked for in another order, images are not those of the same indices.")
    twice = dataset.read(np.array([rows[0], rows[-1], rows[0]]))
    if len(twice) != 3 or not np.array_equal(twice[[0, 2]], images[[0, 0]]):
        raise Broken("asked for the same index twice, read does not return its image twice.")


@DATASETS.add(
    "random-state",
    reason="Reading images must not change what is drawn afterwards.",
    hint="Draw from a generator of your own, seeded by a constant.",
    needs=("images",),
)
def _random_state(found: Found) -> None:
    rows = found.some()[:4]
    with guards.seeded():
        before = guards.random_states()
        found.again().read(rows)
        moved = guards.changed_states(before)
    if moved:
        raise Broken(f"opening or reading drew from the global generator of {' and '.join(moved)}.")


@DATASETS.add(
    "digest",
    reason="Records are kept by what they were measured on: the same data must have the same "
    "digest, and other data another.",
    hint="Hash file contents (or whatever determines pixels, labels, splits) with BLAKE2b, in a "
    "fixed order; no times of change, no folder names, no hash().",
    needs=("labels",),
)
def _digest(found: Found) -> None:
    first = found.dataset.digest
    if not isinstance(first, str) or not _HEX.fullmatch(first):
        raise Broken(f"digest is {first!r}, and 16 to 128 hexadecimal digits are needed.")
    if found.dataset.digest != first or found.again().digest != first:
        raise Broken("opened twice, it has two digests.")
    spec, params = found.subject.spec, dict(found.subject.params)
    place = default_place()
    there = fresh.elsewhere(_digest_elsewhere, spec, found.subject.name, params, place)
    if there != first:
        raise Broken("in another process it has another digest.")


def _digest_elsewhere(spec: Any, name: str, params: Mapping[str, Any], place: Place) -> str:
    from medbench.plugins import registry

    entry = Entry("datasets", spec, Plugin("checked", "0", "-", "-", (), 0.0))
    return Found(Subject(registry(), entry, name, params)).open(place).digest


@DATASETS.add(
    "read-only",
    reason="All methods see one copy of the data.",
    hint="Do not change labels, splits, sites or patients after opening.",
    needs=("images",),
)
def _read_only(found: Found) -> None:
    dataset = found.again()
    names = ("labels", "splits", "sites", "patients")
    before = {name: copy.copy(getattr(dataset, name)) for name in names}
    dataset.read(found.some())
    for name, value in before.items():
        if not np.array_equal(getattr(dataset, name), value):
            raise Broken(f"read changed {name}.")


@DATASETS.add(
    "no-network",
    reason="Data are downloaded when the user says so ('medbench data get'), never while a suite "
    "runs.",
    hint="Download in the spec's fetch, and raise DataMissing in the factory.",
    needs=("opens",),
)
def _no_network(found: Found) -> None:
    rows = found.some()[:4]
    with guards.no_network() as seen:
        try:
            found.open().read(rows)
        except Exception:
            if not seen:
                raise
    if seen:
        raise Broken(f"it asked for {', '.join(sorted(set(seen))[:3])}.")


@DATASETS.add(
    "no-writing",
    reason="Data folders are shared and read-only.",
    hint="Write below place.cache alone.",
    needs=("opens",),
)
def _no_writing(found: Found) -> None:
    rows = found.some()[:4]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(data=default_place().data, cache=Path(folder) / "cache")
        with guards.writing_only(Path(folder)) as seen:
            found.open(place).read(rows)
    if seen:
        raise Broken(f"it wrote {', '.join(sorted(set(seen))[:3])}.")
