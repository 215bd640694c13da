"""Which patients a personalised protocol trains on, validates on and tests on; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed
from medbench.draws import Ints
from medbench.episodes import Shape
from medbench.errors import ProtocolError
from medbench.opened import Opened
from medbench.patient_pool import PatientPool
from medbench.pools import TEST, TRAIN, VAL, SourceSet, by_class, held_out
from medbench.protocols import TARGETED, Protocol

# Share of patients that are tested where the data bring no split of patients.
_TEST_SHARE = 0.4


def patients_apart(protocol: Protocol, opened: Opened) -> tuple[Ints, Ints, Ints]:
    """Images of the patients for meta-training, validation and test; no patient is in two.

    By the data's image splits where these keep patients apart, else by a hash of the patient.
    Raises `ProtocolError` where patients are not known.
    """
    dataset = opened.dataset
    if dataset.patients is None:
        raise ProtocolError(
            f"protocol {protocol.name} is personalised, and dataset {opened.name} does not say "
            "which patient an image is of. Tell its patient column, or name other data."
        )
    everything = np.arange(len(dataset.labels))
    if dataset.splits is not None and _apart(dataset.splits, dataset.patients):
        sides = [np.flatnonzero(dataset.splits == side) for side in (TRAIN, VAL, TEST)]
        if len(sides[0]) and len(sides[2]):
            if not len(sides[1]):
                val = held_out(dataset, sides[0])
                sides[:2] = sides[0][~val], sides[0][val]
            return sides[0], sides[1], sides[2]
    limit = int(_TEST_SHARE * 2**63)
    known = np.unique(dataset.patients)
    tested = known[[derive_seed("personalised", int(p)) < limit for p in known]]
    test = np.isin(dataset.patients, tested)
    rest = everything[~test]
    val = held_out(dataset, rest)
    return rest[~val], rest[val], everything[test]


def _apart(splits: NDArray[np.uint8], patients: Ints) -> bool:
    """Whether every patient's images are in one split."""
    pairs = np.unique(np.stack([patients, splits.astype(np.int64)]), axis=1)
    return bool(len(np.unique(patients)) == pairs.shape[1])


def patient_pool(protocol: Protocol, opened: Opened, among: Ints) -> PatientPool:
    """Episodes within one patient each, of the images in `among`."""
    dataset = opened.dataset
    assert dataset.patients is not None
    classes: Sequence[int] = range(len(dataset.info.label_names))
    if protocol.task_kind in TARGETED:
        # Of one class a task, so that an image may be drawn by any class that it shows.
        members = [(c, among[dataset.labels[among, c] == 1].astype(np.int64)) for c in classes]
    else:
        members = by_class(dataset, among, classes)
    filled = [(c, m) for c, m in members if len(m)]
    return PatientPool(
        [m for _, m in filled],
        dataset.patients,
        [c for c, _ in filled],
        dataset.times,
        protocol.support_from,
    )


def tested_patients(protocol: Protocol, opened: Opened) -> PatientPool:
    """What the episodes of a target are drawn from."""
    return patient_pool(protocol, opened, patients_apart(protocol, opened)[2])


def other_patients(protocol: Protocol, opened: Opened) -> SourceSet:
    """What may be meta-trained on: tasks of one patient each, none of whom is tested.

    Raises `ProtocolError`, with the counts seen, when they can serve no training task.
    """
    train, val, _ = patients_apart(protocol, opened)
    pool, wanted = patient_pool(protocol, opened, train), protocol.train
    shape = Shape(min(wanted.way, pool.n_classes), wanted.shot, wanted.query)
    trouble = pool.problem(shape, opened.dataset.info.label_names)
    if trouble:
        raise ProtocolError(
            f"protocol {protocol.name}, dataset {opened.name}: nothing is left to meta-train on. "
            f"Training tasks are of one patient each, too: {trouble}. Set a smaller 'train' shape."
        )
    judged = patient_pool(protocol, opened, val)
    serves = judged.fit(shape, min(2, shape.way)) is not None
    return SourceSet(opened, None, pool, judged if serves else None, shape)
