"""Which classes of its source a cell is tested on, for methods with the trait ``knows_classes``."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from medbench.bench import Bench
from medbench.errors import DataError, Unavailable
from medbench.jobs import Folders, Job


def require_source_classes(bench: Bench) -> None:
    """Raise `Unavailable` where a protocol tests on other classes than it trains on."""
    protocol = bench.target.protocol
    if not protocol.tests_source_classes:
        raise Unavailable(
            f"{bench.entry.name} asks which of its source's classes it is tested on, and protocol "
            f"{protocol.name} ({protocol.setting}) tests on others. Protocols of settings "
            "leave_one_site_out and personalised test on classes of their sources."
        )


def source_classes(job: Job, folders: Folders, bench: Bench) -> NDArray[np.int64]:
    """Of the target's data set, by class: its number in what the cell's training saw.

    Raises `Unavailable` when a class that is asked about was in no source, `DataError` for a
    training of an earlier medbench, which did not keep this.
    """
    opened, name = bench.target.opened, bench.entry.name
    if job.training_key is None:
        raise Unavailable(
            f"{name} asks which of its source's classes it is tested on, and has no training: "
            "declare the trait meta_trains beside knows_classes."
        )
    path = folders.out / "trainings" / job.training_key / "training.json"
    record = json.loads(path.read_text())
    if "classes" not in record:
        raise DataError(
            f"Training {job.training_key[:12]} is of an earlier medbench, which did not keep its "
            f"classes, and {name} asks for them. Run the suite into a new folder."
        )
    names = opened.dataset.info.label_names
    found = np.full(len(names), -1, np.int64)
    for number, (dataset, c) in enumerate(record["classes"]):
        if dataset == opened.name:
            found[c] = number
    unseen = [names[c] for c in bench.target.pool.classes.tolist() if found[c] < 0]
    if unseen:
        raise Unavailable(
            f"{name} answers with classes of its sources, and none of these has (enough images of) "
            f"{', '.join(map(repr, unseen))} of {bench.target.dataset_id}."
        )
    return found
