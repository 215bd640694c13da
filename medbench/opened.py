"""Datasets in use: found, opened, and held to the promises that everything builds on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.api import Dataset, Place
from medbench.errors import ContractError, MedbenchError, PluginError, UsageError
from medbench.modalities import Chosen, wrongly_declared
from medbench.plugins import Entry, Registry, load_factory, resolve_params
from medbench.protocols import DatasetRef


def default_place() -> Place:
    """The data folder of ``MEDBENCH_DATA`` and the cache of ``MEDBENCH_CACHE``.

    Raises `UsageError` when ``MEDBENCH_DATA`` is not a folder.
    """
    data = os.environ.get("MEDBENCH_DATA")
    cache = os.environ.get("MEDBENCH_CACHE")
    if data and not Path(data).expanduser().is_dir():
        raise UsageError(f"MEDBENCH_DATA is {data!r}, and that is not a folder.")
    return Place(
        data=Path(data).expanduser().resolve() if data else None,
        cache=Path(cache).expanduser() if cache else Path.home() / ".cache" / "medbench",
    )


@dataclass(frozen=True)
class Opened:
    """A dataset in use: the reference, where it came from, and the images."""

    ref: DatasetRef
    entry: Entry
    params: Mapping[str, Any]
    dataset: Dataset

    @property
    def name(self) -> str:
        """The dataset's name in tables."""
        return self.ref.name

    @property
    def digest(self) -> str:
        """Of all there is, also where some of its modalities alone are shown."""
        dataset = self.dataset
        return dataset.whole.digest if isinstance(dataset, Chosen) else dataset.digest


def open_dataset(registry: Registry, ref: DatasetRef, place: Place) -> Opened:
    """The dataset behind a reference.

    Raises `UsageError` for wrong names or parameters, `DataError` for what is wrong with the
    data, `PluginError` when the plugin itself fails.
    """
    entry = registry.get("datasets", ref.name)
    params = resolve_params(entry, ref.params)
    factory = load_factory(entry)
    extra = {"argument": ref.name.partition(":")[2]} if entry.spec.takes_argument else {}
    try:
        dataset = factory(place, **extra, **params)
        _check_dataset(dataset)
    except MedbenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"dataset {ref.name!r} of {entry.origin()} failed to open: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Opened(ref, entry, params, dataset)


def _check_dataset(dataset: Dataset) -> None:
    """The promises that everything here builds on. Raises `ContractError`."""
    n = len(dataset.labels)
    for what in ("splits", "sites", "patients", "spacings", "times"):
        array = getattr(dataset, what)
        if array is not None and len(array) != n:
            raise ContractError(f"{what} has {len(array)} entries for {n} images.")
    wrong = wrongly_declared(dataset.info)
    if wrong:
        raise ContractError(wrong)
    if dataset.times is not None:
        if dataset.patients is None:
            raise ContractError("times order the images of a patient, and patients is None.")
        if np.isinf(dataset.times).any():
            raise ContractError("times must be numbers, NaN where an image's is not known.")
    if dataset.info.task_kind != "classification":
        wanted = (n, len(dataset.info.label_names))
        if dataset.labels.shape != wanted or not np.isin(dataset.labels, (0, 1)).all():
            raise ContractError(
                f"labels of a {dataset.info.task_kind} dataset must be {wanted} of 0 and 1, and "
                f"are {dataset.labels.shape} {dataset.labels.dtype}."
            )
    if dataset.info.task_kind == "classification":
        if dataset.labels.ndim != 1 or dataset.labels.dtype.kind not in "iu":
            raise ContractError(
                f"labels must be (n,) integers, and are {dataset.labels.shape} "
                f"{dataset.labels.dtype}."
            )
        if n and (
            dataset.labels.min() < 0 or dataset.labels.max() >= len(dataset.info.label_names)
        ):
            raise ContractError(
                f"labels run from {dataset.labels.min()} to {dataset.labels.max()}, and there are "
                f"{len(dataset.info.label_names)} label names."
            )
