"""The SLURM engine: jobs as tasks of job arrays, through submitit, while a coordinator watches.

The output folder is on a file system that all nodes see. Each task runs one job there as the local
engine would. What a dead coordinator left in the queue is found by name and cancelled.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from medbench.engine.alone import Alone, Result, Terms, Troubles
from medbench.engine.executor import Attempt, Ended, Lost, Told
from medbench.engine.queues import ALIVE, Queue
from medbench.errors import OutputError, Unavailable
from medbench.files import locked, output_error
from medbench.jobs import Folders, Job

# How long to wait with more jobs when SLURM has refused some.
_REFUSED_S = 60.0


class Task:
    """One job as SLURM runs it; submitit asks it for a successor when it is interrupted."""

    def __init__(self, attempt: Attempt, out: Path, terms: Terms) -> None:
        self._attempt, self._out, self._terms = attempt, out, terms
        self._alone: Alone | None = None

    def __call__(self) -> Result:
        """Run the job to its end."""
        _stop_on_sigterm()
        spots, stem = Spots(self._out), self._attempt.job.file_stem
        alone = self._alone = Alone(self._out, self._terms, spots.quiet)
        # A job that was cancelled on a node nobody can reach may still run there.
        with locked(spots.lock(stem), wait=True):
            for news in alone.run(self._attempt):
                if isinstance(news, Result):
                    return news
                spots.tell(stem, news)
        raise AssertionError("an attempt ends with its result")

    def checkpoint(self) -> DelayedSubmission:
        """End the job's process and hand back what is to run in the next place of the queue.

        A training goes on from the checkpoint that it wrote last.
        """
        if self._alone is not None:
            self._alone.stop()
        return DelayedSubmission(Task(self._attempt, self._out, self._terms))


def _stop_on_sigterm() -> None:
    import signal

    # submitit would let it pass, and be killed half a minute later; SLURM knows whether the job
    # goes back into the queue.
    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


@dataclass(frozen=True)
class Spots:
    """What this engine keeps below the output folder."""

    out: Path

    @property
    def quiet(self) -> Path:
        """The locks that keep the devices of the machine that asks quiet.

        Not in its temporary folder, of which many clusters give each job its own.
        """
        return self.out / "slurm" / "quiet" / os.uname().nodename

    def lock(self, stem: str) -> Path:
        """Held by the task that runs a job."""
        return self.out / "slurm" / "locks" / f"{stem}.lock"

    def told(self, stem: str) -> Path:
        """How far a job has come, in its task's own words."""
        return self.out / "slurm" / "told" / f"{stem}.json"

    def tell(self, stem: str, news: Told) -> None:
        """Leave `news` for the coordinator; nothing depends on it."""
        path = self.told(stem)
        text = json.dumps(
            {"fraction": news.fraction, "text": news.text, "host": os.uname().nodename}
        )
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(text)
            temporary.replace(path)


@dataclass
class _Running:
    attempt: Attempt
    job: Any
    # What was recorded before it, by `Folders.stamp`.
    stamp: tuple[int, int]
    told: str = ""
    gone_since: float | None = None

    @property
    def id(self) -> str:
        return str(self.job.job_id)


class SlurmExecutor:
    """Runs jobs as SLURM tasks; at most `n_slots` are in the queue or running at a time."""

    def __init__(self, out: Path, terms: Terms, queue: Queue) -> None:
        self._spots, self._terms, self._queue = Spots(out.resolve()), terms, queue
        self._folders = Folders(out)
        self.n_slots = queue.n_at_once
        self._gathered: list[Attempt] = []
        self._gathering_since = 0.0
        self._running: list[_Running] = []
        self._polled = self._asked = self._refused_until = 0.0
        self._troubles = Troubles()

    def open(self) -> None:
        """See `medbench.engine.executor.Executor.open`."""
        try:
            for folder in ("locks", "told", "quiet"):
                (self._spots.out / "slurm" / folder).mkdir(parents=True, exist_ok=True)
            self._queue.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self._spots.out, error) from error
        self._queue.cancel(self._queue.leftovers())

    def has_room(self, job: Job) -> bool:
        """See `medbench.engine.executor.Executor.has_room`."""
        return len(self._running) + len(self._gathered) < self.n_slots

    def start(self, attempt: Attempt) -> str:
        """See `medbench.engine.executor.Executor.start`."""
        if not self._gathered:
            self._gathering_since = time.monotonic()
        self._gathered.append(attempt)
        return "slurm"

    def wait(self) -> Sequence[Told | Ended]:
        """See `medbench.engine.executor.Executor.wait`."""
        news: list[Told | Ended] = list(self._submit_gathered())
        pause = self._polled + self._queue.poll_s - time.monotonic()
        if self._running and pause > 0:
            time.sleep(pause)
        self._polled = time.monotonic()
        return news + list(self._look())

    def stop(self) -> None:
        """See `medbench.engine.executor.Executor.stop`."""
        self._gathered.clear()
        ids = {r.id for r in self._running}
        self._running.clear()
        with contextlib.suppress(Unavailable):
            # One may have been submitted the moment before.
            ids |= set(self._queue.leftovers())
        self._queue.cancel(sorted(ids))

    def _submit_gathered(self) -> Iterator[Told]:
        """Submit what has gathered: what becomes ready within a moment goes in one array."""
        now = time.monotonic()
        waited = now - self._gathering_since
        if not self._gathered or (
            self._running and (now < self._refused_until or waited < self._queue.gather_s)
        ):
            return
        for kind in ("training", "cell"):
            same = [a for a in self._gathered if a.job.kind == kind]
            for attempt in same:
                self._spots.told(attempt.job.file_stem).unlink(missing_ok=True)
            stamps = [self._folders.stamp(a.job) for a in same]
            tasks = [Task(a, self._spots.out, self._terms) for a in same]
            try:
                submitted = self._queue.submit(tasks, self._terms.timeouts[kind]) if tasks else []
            except Unavailable:
                if not self._running:
                    raise
                # Many clusters limit how many jobs a person may submit: some must end first.
                self._refused_until = now + _REFUSED_S
                return
            self._gathered = [a for a in self._gathered if a.job.kind != kind]
            for attempt, stamp, job in zip(same, stamps, submitted, strict=True):
                self._running.append(_Running(attempt, job, stamp))
                yield Told(attempt.job, -1.0, f"in the queue as {job.job_id}")

    def _look(self) -> Iterator[Told | Ended]:
        try:
            there = set(os.listdir(self._queue.folder))  # noqa: PTH208 (one read of the folder)
        except OSError as error:
            raise output_error(self._queue.folder, error) from error
        unknown = []
        for running in list(self._running):
            if Path(running.job.paths.result_pickle).name in there:
                ended = self._ended(running)
                if ended is not None:
                    yield ended
            else:
                unknown.append(running)
                yield from self._hear(running)
        yield from self._look_for_lost(unknown)

    def _hear(self, running: _Running) -> Iterator[Told]:
        try:
            text = self._spots.told(running.attempt.job.file_stem).read_text()
            data = json.loads(text)
        except (OSError, ValueError):
            return
        if text != running.told:
            running.told = text
            self._troubles.worked = True
            yield Told(running.attempt.job, data["fraction"], f"{data['text']} on {data['host']}")

    def _ended(self, running: _Running) -> Ended | None:
        """How a task ended that returned something; None when its record is not seen here yet."""
        try:
            result = running.job.result()
        except Exception as error:
            # submitit hands on what its task raised, as text; that is a bug, or a broken node.
            self._remove(running)
            text = str(error).strip().splitlines()
            lost = Lost("crash", f"SLURM task {running.id} failed: {text[-1]}", again=True)
            return Ended(running.attempt.job, 0.0, lost)
        if result.output_trouble:
            raise OutputError(f"On {result.host}: {result.output_trouble}")
        if result.trouble:
            self._remove(running)
            return Ended(running.attempt.job, result.seconds, self._troubles.lost(result.trouble))
        self._troubles.worked = True
        if result.lost is None and self._stamp(running.attempt.job) == running.stamp:
            # Another node's files may take their time to be seen.
            now = time.monotonic()
            running.gone_since = running.gone_since or now
            if now - running.gone_since < self._queue.late_s:
                return None
        self._remove(running)
        if result.lost is None:
            self._tidy(running)
        return Ended(running.attempt.job, result.seconds, result.lost)

    def _stamp(self, job: Job) -> tuple[int, int]:
        # A network file system looks again for what it did not have when its folder is read.
        with contextlib.suppress(OSError):
            os.listdir(self._folders.record(job).parent)  # noqa: PTH208
        return self._folders.stamp(job)

    def _look_for_lost(self, unknown: Sequence[_Running]) -> Iterator[Ended]:
        """Of tasks without a result: those that SLURM has no more, or has ended."""
        now = time.monotonic()
        every = self._queue.poll_s if self._queue.late_s < 10 else 10 * self._queue.poll_s
        if not unknown or now - self._asked < every:
            return
        self._asked = now
        states = self._queue.states([r.id for r in unknown])
        if states is None:
            return
        for running in unknown:
            state = states.get(running.id, "GONE")
            if state in ALIVE:
                running.gone_since = None
                continue
            running.gone_since = running.gone_since or now
            if now - running.gone_since < self._queue.late_s:
                continue
            self._remove(running)
            yield Ended(running.attempt.job, 0.0, self._obituary(running, state))

    def _obituary(self, running: _Running, state: str) -> Lost:
        paths = running.job.paths
        log = Path(paths.stderr)
        if not log.exists():
            return self._troubles.lost(
                f"SLURM task {running.id} ended ({state}) and left nothing in {paths.folder}, not "
                "even a log. Is the output folder on a file system that the nodes see under the "
                "same path? Choose one with --out."
            )
        text = f"SLURM task {running.id} ended without a result"
        text += "" if state == "GONE" else f" ({state})"
        if log.exists():
            text += f". Its log is {log.relative_to(self._spots.out)}."
        status = {"OUT_OF_MEMORY": "oom", "TIMEOUT": "timeout"}.get(state, "crash")
        return Lost(status, text, again=status != "timeout")

    def _remove(self, running: _Running) -> None:
        self._running.remove(running)

    def _tidy(self, running: _Running) -> None:
        """Remove the files of a task that went well: a run has thousands."""
        stem = running.attempt.job.file_stem
        for path in (
            running.job.paths.result_pickle,
            running.job.paths.submitted_pickle,
            running.job.paths.stdout,
            running.job.paths.stderr,
            running.job.paths.submission_file,
            self._spots.told(stem),
            self._spots.lock(stem),
        ):
            with contextlib.suppress(OSError):
                Path(path).unlink()
