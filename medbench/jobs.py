"""Jobs as plain data, where a run keeps their files, and the record of one that failed.

Needs no torch: the coordinating process writes the records of jobs whose process died.
"""

from __future__ import annotations

import datetime
import heapq
import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.briefs import Brief, read_brief
from medbench.errors import DataError
from medbench.files import file_digest, write_json
from medbench.records import SCHEMA, write_record
from medbench.shelf import Shelf, spread

# Told in place of a fraction done: a new stage began; the job waits for its turn, and its time
# limit with it.
STAGE_BEGAN, WAITING = -1.0, -2.0


@dataclass(frozen=True, slots=True)
class Job:
    """A training or a cell, as plain data that another process can be given.

    ``ingredients`` is what ``key`` is the hash of: what a stale record is compared with.
    """

    kind: str
    key: str
    title: str
    slug: str
    ingredients: Mapping[str, Any]
    training_key: str | None
    request: Mapping[str, Any]

    @property
    def file_stem(self) -> str:
        """The name of this job's files: readable, and unique through its key."""
        return f"{self.slug}-{self.key[:12]}"


@dataclass(frozen=True)
class Manner:
    """How a job is run, as plain data: nothing here changes its scores beyond rounding.

    ``processes`` share a training whose method can, each with ``threads`` or a GPU.
    ``gpu`` is what ``CUDA_VISIBLE_DEVICES`` shall be, None to leave it. ``quiet`` is the folder of
    the locks that keep the device quiet for cost lanes (`medbench.quiet`). ``earlier`` tells of
    tries of the same job before this one.
    """

    threads: int = 1
    processes: int = 1
    gpu: str | None = None
    quiet: str | None = None
    exclusive: bool = True
    episodes_per_block: int | None = None
    earlier: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Folders:
    """Where a run keeps its files."""

    out: Path

    def record(self, job: Job) -> Path:
        """The JSON file of a cell's record."""
        return self.out / "records" / f"{job.file_stem}.json"

    def training(self, job: Job) -> Path:
        """The folder of a training."""
        return self.out / "trainings" / job.key

    def stamp(self, job: Job) -> tuple[int, int]:
        """What changes when the record of a cell or training is written: file and time.

        Tells a try's own record from one that an earlier try left.
        """
        path = self.training(job) / "training.json" if job.kind == "training" else self.record(job)
        try:
            found = path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def log(self, job: Job) -> Path:
        """The file with what a job printed."""
        return self.out / "logs" / f"{job.file_stem}.log"

    @property
    def features(self) -> Path:
        """The feature cache."""
        return self.out / "cache" / "features"


def write_failure(
    job: Job,
    folders: Folders,
    status: str,
    stage: str,
    message: str,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Leave the record of a job that failed, after `earlier` tries. Raises `OutputError`."""
    tail = log_tail(folders.log(job))
    created = now()
    tries = {"earlier_tries": list(earlier)} if earlier else {}
    if job.kind == "training":
        write_json(
            folders.training(job) / "training.json",
            {
                "key": job.key,
                "title": job.title,
                "status": status,
                "stage": stage,
                "error": message,
                "log_tail": tail,
                "ingredients": job.ingredients,
                "created": created,
                **tries,
            },
        )
        return
    write_record(
        folders.record(job),
        {
            **header(job),
            "status": status,
            "stage": stage,
            "error": message,
            "log_tail": tail,
            "created": created,
            **tries,
        },
    )


def log_tail(path: Path, lines: int = 20, limit: int = 4000) -> list[str]:
    """The last lines of a log, without the folders of this machine."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    for folder in (str(Path.cwd()), str(Path.home())):
        text = text.replace(folder + os.sep, "")
    return [line[:300] for line in text.splitlines()[-lines:]]


def header(job: Job) -> dict[str, Any]:
    """What every record of a cell tells, measured or not."""
    request = job.request
    target = job.ingredients["target"]
    protocol, _, version = str(target["protocol"]).rpartition("-v")
    dataset, _, site = str(request["target_dataset"]).partition("@")
    algorithm, backbone = request["algorithm"], request["backbone"]
    way = int(str(target["id"]).rpartition(":")[2].partition("w")[0])
    return {
        "schema": SCHEMA,
        "key": job.key,
        "cell": {
            "suite": request["suite"],
            "protocol": protocol,
            "protocol_version": int(version),
            "target": target["id"],
            "dataset": dataset,
            "site": site or None,
            **({"inputs": request["inputs"]} if "inputs" in request else {}),
            "way": way,
            "shot": request["shot"],
            "backbone": backbone["name"],
            "backbone_label": backbone["label"] or backbone["name"],
            "weights": "file" if "/" in backbone["weights"] else backbone["weights"],
            "algorithm": algorithm["name"],
            "algorithm_label": algorithm["label"] or algorithm["name"],
            "seed": request["seed"],
            "sources": request["sources"],
            "budget_images": request["budget_images"] if job.training_key else None,
        },
        "request": {**request, "backbone": {**backbone, "weights": Path(backbone["weights"]).name}},
        "ingredients": job.ingredients,
        "training_key": job.training_key,
    }


def now() -> str:
    """The time in UTC, to the microsecond, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def training_state(folders: Folders, job: Job, *, verify: bool = False) -> tuple[str, str]:
    """Status and error of a training: ``missing``, ``ok``, or why it failed.

    One whose weights are gone or cut short counts as missing; with `verify` all their bytes are
    read, and one whose weights are others than it recorded too.
    """
    folder = folders.training(job)
    try:
        data = json.loads((folder / "training.json").read_text())
        status = str(data["status"])
    except (OSError, ValueError, KeyError):
        return "missing", ""
    if status == "ok" and not _whole(folder / "learned.safetensors", data, verify):
        return "missing", ""
    return status, str(data.get("error", ""))


def _whole(path: Path, training: Mapping[str, Any], verify: bool) -> bool:
    try:
        size = path.stat().st_size
        # Trainings before there was a digest are believed.
        if "learned_bytes" in training and size != training["learned_bytes"]:
            return False
        known = training.get("learned_digest")
        return not verify or known is None or file_digest(path) == known
    except OSError:
        return False


def cell_state(folders: Folders, job: Job) -> str:
    """Status of a cell: ``missing``, or its record's. A damaged record counts as missing.

    For one cell now; `cell_states` is for many.
    """
    try:
        brief = read_brief(folders.record(job))
        if brief.key != job.key:
            return "missing"
        if brief.ok:
            brief.verify()
    except DataError:
        return "missing"
    return brief.own.status


def cell_states(shelf: Shelf, jobs: Sequence[Job]) -> list[tuple[str, Brief | None]]:
    """What `cell_state` says of each cell of the run that `shelf` is of, and its record in brief.

    Scores that were not checked before are read to check them. There is no brief of a missing
    cell.
    """
    briefs = [shelf.briefs.get(f"{job.file_stem}.json") for job in jobs]
    found = [b if b and b.key == j.key else None for b, j in zip(briefs, jobs, strict=True)]
    unsure = [b for b in found if b and b.ok and not b.verified]
    bad = {id(b) for b, good in zip(unsure, spread(_sound, unsure), strict=True) if not good}
    return [("missing", None) if b is None or id(b) in bad else (b.own.status, b) for b in found]


def _sound(brief: Brief) -> bool:
    try:
        brief.verify()
    except DataError:
        return False
    return True


class Waiting:
    """Jobs that wait for their turn: trainings first, then cells in order whose training is done.

    However many jobs there are, taking one out takes the same time.
    """

    def __init__(self, trainings: Iterable[Job], cells: Iterable[Job]) -> None:
        self._trainings = deque(trainings)
        self._cells = dict(enumerate(cells))
        # Places of cells in the plan: a heap of those that may run, and lists of the others.
        self._ready: list[int] = []
        self._held: dict[str, list[int]] = {}
        for place, job in self._cells.items():
            if job.training_key is None:
                self._ready.append(place)
            else:
                self._held.setdefault(job.training_key, []).append(place)

    def __len__(self) -> int:
        return len(self._trainings) + len(self._cells)

    def take(self) -> Job | None:
        """The next job to run; None when all that are left wait for a training that runs."""
        if self._trainings:
            return self._trainings.popleft()
        return self._cells.pop(heapq.heappop(self._ready)) if self._ready else None

    def release(self, training_key: str) -> None:
        """Let the cells of a training that went well run."""
        for place in self._held.pop(training_key, ()):
            heapq.heappush(self._ready, place)

    def drop(self, training_key: str) -> list[Job]:
        """Take out the cells of a training that failed, and return them."""
        return [self._cells.pop(place) for place in self._held.pop(training_key, ())]
