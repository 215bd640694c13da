"""Runs one attempt in a folder of the node's own, between what it fetches and what it leaves.

The folder is laid out like the run's. What a job needs comes from the run's storage; its record
goes there last, after all that the record speaks of. A long training leaves checkpoints on the way,
so that another node can go on with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from medbench.engine.alone import Alone, Result, Terms
from medbench.engine.executor import Attempt, Told
from medbench.engine.store import Store
from medbench.errors import MedbenchError, OutputError
from medbench.files import locked
from medbench.jobs import Folders, Job
from medbench.records import GROUPS, PICTURE

_LOOK_EVERY_S = 5.0
_CHECKPOINT = "checkpoint.safetensors"
_LEARNED = "learned.safetensors"
_TRAINED = "training.json"


def run_name(out: Path, store: Store) -> str:
    """What a run is called on machines that may not see its folder."""
    text = f"{out.resolve()}|{store.url}|{os.uname().nodename}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Spot:
    """Where a run works on one node; `node` tells nodes apart that are one machine."""

    run: str
    node: str

    @property
    def home(self) -> Path:
        """Of the run, on this machine."""
        return Path(tempfile.gettempdir()) / f"medbench-{os.getuid()}" / self.run

    @property
    def quiet(self) -> Path:
        """The locks that keep this machine's devices quiet, whichever node asks."""
        return self.home / "quiet"

    @property
    def work(self) -> Path:
        """The folder that jobs take for the run's."""
        return self.home / f"work-{self.node}"

    def clear(self, alive: Collection[str]) -> None:
        """Remove what jobs left here, and what nodes left that are no more among `alive`."""
        for folder in self.home.glob("work-*"):
            node = folder.name.removeprefix("work-")
            if node == self.node or node not in alive:
                shutil.rmtree(folder, ignore_errors=True)


def recorded_files(job: Job) -> list[str]:
    """Names of the files that a job that went well may leave; who has the last has all.

    Cells whose answers are not counted by group leave no file of groups, and those whose answers
    have no place in an image no picture.
    """
    if job.kind == "training":
        return [f"trainings/{job.key}/{name}" for name in (_LEARNED, _TRAINED)]
    return [f"records/{job.file_stem}{ending}" for ending in (".parquet", GROUPS, PICTURE, ".json")]


def log_file(job: Job) -> str:
    """Name of a job's log."""
    return f"logs/{job.file_stem}.log"


def run_in_scratch(
    attempt: Attempt, terms: Terms, store: Store, spot: Spot, marker: str
) -> Iterator[Told | Result]:
    """Run `attempt`, telling how far it is; the last thing told is how it ended.

    `marker` is a file that the store must have.
    """
    job, began, host = attempt.job, time.monotonic(), os.uname().nodename
    try:
        if store.read(marker) is None:
            yield Result(host, trouble=unseen(host, store))
            return
        with locked(spot.work / "locks" / f"{job.file_stem}.lock", wait=True):
            _fetch(job, store, spot.work)
            result = Result(host)
            with _checkpoints(job, store, spot.work):
                alone = Alone(spot.work, terms, spot.quiet)
                for news in alone.run(attempt):
                    if isinstance(news, Result):
                        result = news
                    else:
                        yield news
            if result.output_trouble:
                raise OutputError(result.output_trouble)
            _leave(job, store, spot.work, complete=result.lost is None)
    except MedbenchError as error:
        yield Result(host, time.monotonic() - began, trouble=f"On {host}: {error}")
        return
    yield result


def unseen(host: str, store: Store) -> str:
    """What to say of a machine that does not see the run's storage."""
    return (
        f"{host} does not see {store.url}, or sees another folder of that name. It must be on "
        "storage that all nodes share: choose another --out, or give one with --store, such as "
        "s3://BUCKET/FOLDER."
    )


def _fetch(job: Job, store: Store, work: Path) -> None:
    folders = Folders(work)
    for folder in ("records", "trainings", "logs", "cache"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    # What an earlier try left would be taken for this one's.
    for name in (*recorded_files(job), log_file(job)):
        (work / name).unlink(missing_ok=True)
    if job.kind == "training":
        store.sweep(f"trainings/{job.key}")
        name = f"trainings/{job.key}/{_CHECKPOINT}"
        store.get(name, folders.training(job) / _CHECKPOINT)
    elif job.training_key is not None:
        _fetch_training(job.training_key, store, work)


def _fetch_training(key: str, store: Store, work: Path) -> None:
    name = f"trainings/{key}"
    told = store.read(f"{name}/{_TRAINED}")
    if told is None:
        raise OutputError(f"{store.url} has no training {key[:12]}; was it removed during a run?")
    path = work / name / _TRAINED
    with contextlib.suppress(OSError):
        if path.read_bytes() == told and (work / name / _LEARNED).is_file():
            return
    for file in (_LEARNED, _TRAINED):
        if not store.get(f"{name}/{file}", work / name / file):
            raise OutputError(f"{store.url} lacks {name}/{file}; was it removed during a run?")


def _leave(job: Job, store: Store, work: Path, *, complete: bool) -> None:
    """Store what a job left, its record last."""
    names = [log_file(job)]
    if complete:
        names += recorded_files(job)
    for name in names:
        if (work / name).is_file():
            store.put(work / name, name)
    if job.kind == "training" and (work / recorded_files(job)[0]).is_file():
        store.remove(f"trainings/{job.key}/{_CHECKPOINT}")


@contextlib.contextmanager
def _checkpoints(job: Job, store: Store, work: Path) -> Iterator[None]:
    """Store a training's checkpoint whenever it has written another one."""
    if job.kind != "training":
        yield
        return
    name = f"trainings/{job.key}/{_CHECKPOINT}"
    path = work / name
    over = threading.Event()
    written = float(os.environ.get("MEDBENCH_CHECKPOINT_S", _LOOK_EVERY_S))
    every = min(_LOOK_EVERY_S, max(0.2, written))

    def stamp() -> tuple[int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def watch() -> None:
        kept = stamp()
        while not over.wait(every):
            now = stamp()
            if now is not None and now != kept:
                # One that cannot be stored is no loss yet; the record will tell of the trouble.
                with contextlib.suppress(OutputError):
                    store.put(path, name)
                    kept = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # A checkpoint that arrived after the training's record would only lie about.
        thread.join()
