"""The 18 MedMNIST sets in all published sizes: ``medmnist/NAME``.

Each set NAME has two functions here, ``open_NAME`` and ``fetch_NAME``, named by its spec. Files
are looked for as ``medmnist/FLAG[_SIZE].npz`` and ``FLAG[_SIZE].npz`` below the data folder.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medbench.api import DataError, DataMissing, DatasetInfo, Place, Unavailable
from medbench_datasets._download import download
from medbench_datasets._layout import NpzDataset, read_contents
from medbench_datasets._medmnist_facts import MEDMNIST, Facts
from medbench_datasets._npz import NpzFile
from medbench_datasets._store import file_digest

MIRROR = "MEDBENCH_MEDMNIST_URL"
"""Environment variable: a base address that serves ``FLAG[_SIZE].npz`` in Zenodo's place."""


def __getattr__(name: str) -> Callable[..., Any]:
    verb, _, set_name = name.partition("_")
    if set_name in MEDMNIST and verb == "open":
        return functools.partial(open_set, set_name)
    if set_name in MEDMNIST and verb == "fetch":
        return functools.partial(fetch_set, set_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """``medmnist.INFO``: addresses, MD5 and label names, from the installed medmnist package.

    Read from its source as a literal: ``import medmnist`` would import torch and torchvision, and
    even its ``info.py`` makes a folder in the user's home when it is run.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            "The package medmnist is not installed; it says what MedMNIST files are. "
            "Install it: pip install 'medmnist>=3.0.2'."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "info.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "INFO" for target in node.targets
        ):
            found: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
            return found
    raise Unavailable(
        f"{path} has no table INFO: this version of medmnist is not understood. "
        "Install one that is: pip install 'medmnist==3.0.2'."
    )


def open_set(set_name: str, place: Place, *, size: int = 28) -> NpzDataset:
    """One MedMNIST set, once the MD5 of the file on disk is the published one.

    Raises `DataMissing` when the file is not there, `DataError` when it was truncated or altered.
    """
    facts = MEDMNIST[set_name]
    file_name, known = _published(facts, size)
    path = place.find(
        f"medmnist/{file_name}",
        file_name,
        hint=f"Get it with: medbench data get medmnist/{set_name}{_size_option(size)}",
    )
    expected = known["md5"]
    actual = file_digest(path, place.cache).md5
    if actual != expected:
        raise DataError(
            f"{path} has MD5 {actual} ({path.stat().st_size} bytes); the published file has "
            f"{expected}. It was truncated or altered: delete it and run "
            f"medbench data get medmnist/{set_name}{_size_option(size)}, or read a file of your "
            f"own as npz:{file_name}."
        )
    label_names = known["labels"]
    contents = read_contents(
        NpzFile(path, place.cache), n_dims=facts.n_dims, n_classes=len(label_names)
    )
    info = DatasetInfo(
        name=f"medmnist/{set_name}",
        label_names=label_names,
        image_shape=contents.image_shape,
        domain=facts.domain,
        modality=facts.modality,
        licence=facts.licence,
        task_kind=facts.task_kind,
        ordinal=facts.ordinal,
        non_commercial=facts.non_commercial,
        site_names=contents.site_names,
    )
    return NpzDataset(info, contents, path, place.cache)


def fetch_set(set_name: str, place: Place, *, size: int = 28) -> list[Path]:
    """Download one set from Zenodo, or the mirror in MEDBENCH_MEDMNIST_URL; check its MD5.

    A whole file that is already there is left alone; a damaged one is replaced.
    """
    if place.data is None:
        raise DataMissing(
            "MEDBENCH_DATA is not set: set it to the folder in which data are to be kept."
        )
    file_name, known = _published(MEDMNIST[set_name], size)
    target = place.data / "medmnist" / file_name
    if target.exists() and file_digest(target, place.cache).md5 == known["md5"]:
        return [target]
    mirror = os.environ.get(MIRROR)
    url = f"{mirror.rstrip('/')}/{file_name}" if mirror else known["url"]
    return [download(url, target, md5=known["md5"])]


def _published(facts: Facts, size: int) -> tuple[str, dict[str, Any]]:
    """File name, and the address, MD5 and label names published for this size."""
    if size not in facts.sizes:
        raise DataError(
            f"size={size} is not published for {facts.flag}; expected one of "
            f"{', '.join(map(str, facts.sizes))}."
        )
    suffix = "" if size == 28 else f"_{size}"
    known = published().get(facts.flag)
    if known is None or f"MD5{suffix}" not in known:
        raise Unavailable(
            f"The installed medmnist package does not know {facts.flag} in size {size}. "
            "Upgrade it: pip install 'medmnist>=3.0.2'."
        )
    labels = known["label"]
    return f"{facts.flag}{suffix}.npz", {
        "md5": str(known[f"MD5{suffix}"]),
        "url": str(known[f"url{suffix}"]),
        "labels": tuple(str(labels[str(k)]) for k in range(len(labels))),
    }


def _size_option(size: int) -> str:
    return "" if size == 28 else f" --param size={size}"
