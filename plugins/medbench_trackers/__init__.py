"""Tells experiment trackers of every record, where ``MEDBENCH_TRACK`` asks for it; else nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from medbench.api import hookimpl

VARIABLE = "MEDBENCH_TRACK"


@hookimpl
def medbench_on_record(record: Mapping[str, Any]) -> None:
    """Log a record with each tracker that the variable names, one run a cell.

    ``MEDBENCH_TRACK=tensorboard:runs/tb,mlflow:runs/mlflow,wandb:runs/wandb``: trackers and the
    folders that they write to. Raises `ValueError` for another name, `ImportError` when a tracker
    is not installed; medbench reports either and goes on.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return
    from medbench_trackers.cells import cell_of
    from medbench_trackers.writers import WRITERS

    cell = cell_of(record)
    for word in text.split(","):
        name, _, folder = word.strip().partition(":")
        if name not in WRITERS or not folder:
            raise ValueError(
                f"{VARIABLE} has {word.strip()!r}, and NAME:FOLDER was expected, with a name of "
                f"{', '.join(WRITERS)}."
            )
        WRITERS[name](cell, folder)
