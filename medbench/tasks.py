"""Which images a protocol trains on, validates on and tests on; pure numpy.

A *target* is what a cell is tested on: a dataset (or one site of it), with its classes, ways and
shots. Its *sources* are what may be meta-trained on for it. Here the rules are kept that make a
comparison fair: support from the train images and queries from the test images, no class, domain
or site on both sides, no patient on both sides of an episode.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.api import Dataset, Place, derive_seed
from medbench.episodes import Ints, Pool, Shape
from medbench.errors import (
    ContractError,
    DataMissing,
    MedbenchError,
    PluginError,
    ProtocolError,
    UsageError,
    did_you_mean,
)
from medbench.plugins import Entry, Registry, load_factory, resolve_params
from medbench.protocols import DatasetRef, Fractions, Protocol

TRAIN, VAL, TEST = 0, 1, 2
# Share of source images (or patients) kept for validation where the data bring no split.
_VALIDATION_SHARE = 0.2


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
    for what in ("splits", "sites", "patients"):
        array = getattr(dataset, what)
        if array is not None and len(array) != n:
            raise ContractError(f"{what} has {len(array)} entries for {n} images.")
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


@dataclass(frozen=True)
class SourceSet:
    """One dataset (or one site of it) that may be meta-trained on.

    ``train`` and ``val`` are pools of the same classes or of disjoint ones; ``classes`` are the
    dataset's class numbers of the train pool. ``train_shape`` is what the train pool can serve of
    the protocol's training shape.
    """

    opened: Opened
    site: str | None
    train: Pool
    val: Pool | None
    train_shape: Shape

    @property
    def id(self) -> str:
        """Dataset and site in one word."""
        return self.opened.name + (f"@{self.site}" if self.site else "")


@dataclass(frozen=True)
class Target:
    """What one cell is tested on, and what may be meta-trained on for it."""

    protocol: Protocol
    opened: Opened
    site: str | None
    shape: Shape
    pool: Pool
    sources: tuple[SourceSet, ...]

    @property
    def dataset_id(self) -> str:
        """Dataset and site, without way and shot."""
        return self.opened.name + (f"@{self.site}" if self.site else "")

    @property
    def id(self) -> str:
        """Dataset, site, way and shot: ``medmnist/retina:5w1s``."""
        return f"{self.dataset_id}:{self.shape.way}w{self.shape.shot}s"

    @property
    def episode_key(self) -> str:
        """The name of this target's episode sequence; it does not depend on the sources."""
        return f"{self.protocol.id}/{self.id}"


@dataclass(frozen=True)
class Resolved:
    """A protocol on the data of this machine: its targets, and what was left out and why."""

    protocol: Protocol
    datasets: tuple[Opened, ...]
    targets: tuple[Target, ...]
    left_out: tuple[str, ...]


def resolve(
    registry: Registry,
    protocol: Protocol,
    place: Place,
    *,
    non_commercial: bool = False,
    shots: Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
) -> Resolved:
    """Open the protocol's datasets and build its targets, in order.

    `shots` and `targets` select some of the protocol's. Raises `ProtocolError` when the data
    cannot serve the protocol, `DataError` when they are missing or wrong.
    """
    opened, left_out = _open_all(registry, protocol, place, non_commercial)
    if protocol.setting == "cross_domain" and len(opened) < 2:
        raise ProtocolError(
            f"protocol {protocol.name}: cross-domain training needs at least two datasets, and "
            f"{len(opened)} is here. Left out: {', '.join(left_out)}."
        )
    for shot in shots or ():
        if shot not in protocol.shots:
            raise UsageError(
                f"protocol {protocol.name} has no shot {shot}; it has "
                f"{', '.join(map(str, protocol.shots))}."
            )
    build = {
        "within_dataset": _within_dataset,
        "cross_domain": _cross_domain,
        "leave_one_site_out": _leave_one_site_out,
    }[protocol.setting]
    found: list[Target] = []
    wanted = targets if targets is not None else protocol.targets
    groups = build(protocol, opened)
    known = [g[0].name + (f"@{g[1]}" if g[1] else "") for g in groups]
    for target in wanted or ():
        if not any(_same(target, g) for g in groups):
            raise UsageError(
                f"protocol {protocol.name} has no target {target!r} here."
                f"{did_you_mean(target, known)}"
            )
    for group in groups:
        if wanted is not None and not any(_same(t, group) for t in wanted):
            continue
        opened_set, site, pool, sources = group
        way = pool.n_classes if protocol.way == "all" else protocol.way
        for shot in shots or protocol.shots:
            shape = Shape(way, shot, protocol.queries)
            trouble = pool.problem(shape, opened_set.dataset.info.label_names)
            if way < 2:
                trouble = f"there is {way} class with images, and a task needs two"
            if trouble:
                name = opened_set.name + (f"@{site}" if site else "")
                raise ProtocolError(
                    f"protocol {protocol.name}, target {name}: {trouble}. Use fewer shots or "
                    "queries, name other 'targets', or bring more images."
                )
            found.append(Target(protocol, opened_set, site, shape, pool, tuple(sources)))
    return Resolved(protocol, tuple(opened), tuple(found), tuple(left_out))


def _same(target: str, group: tuple[Opened, str | None, Pool, list[SourceSet]]) -> bool:
    opened, site = group[0], group[1]
    return target in (opened.name, site, f"{opened.name}@{site}")


def _open_all(
    registry: Registry, protocol: Protocol, place: Place, non_commercial: bool
) -> tuple[list[Opened], list[str]]:
    opened: list[Opened] = []
    left_out: list[str] = []
    for ref in protocol.datasets:
        try:
            one = open_dataset(registry, ref, place)
        except DataMissing:
            if not ref.optional:
                raise
            left_out.append(f"{ref.name} (not found)")
            continue
        info = one.dataset.info
        if info.non_commercial and not non_commercial:
            reason = (
                f"its licence ({info.licence}) allows no commercial use; set "
                "'non_commercial: true' in the suite if yours is not"
            )
            if not ref.optional:
                raise ProtocolError(f"protocol {protocol.name}: dataset {ref.name}: {reason}.")
            left_out.append(f"{ref.name} ({reason})")
            continue
        if info.task_kind != protocol.task_kind:
            raise ProtocolError(
                f"protocol {protocol.name} is for {protocol.task_kind}, and dataset {ref.name} is "
                f"{info.task_kind}."
            )
        if len(info.image_shape) != 3:
            raise ProtocolError(
                f"protocol {protocol.name}: the images of {ref.name} are "
                f"{'x'.join(map(str, info.image_shape))}, and its backbones take flat images "
                "(height, width, channels)."
            )
        opened.append(one)
    if not opened:
        raise DataMissing(
            f"protocol {protocol.name}: none of its datasets can be used: {', '.join(left_out)}. "
            "Set MEDBENCH_DATA to the folder that holds them, or get them with 'medbench data get'."
        )
    return opened, left_out


Group = tuple[Opened, str | None, Pool, list[SourceSet]]


def _within_dataset(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    groups: list[Group] = []
    for opened in datasets:
        train, val, test = _class_split(protocol, opened)
        everything = np.arange(len(opened.dataset.labels))
        source = _source(protocol, opened, None, everything, train, val)
        groups.append(
            (opened, None, _test_pool(opened, everything, test), [source] if source else [])
        )
        _require_source(protocol, groups[-1])
    return groups


def _cross_domain(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    every = {id(d): _all_classes(d) for d in datasets}
    sources = {
        id(d): _source(protocol, d, None, np.arange(len(d.dataset.labels)), every[id(d)], None)
        for d in datasets
    }
    groups: list[Group] = []
    for held_out in datasets:
        domain = held_out.dataset.info.domain
        kept = [
            source
            for d in datasets
            for source in [sources[id(d)]]
            if source is not None and d is not held_out and d.dataset.info.domain != domain
        ]
        everything = np.arange(len(held_out.dataset.labels))
        pool = _test_pool(held_out, everything, every[id(held_out)])
        groups.append((held_out, None, pool, kept))
        _require_source(protocol, groups[-1])
    return groups


def _leave_one_site_out(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    groups: list[Group] = []
    for opened in datasets:
        dataset = opened.dataset
        names = dataset.info.site_names
        if dataset.sites is None or len(names) < 2:
            raise ProtocolError(
                f"protocol {protocol.name} leaves one site out, and dataset {opened.name} names "
                f"{len(names)} sites; it needs at least two."
            )
        every = _all_classes(opened)
        by_site = [np.flatnonzero(dataset.sites == i) for i in range(len(names))]
        for i, site in enumerate(names):
            kept = [
                source
                for j, other in enumerate(names)
                if j != i
                for source in [_source(protocol, opened, other, by_site[j], every, None)]
                if source is not None
            ]
            groups.append((opened, site, _test_pool(opened, by_site[i], every), kept))
    if protocol.targets is None:
        for group in groups:
            _require_source(protocol, group)
    return groups


def _require_source(protocol: Protocol, group: Group) -> None:
    opened, site, _, sources = group
    if not sources:
        name = opened.name + (f"@{site}" if site else "")
        shape = protocol.train
        raise ProtocolError(
            f"protocol {protocol.name}, target {name}: nothing is left to meta-train on. A source "
            f"needs another domain than the target, two classes, and {shape.shot + shape.query} "
            f"images a class ({shape.shot} support, {shape.query} query)."
        )


def _class_split(protocol: Protocol, opened: Opened) -> tuple[list[int], list[int], list[int]]:
    wanted = protocol.class_split
    info = opened.dataset.info
    if isinstance(wanted, Fractions):
        total = wanted.train + wanted.val + wanted.test
        if total > len(info.label_names):
            raise ProtocolError(
                f"protocol {protocol.name}: class_split asks for {total} classes, and "
                f"{opened.name} has {len(info.label_names)}."
            )
        # Ordered by a hash of the class's name: the same classes whatever the file's order.
        order = sorted(
            range(len(info.label_names)),
            key=lambda c: derive_seed("class-split", wanted.seed, info.label_names[c]),
        )
        a, b = wanted.train, wanted.train + wanted.val
        return sorted(order[:a]), sorted(order[a:b]), sorted(order[b:total])
    assert wanted is not None
    if wanted not in info.class_splits:
        raise ProtocolError(
            f"protocol {protocol.name}: dataset {opened.name} has no class split {wanted!r}."
            f"{did_you_mean(wanted, info.class_splits)}"
        )
    split = info.class_splits[wanted]
    return list(split.train), list(split.val), list(split.test)


def _all_classes(opened: Opened) -> list[int]:
    return list(range(len(opened.dataset.info.label_names)))


def _test_pool(opened: Opened, among: Ints, classes: Sequence[int]) -> Pool:
    """Support from train images and queries from test images; from all, where none are told."""
    dataset = opened.dataset
    patients = dataset.patients
    if dataset.splits is None:
        filled = [(c, m) for c, m in _by_class(dataset, among, classes) if len(m)]
        return Pool([m for _, m in filled], None, patients, [c for c, _ in filled])
    support = _by_class(dataset, among[dataset.splits[among] == TRAIN], classes)
    query = _by_class(dataset, among[dataset.splits[among] == TEST], classes)
    kept = [(c, s, q) for (c, s), (_, q) in zip(support, query, strict=True) if len(s) or len(q)]
    return Pool([s for _, s, _ in kept], [q for _, _, q in kept], patients, [c for c, _, _ in kept])


def _source(
    protocol: Protocol,
    opened: Opened,
    site: str | None,
    among: Ints,
    classes: Sequence[int],
    val_classes: Sequence[int] | None,
) -> SourceSet | None:
    """A source set, or None when too little is left for tasks of the training shape.

    With `val_classes` validation tasks come from other classes; otherwise from the same classes,
    with support from train images and queries from val images.
    """
    dataset, shape = opened.dataset, protocol.train
    if dataset.splits is not None:
        train_side = among[dataset.splits[among] == TRAIN]
        val_side = among[dataset.splits[among] == VAL]
    elif val_classes:
        train_side = val_side = among
    else:
        held = _held_out(dataset, among)
        train_side, val_side = among[~held], among[held]
    need = shape.shot + shape.query
    filled = [(c, m) for c, m in _by_class(dataset, train_side, classes) if len(m) >= need]
    if len(filled) < 2:
        return None
    train_pool = Pool([m for _, m in filled], None, dataset.patients, [c for c, _ in filled])
    train_shape = Shape(min(shape.way, len(filled)), shape.shot, shape.query)
    if train_pool.problem(train_shape):
        return None
    val_pool = _validation(dataset, train_side, val_side, filled, val_classes, shape)
    return SourceSet(opened, site, train_pool, val_pool, train_shape)


def _validation(
    dataset: Dataset,
    train_side: Ints,
    val_side: Ints,
    filled: list[tuple[int, Ints]],
    val_classes: Sequence[int] | None,
    shape: Any,
) -> Pool | None:
    if val_classes:
        both = train_side if dataset.splits is None else np.union1d(train_side, val_side)
        pairs = [
            (c, m)
            for c, m in _by_class(dataset, both, val_classes)
            if len(m) >= shape.shot + shape.query
        ]
        pool = Pool([m for _, m in pairs], None, dataset.patients, [c for c, _ in pairs])
    else:
        asked = dict(_by_class(dataset, val_side, [c for c, _ in filled]))
        pairs = [(c, m) for c, m in filled if len(asked[c])]
        pool = Pool(
            [m for _, m in pairs],
            [asked[c] for c, _ in pairs],
            dataset.patients,
            [c for c, _ in pairs],
        )
    return pool if pool.fit(Shape(shape.way, shape.shot, shape.query)) else None


def _held_out(dataset: Dataset, among: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A fifth of the images for validation, whole patients together, chosen by hash."""
    group = among if dataset.patients is None else dataset.patients[among]
    threshold = int(_VALIDATION_SHARE * 2**63)
    share = {int(g): derive_seed("validation", int(g)) < threshold for g in np.unique(group)}
    return np.array([share[int(g)] for g in group], dtype=bool)


def _by_class(dataset: Dataset, among: Ints, classes: Sequence[int]) -> list[tuple[int, Ints]]:
    """The images of each class, ascending, from one sort rather than a scan a class."""
    labels = dataset.labels[among]
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.searchsorted(ranked, classes, side="left")
    ends = np.searchsorted(ranked, classes, side="right")
    return [
        (int(c), np.sort(among[order[a:b]]).astype(np.int64))
        for c, a, b in zip(classes, starts, ends, strict=True)
    ]
