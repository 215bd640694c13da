"""Runs what is missing of a plan: in order, each job once, again where that may help.

The same for every engine. Whatever happens to a job, it ends as a record: its own, or one that is
written here in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from medbench.engine.executor import Attempt, Ended, Executor, Interrupted, Lost
from medbench.engine.pulse import Pulse
from medbench.files import locked, output_error, write_bytes, write_json
from medbench.jobs import (
    Folders,
    Job,
    Waiting,
    cell_state,
    cell_states,
    training_state,
    write_failure,
)
from medbench.plan import Plan
from medbench.plugins import Registry
from medbench.records import PLAN_FILE, read_record
from medbench.shelf import Shelf

# Episodes a block after memory ran out once, twice and more often.
_SMALLER_BLOCKS = (8, 1)


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for whoever watches the run.

    ``again``: it failed, and is tried once more. ``where`` is told when it starts.
    """

    kind: Literal["started", "progress", "again", "finished"]
    job: Job
    status: str = ""
    fraction: float = 0.0
    text: str = ""
    error: str = ""
    seconds: float = 0.0
    where: str = ""


@dataclass
class Outcome:
    """What a run came to: how many cells were measured, failed, or were there before."""

    measured: int = 0
    failed: int = 0
    kept: int = 0
    kept_failed: int = 0
    trainings: int = 0
    plugin_faults: list[str] = field(default_factory=list)


Watch = Callable[[Event], None]


def run_plan(
    plan: Plan,
    registry: Registry,
    out: Path,
    executor: Executor,
    *,
    suite_text: str,
    retries: int = 1,
    retry: Collection[str] = (),
    watch: Watch = lambda event: None,
) -> Outcome:
    """Run what is missing of `plan` below `out`, and what failed before with a status in `retry`.

    A job that was killed, lost or out of memory is tried again, at most `retries` times. Raises
    `OutputError` when the folder is in use by another run, full or read-only, and `Interrupted`
    after Ctrl-C or SIGTERM; in each case finished records are whole.
    """
    prepare(out)
    with locked(out / ".lock", wait=False), _signals():
        write_bytes(out / "suite.yaml", suite_text.encode())
        write_json(out / PLAN_FILE, _planned(out) | {job.slug: job.key for job in plan.cells})
        try:
            executor.open()
            run = _Run(plan, registry, out, executor, retries, retry, watch)
        except BaseException:
            executor.stop()
            raise
        try:
            return run.run()
        finally:
            _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what jobs had begun to write when they were killed; by now none runs."""
    for pattern in ("records/.*.tmp", "trainings/*/.*.tmp"):
        for debris in out.glob(pattern):
            with contextlib.suppress(OSError):
                debris.unlink()


def prepare(out: Path) -> None:
    """Make the folders of a run. Raises `OutputError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("records", "trainings", "logs", "cache"):
            (out / name).mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error


def _planned(out: Path) -> dict[str, str]:
    # A run of some cells (--only) leaves what was planned for the others.
    try:
        found: dict[str, str] = json.loads((out / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found


class _Run:
    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        out: Path,
        executor: Executor,
        retries: int,
        retry: Collection[str],
        watch: Watch,
    ) -> None:
        self._registry, self._executor, self._watch = registry, executor, watch
        self._folders = Folders(out)
        self._retries = retries
        self._outcome = Outcome()
        cells: list[Job] = []
        states: list[str] = []
        shelf = Shelf(out)
        for job, (state, _) in zip(plan.cells, cell_states(shelf, plan.cells), strict=True):
            if state == "missing" or state in retry:
                cells.append(job)
                continue
            states.append(state)
            if state == "ok":
                self._outcome.kept += 1
            else:
                self._outcome.kept_failed += 1
        shelf.save()
        needed = {job.training_key for job in cells}
        # Trainings that ended before this run; their cells are looked after once it has begun.
        self._done_before: dict[str, tuple[str, str]] = {}
        trainings: list[Job] = []
        for job in plan.trainings:
            if job.key not in needed:
                continue
            status, error = training_state(self._folders, job, verify=True)
            if status == "missing" or status in retry:
                trainings.append(job)
            else:
                self._done_before[job.key] = (status, error)
        self._waiting = Waiting(longest_first(trainings, self._folders), cells)
        # Tries that go before what waits.
        self._again: deque[Attempt] = deque()
        self._running: dict[str, Attempt] = {}
        self._titles = {job.key: job.title for job in plan.trainings}
        self._pulse = Pulse(out, executor.n_slots, states, cells, trainings)

    def run(self) -> Outcome:
        if not self._waiting:
            self._executor.stop()
            return self._outcome
        try:
            for key, (status, error) in self._done_before.items():
                self._trained(key, status, error)
            while self._waiting or self._again or self._running:
                self._start()
                if self._running:
                    self._listen()
                self._pulse.beat()
        except BaseException:
            self._executor.stop()
            self._pulse.end("stopped")
            raise
        self._executor.stop()
        self._pulse.end("done")
        return self._outcome

    def _start(self) -> None:
        while True:
            if not self._again:
                job = self._waiting.take()
                if job is None:
                    return
                self._again.append(Attempt(job))
            # A job that needs several slots is not overtaken, or it might wait for ever.
            if not self._executor.has_room(self._again[0].job):
                return
            attempt = self._again.popleft()
            self._running[attempt.job.key] = attempt
            where = self._executor.start(attempt)
            self._pulse.started(attempt.job, where)
            self._watch(Event("started", attempt.job, where=where))

    def _listen(self) -> None:
        for news in self._executor.wait():
            if isinstance(news, Ended):
                self._ended(news)
            else:
                self._pulse.told(news)
                self._watch(
                    Event("progress", news.job, fraction=news.fraction, text=news.text),
                )

    def _ended(self, news: Ended) -> None:
        job = news.job
        attempt = self._running.pop(job.key)
        lost = news.lost
        if lost is None and self._state(job) == "missing":
            lost = Lost("crash", "It ended, and its record cannot be read.")
        if lost is not None:
            write_failure(job, self._folders, lost.status, "run", lost.message, attempt.earlier)
        status = self._state(job)
        again = status == "oom" or (lost is not None and lost.again)
        if again and len(attempt.earlier) < self._retries:
            self._try_again(attempt, status, news.seconds)
        else:
            self._finished(job, news.seconds)

    def _try_again(self, attempt: Attempt, status: str, seconds: float) -> None:
        job = attempt.job
        tries = (*attempt.earlier, self._failure(job, status))
        n_oom = sum(t["status"] == "oom" for t in tries)
        smaller = _SMALLER_BLOCKS[min(n_oom, len(_SMALLER_BLOCKS)) - 1] if n_oom else None
        self._again.append(replace(attempt, earlier=tries, episodes_per_block=smaller))
        self._pulse.again(job)
        self._watch(
            Event("again", job, status=status, error=str(tries[-1]["error"]), seconds=seconds)
        )

    def _failure(self, job: Job, status: str) -> Mapping[str, Any]:
        if job.kind == "training":
            folder = self._folders.training(job)
            data: Mapping[str, Any] = json.loads((folder / "training.json").read_text())
        else:
            data = read_record(self._folders.record(job)).data
        told = {k: data.get(k, "") for k in ("stage", "error", "created")}
        return {"status": status, **told}

    def _state(self, job: Job) -> str:
        if job.kind == "training":
            return training_state(self._folders, job)[0]
        return cell_state(self._folders, job)

    def _trained(self, key: str, status: str, error: str) -> None:
        """Let the cells of a training run, or fail them with it."""
        if status == "ok":
            self._waiting.release(key)
            return
        for job in self._waiting.drop(key):
            text = f"Its training ({self._titles[key]}) failed: {error}"
            write_failure(job, self._folders, status, "meta_train", text)
            self._finished(job, 0.0)

    def _finished(self, job: Job, seconds: float) -> None:
        if job.kind == "training":
            status, error = training_state(self._folders, job)
            self._outcome.trainings += status == "ok"
            self._pulse.finished(job, status, seconds)
            self._watch(Event("finished", job, status=status, error=error, seconds=seconds))
            self._trained(job.key, status, error)
            return
        record = read_record(self._folders.record(job))
        self._outcome.measured += record.ok
        self._outcome.failed += not record.ok
        for fault in self._registry.announce(record.data):
            self._outcome.plugin_faults.append(str(fault))
        status, error = str(record.data["status"]), str(record.data.get("error", ""))
        self._pulse.finished(job, status, seconds)
        self._watch(Event("finished", job, status=status, error=error, seconds=seconds))


def longest_first(trainings: list[Job], folders: Folders) -> list[Job]:
    """Trainings by the time they will take, as far as earlier ones of this run's folder tell.

    The last to end keeps all other workers waiting, so it should not begin last. What was never
    timed counts as slow as the slowest that was.
    """
    rates: dict[tuple[str, str], float] = {}
    for path in sorted((folders.out / "trainings").glob("*/training.json")):
        try:
            data = json.loads(path.read_text())
            rates[_kind(data["ingredients"])] = data["train_s"] / data["images_seen"]
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # failed, or damaged
    unknown = max(rates.values(), default=1.0)

    def seconds(job: Job) -> float:
        rate = rates.get(_kind(job.ingredients), unknown)
        return rate * float(job.request["budget_images"])

    return sorted(trainings, key=seconds, reverse=True)


def _kind(ingredients: Mapping[str, Any]) -> tuple[str, str]:
    return json.dumps(ingredients["trainer"]), json.dumps(ingredients["backbone"])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does; a second one does not wait for anything."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            # Local jobs end with this process; what they have written is whole.
            os._exit(Interrupted.exit_code)
        stopping = True
        raise Interrupted(f"Stopped by {signal.Signals(number).name}.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
