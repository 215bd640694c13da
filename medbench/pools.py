"""Which images of an opened dataset may serve which side of an episode; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medbench.api import Dataset, derive_seed
from medbench.draws import Ints
from medbench.episodes import Pool, Shape
from medbench.opened import Opened
from medbench.protocols import TARGETED, Protocol

TRAIN, VAL, TEST = 0, 1, 2
NO_LABEL = "no label"
# Share of source images (or patients) kept for validation where the data bring no split.
_VALIDATION_SHARE = 0.2


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


def all_classes(opened: Opened) -> list[int]:
    """Numbers of all classes, or of all groups that a multilabel dataset is drawn by."""
    n = len(opened.dataset.info.label_names)
    return list(range(n + (opened.dataset.info.task_kind == "multilabel")))


def least_classes(protocol: Protocol) -> int:
    """How many classes make a task: a mask or a box has a background to be told from."""
    return 1 if protocol.task_kind in TARGETED else 2


def unreachable(opened: Opened, pool: Pool) -> str | None:
    """Why a task cannot promise each of the labels that images may share; None when it can."""
    info = opened.dataset.info
    if info.task_kind == "classification":
        return None
    missing = sorted(set(range(len(info.label_names))) - set(pool.classes.tolist()))
    if not missing:
        return None
    names = ", ".join(repr(info.label_names[i]) for i in missing)
    return f"no images are left to draw {names} by; every label needs images of its own"


def groups(dataset: Dataset) -> Ints:
    """What episodes are drawn by, ``(n,)``: the class, or one of the labels that an image has.

    Images with one label are drawn by it, those without any form a group of their own, and one
    with several joins the smallest group of its labels so far, in the dataset's order. Groups are
    disjoint, so an episode holds no image twice, and scarce labels get the images they have.
    """
    labels = dataset.labels
    if labels.ndim == 1:
        found: Ints = labels
        return found
    n_labels = labels.shape[1]
    n_own = labels.sum(axis=1, dtype=np.int64)
    groups: Ints = np.where(n_own == 0, n_labels, labels.argmax(axis=1)).astype(np.int64)
    sizes = np.bincount(groups[n_own == 1], minlength=n_labels).tolist()
    for image in np.flatnonzero(n_own > 1):
        own = np.flatnonzero(labels[image]).tolist()
        smallest = min(own, key=sizes.__getitem__)
        groups[image] = smallest
        sizes[smallest] += 1
    return groups


def test_pool(opened: Opened, among: Ints, classes: Sequence[int]) -> Pool:
    """Support from train images and queries from test images; from all, where none are told."""
    dataset = opened.dataset
    patients = dataset.patients
    if dataset.splits is None:
        filled = [(c, m) for c, m in by_class(dataset, among, classes) if len(m)]
        return Pool([m for _, m in filled], None, patients, [c for c, _ in filled])
    support = by_class(dataset, among[dataset.splits[among] == TRAIN], classes)
    query = by_class(dataset, among[dataset.splits[among] == TEST], classes)
    kept = [(c, s, q) for (c, s), (_, q) in zip(support, query, strict=True) if len(s) or len(q)]
    return Pool([s for _, s, _ in kept], [q for _, _, q in kept], patients, [c for c, _, _ in kept])


def source_set(
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
    least = least_classes(protocol)
    if dataset.splits is not None:
        train_side = among[dataset.splits[among] == TRAIN]
        val_side = among[dataset.splits[among] == VAL]
        if not len(val_side) and not val_classes and protocol.task_kind in TARGETED:
            held = held_out(dataset, train_side)
            train_side, val_side = train_side[~held], train_side[held]
    elif val_classes:
        train_side = val_side = among
    else:
        held = held_out(dataset, among)
        train_side, val_side = among[~held], among[held]
    need = shape.shot + shape.query
    filled = [(c, m) for c, m in by_class(dataset, train_side, classes) if len(m) >= need]
    if len(filled) < least:
        return None
    train_pool = Pool([m for _, m in filled], None, dataset.patients, [c for c, _ in filled])
    train_shape = Shape(min(shape.way, len(filled)), shape.shot, shape.query)
    if train_pool.problem(train_shape):
        return None
    val_pool = _validation(dataset, train_side, val_side, filled, val_classes, shape, least)
    return SourceSet(opened, site, train_pool, val_pool, train_shape)


def _validation(
    dataset: Dataset,
    train_side: Ints,
    val_side: Ints,
    filled: list[tuple[int, Ints]],
    val_classes: Sequence[int] | None,
    shape: Any,
    least: int,
) -> Pool | None:
    if val_classes:
        both = train_side if dataset.splits is None else np.union1d(train_side, val_side)
        pairs = [
            (c, m)
            for c, m in by_class(dataset, both, val_classes)
            if len(m) >= shape.shot + shape.query
        ]
        pool = Pool([m for _, m in pairs], None, dataset.patients, [c for c, _ in pairs])
    else:
        asked = dict(by_class(dataset, val_side, [c for c, _ in filled]))
        pairs = [(c, m) for c, m in filled if len(asked[c])]
        pool = Pool(
            [m for _, m in pairs],
            [asked[c] for c, _ in pairs],
            dataset.patients,
            [c for c, _ in pairs],
        )
    return pool if pool.fit(Shape(shape.way, shape.shot, shape.query), least) else None


def held_out(dataset: Dataset, among: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A fifth of the images for validation, whole patients together, chosen by hash."""
    group = among if dataset.patients is None else dataset.patients[among]
    threshold = int(_VALIDATION_SHARE * 2**63)
    share = {int(g): derive_seed("validation", int(g)) < threshold for g in np.unique(group)}
    return np.array([share[int(g)] for g in group], dtype=bool)


def by_class(dataset: Dataset, among: Ints, classes: Sequence[int]) -> list[tuple[int, Ints]]:
    """The images of each class, ascending, from one sort rather than a scan a class."""
    labels = groups(dataset)[among]
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.searchsorted(ranked, classes, side="left")
    ends = np.searchsorted(ranked, classes, side="right")
    return [
        (int(c), np.sort(among[order[a:b]]).astype(np.int64))
        for c, a, b in zip(classes, starts, ends, strict=True)
    ]
