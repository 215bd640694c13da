"""The local engine: one fresh process for every job, forked from a server that has torch loaded.

A job's process leads its own process group and dies with it. Whatever the operating system does
to it, the job ends as a record: its own, or one that the engine writes in its place.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from medbench.api import Place
from medbench.errors import MedbenchError, OutputError, Unavailable
from medbench.files import locked, output_error, write_bytes, write_json
from medbench.jobs import (
    WAITING,
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

_POLL_S = 0.5
_GRACE_S = 3.0
_OUTPUT_TROUBLE = 75


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for whoever watches the run."""

    kind: Literal["started", "progress", "finished"]
    job: Job
    status: str = ""
    fraction: float = 0.0
    text: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass
class Outcome:
    """What a run came to: how many cells were measured, failed, or were there before."""

    measured: int = 0
    failed: int = 0
    kept: int = 0
    kept_failed: int = 0
    trainings: int = 0
    plugin_faults: list[str] = field(default_factory=list)


class Interrupted(MedbenchError):
    """The run was stopped by Ctrl-C or a signal; what is recorded stays."""

    exit_code = 130


@dataclass
class _Running:
    job: Job
    process: Any
    pipe: connection.Connection
    started: float
    waiting_since: float | None = None
    heard: bool = False
    fatal: str = ""


Watch = Callable[[Event], None]


def run_plan(
    plan: Plan,
    registry: Registry,
    out: Path,
    place: Place,
    *,
    suite_text: str,
    workers: int,
    threads: int,
    retry_failed: bool = False,
    watch: Watch = lambda event: None,
    training_processes: int = 1,
) -> Outcome:
    """Run what is missing of `plan` below `out`, `workers` jobs at a time.

    `training_processes` share one training where its method can.

    Raises `OutputError` when the folder is in use by another run, full or read-only, and
    `Interrupted` after Ctrl-C or SIGTERM; in each case finished records are whole.
    """
    _prepare(out)
    with locked(out / ".lock", wait=False), _signals():
        write_bytes(out / "suite.yaml", suite_text.encode())
        write_json(out / PLAN_FILE, _planned(out) | {job.slug: job.key for job in plan.cells})
        engine = _Engine(plan, registry, out, place, workers, threads, retry_failed, watch)
        engine.training_processes = training_processes
        return engine.run()


def _planned(out: Path) -> dict[str, str]:
    # A run of some cells (--only) leaves what was planned for the others.
    try:
        found: dict[str, str] = json.loads((out / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("records", "trainings", "logs", "cache"):
            (out / name).mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error


class _Engine:
    training_processes = 1

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        out: Path,
        place: Place,
        workers: int,
        threads: int,
        retry_failed: bool,
        watch: Watch,
    ) -> None:
        self._registry, self._out, self._place = registry, out, place
        self._workers, self._threads, self._watch = workers, threads, watch
        self._folders = Folders(out)
        self._timeouts = {
            "cell": plan.suite.cell_timeout_s,
            "training": plan.suite.training_timeout_s,
        }
        self._outcome = Outcome()
        self._running: list[_Running] = []
        self._context = multiprocessing.get_context("forkserver")
        cells: list[Job] = []
        shelf = Shelf(out)
        for job, (state, _) in zip(plan.cells, cell_states(shelf, plan.cells), strict=True):
            if state == "missing" or (state != "ok" and retry_failed):
                cells.append(job)
            elif state == "ok":
                self._outcome.kept += 1
            else:
                self._outcome.kept_failed += 1
        shelf.save()
        needed = {job.training_key for job in cells}
        done: dict[str, tuple[str, str]] = {}
        trainings: list[Job] = []
        for job in plan.trainings:
            if job.key not in needed:
                continue
            status, error = training_state(self._folders, job)
            if status == "missing" or (status != "ok" and retry_failed):
                trainings.append(job)
            else:
                done[job.key] = (status, error)
        self._waiting = Waiting(trainings, cells)
        self._with_timm = any("timm" in str(job.request["backbone"]["name"]) for job in cells)
        # Trainings that ended before this run; their cells are looked after once it has begun.
        self._done_before = done
        self._titles = {job.key: job.title for job in plan.trainings}

    def run(self) -> Outcome:
        if not self._waiting:
            return self._outcome
        self._start_server()
        try:
            for key, (status, error) in self._done_before.items():
                self._trained(key, status, error)
            while self._waiting or self._running:
                while len(self._running) < self._workers:
                    job = self._waiting.take()
                    if job is None:
                        break
                    self._start(job)
                if self._running:
                    self._wait()
        except BaseException:
            for running in self._running:
                _kill_group(running.process.pid)
            for running in self._running:
                running.process.join(_GRACE_S)
            raise
        return self._outcome

    def _start_server(self) -> None:
        # Read by the math libraries when they load, so they must be set before the server starts.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(self._threads)
        # This module too: children must run the code of this run, whatever is edited meanwhile.
        preload = [__name__, "medbench.engine.preload"]
        if self._with_timm:
            preload.append("timm")
        self._context.set_forkserver_preload(preload)

    def _trained(self, key: str, status: str, error: str) -> None:
        """Let the cells of a training run, or fail them with it."""
        if status == "ok":
            self._waiting.release(key)
            return
        for job in self._waiting.drop(key):
            text = f"Its training ({self._titles[key]}) failed: {error}"
            self._fail(job, status, "meta_train", text)
            self._finished(job, 0.0)

    def _start(self, job: Job) -> None:
        reader, writer = self._context.Pipe(duplex=False)
        log = self._folders.log(job)
        process = self._context.Process(
            target=_child,
            args=(job, self._out, self._place, self._threads, log, writer, self.training_processes),
            name=job.title,
            daemon=False,
        )
        process.start()
        writer.close()
        self._running.append(_Running(job, process, reader, time.monotonic()))
        self._watch(Event("started", job))

    def _wait(self) -> None:
        handles: list[Any] = []
        for running in self._running:
            handles.append(running.process.sentinel)
            if not running.pipe.closed:
                handles.append(running.pipe)
        connection.wait(handles, timeout=_POLL_S)
        for running in list(self._running):
            self._listen(running)
            if not running.process.is_alive():
                self._end(running)
            elif running.waiting_since is None and (
                time.monotonic() - running.started > self._timeouts[running.job.kind]
            ):
                _kill_group(running.process.pid)
                running.process.join(_GRACE_S)
                if self._missing(running.job):
                    kind = running.job.kind
                    text = (
                        f"Stopped after {self._timeouts[kind]:g} s ({kind}_timeout_s of the suite)."
                    )
                    if kind == "training":
                        text += " With a larger one, --retry-failed goes on from its checkpoint."
                    self._fail(running.job, "timeout", "run", text)
                self._end(running)

    def _listen(self, running: _Running) -> None:
        try:
            while not running.pipe.closed and running.pipe.poll():
                kind, fraction, text = running.pipe.recv()
                now = time.monotonic()
                running.heard = True
                if running.waiting_since is not None:
                    running.started += now - running.waiting_since
                running.waiting_since = now if fraction == WAITING else None
                if kind == "fatal":
                    running.fatal = text
                else:
                    self._watch(Event("progress", running.job, fraction=fraction, text=text))
        except (EOFError, OSError):
            running.pipe.close()

    def _end(self, running: _Running) -> None:
        job, process = running.job, running.process
        process.join()
        self._listen(running)
        # Children that the job left behind go with it.
        _kill_group(process.pid)
        running.pipe.close()
        self._running.remove(running)
        if running.fatal or process.exitcode == _OUTPUT_TROUBLE:
            raise OutputError(running.fatal or f"{job.title}: the output could not be written.")
        if self._missing(job):
            if not running.heard:
                # Not this job's fault, and the next one would fare no better.
                raise Unavailable(
                    f"Jobs cannot start here. {job.title}: {_obituary(process.exitcode)} It said "
                    f"nothing before. Its log is {self._folders.log(job)}."
                )
            log = f"Its log is {self._folders.log(job).relative_to(self._out)}."
            self._fail(job, "crash", "run", f"{_obituary(process.exitcode)} {log}")
        process.close()
        self._finished(job, time.monotonic() - running.started)

    def _missing(self, job: Job) -> bool:
        if job.kind == "training":
            return training_state(self._folders, job)[0] == "missing"
        return cell_state(self._folders, job) == "missing"

    def _fail(self, job: Job, status: str, stage: str, message: str) -> None:
        write_failure(job, self._folders, status, stage, message)

    def _finished(self, job: Job, seconds: float) -> None:
        if job.kind == "training":
            status, error = training_state(self._folders, job)
            self._outcome.trainings += status == "ok"
            self._watch(Event("finished", job, status=status, error=error, seconds=seconds))
            self._trained(job.key, status, error)
            return
        record = read_record(self._folders.record(job))
        self._outcome.measured += record.ok
        self._outcome.failed += not record.ok
        for fault in self._registry.announce(record.data):
            self._outcome.plugin_faults.append(str(fault))
        self._watch(
            Event(
                "finished",
                job,
                status=str(record.data["status"]),
                error=str(record.data.get("error", "")),
                seconds=seconds,
            )
        )


def _obituary(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the kernel does that when memory runs out)" if -code == signal.SIGKILL else ""
        return f"Its process was killed by {name}{hint}."
    return f"Its process ended with exit code {code} and without a record."


def _child(
    job: Job,
    out: Path,
    place: Place,
    threads: int,
    log: Path,
    pipe: connection.Connection,
    processes: int,
) -> None:
    """The body of a job's process."""
    os.setsid()
    # A segfault of a plugin needs no image of gigabytes of memory on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _die_with_parent()
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        pipe.send(("fatal", 0.0, str(output_error(log, error))))
        os._exit(_OUTPUT_TROUBLE)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    last = 0.0

    def progress(fraction: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if fraction < 0 or now - last > 0.2:
            last = now
            with contextlib.suppress(OSError):
                pipe.send(("progress", fraction, text))

    from medbench.worker import execute

    try:
        execute(job, out, place, threads, progress, processes)
    except OutputError as error:
        pipe.send(("fatal", 0.0, str(error)))
        os._exit(_OUTPUT_TROUBLE)


def _die_with_parent() -> None:
    """End this process group when the coordinator is gone, however it went."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        connection.wait([parent.sentinel])
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
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
