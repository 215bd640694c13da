"""The local engine: one fresh process for every job, forked from a server that has torch loaded.

A job's process leads its own process group and dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from medbench.api import Place
from medbench.engine.executor import Attempt, Ended, Lost, Told
from medbench.engine.memory import Guard
from medbench.engine.slots import Slot
from medbench.errors import OutputError, Unavailable
from medbench.files import output_error
from medbench.jobs import WAITING, Folders, Job, Manner, cell_state, training_state
from medbench.quiet import quiet_folder

_POLL_S = 0.5
_GRACE_S = 3.0
_OUTPUT_TROUBLE = 75
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


@dataclass
class _Running:
    attempt: Attempt
    slot: Slot
    process: Any
    pipe: connection.Connection
    began: float
    # Moves on with what the job waited for others: what its time limit counts from.
    started: float
    # What was recorded of the job before this try.
    before: tuple[int, int] | None
    waiting_since: float | None = None
    heard: bool = False
    fatal: str = ""
    lost: Lost | None = None

    @property
    def job(self) -> Job:
        return self.attempt.job


class LocalExecutor:
    """Runs jobs as processes of this machine, one in each slot.

    `timeouts` are seconds by kind of job. A job whose processes hold more than `memory_bytes` is
    ended, and the largest is when the machine's memory runs out. With `exclusive` a cost lane has
    its device to itself.
    """

    def __init__(
        self,
        out: Path,
        place: Place,
        slots: Sequence[Slot],
        *,
        threads: int = 1,
        timeouts: Mapping[str, float],
        memory_bytes: int | None = None,
        exclusive: bool = True,
        quiet: Path | None = None,
    ) -> None:
        """`quiet`: where the locks of cost lanes lie [by the name of `out`]."""
        self.n_slots = len(slots)
        self._out, self._place = out, place
        self._slots = list(slots)
        self._threads, self._timeouts, self._exclusive = threads, timeouts, exclusive
        self._quiet = quiet
        self._folders = Folders(out)
        self._guard = Guard(memory_bytes)
        self._running: list[_Running] = []
        self._context = multiprocessing.get_context("forkserver")
        self._ready = False

    def open(self) -> None:
        """See `medbench.engine.executor.Executor.open`."""

    def free(self) -> int:
        """See `medbench.engine.executor.Executor.free`."""
        return len(self._slots)

    def start(self, attempt: Attempt) -> str:
        """See `medbench.engine.executor.Executor.start`."""
        if not self._ready:
            self._prepare_server(attempt.job)
        job, slot = attempt.job, self._slots.pop(0)
        quiet = self._quiet / slot.device if self._quiet else quiet_folder(self._out, slot.device)
        manner = Manner(
            threads=self._threads,
            gpu=slot.gpu,
            quiet=str(quiet),
            exclusive=self._exclusive,
            episodes_per_block=attempt.episodes_per_block,
            earlier=attempt.earlier,
        )
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child,
            args=(job, self._out, self._place, manner, self._folders.log(job), writer),
            name=job.title,
            daemon=False,
        )
        process.start()
        writer.close()
        now = time.monotonic()
        before = _stamp(self._recorded(job))
        self._running.append(_Running(attempt, slot, process, reader, now, now, before))
        return slot.device

    def wait(self) -> Sequence[Told | Ended]:
        """See `medbench.engine.executor.Executor.wait`."""
        handles: list[Any] = []
        for running in self._running:
            handles.append(running.process.sentinel)
            if not running.pipe.closed:
                handles.append(running.pipe)
        connection.wait(handles, timeout=_POLL_S)
        news: list[Told | Ended] = []
        for running in self._running:
            news += self._listen(running)
        alive = [r for r in self._running if r.process.is_alive()]
        for running in alive:
            self._hold_to_time(running)
        for index, lost in self._guard.look([r.process.pid for r in alive]):
            self._kill(alive[index], lost)
        for running in list(self._running):
            if not running.process.is_alive():
                news += self._end(running)
        return news

    def stop(self) -> None:
        """See `medbench.engine.executor.Executor.stop`."""
        for running in self._running:
            _kill_group(running.process.pid)
        for running in self._running:
            running.process.join(_GRACE_S)
        self._running.clear()

    def _recorded(self, job: Job) -> Path:
        if job.kind == "training":
            return self._folders.training(job) / "training.json"
        return self._folders.record(job)

    def _prepare_server(self, job: Job) -> None:
        # Read by the math libraries when they load, so they must be set before the server starts.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(self._threads)
        # This module too: children must run the code of this run, whatever is edited meanwhile.
        preload = [__name__, "medbench.engine.preload"]
        if "timm" in str(job.request["backbone"]["name"]):
            preload.append("timm")
        self._context.set_forkserver_preload(preload)
        self._ready = True

    def _hold_to_time(self, running: _Running) -> None:
        kind = running.job.kind
        limit = self._timeouts[kind]
        if running.waiting_since is not None or time.monotonic() - running.started <= limit:
            return
        text = f"Stopped after {limit:g} s ({kind}_timeout_s of the suite)."
        if kind == "training":
            text += " With a larger one, --retry-failed goes on from its checkpoint."
        self._kill(running, Lost("timeout", text))

    def _kill(self, running: _Running, lost: Lost) -> None:
        _kill_group(running.process.pid)
        running.process.join(_GRACE_S)
        running.lost = lost

    def _listen(self, running: _Running) -> list[Told | Ended]:
        news: list[Told | Ended] = []
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
                    news.append(Told(running.job, fraction, text))
        except (EOFError, OSError):
            running.pipe.close()
        return news

    def _end(self, running: _Running) -> list[Told | Ended]:
        job, process = running.job, running.process
        process.join()
        news = self._listen(running)
        # Children that the job left behind go with it.
        _kill_group(process.pid)
        running.pipe.close()
        self._running.remove(running)
        self._slots.append(running.slot)
        if running.fatal or process.exitcode == _OUTPUT_TROUBLE:
            raise OutputError(running.fatal or f"{job.title}: the output could not be written.")
        lost = self._obituary(running)
        process.close()
        return [*news, Ended(job, time.monotonic() - running.began, lost)]

    def _obituary(self, running: _Running) -> Lost | None:
        """Why this try left no record; None when it left one."""
        job, code = running.job, running.process.exitcode
        folders = self._folders
        state = training_state(folders, job)[0] if job.kind == "training" else None
        state = state or cell_state(folders, job)
        if state != "missing" and _stamp(self._recorded(job)) != running.before:
            return None
        if running.lost is not None:
            return running.lost
        killed = code is not None and code < 0
        if killed:
            name = signal.Signals(-code).name
            hint = " (the kernel does that when memory runs out)" if code == -9 else ""
            how = f"Its process was killed by {name}{hint}."
        else:
            how = f"Its process ended with exit code {code} and without a record."
        if not running.heard:
            # Not this job's fault, and the next one would fare no better.
            raise Unavailable(
                f"Jobs cannot start here. {job.title}: {how} It said nothing before. Its log is "
                f"{folders.log(job)}."
            )
        # Signals that come from outside; the others are a plugin's own, and would come again.
        outside = killed and -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        log = f"Its log is {folders.log(job).relative_to(self._out)}."
        return Lost("crash", f"{how} {log}", again=outside)


def _child(
    job: Job, out: Path, place: Place, manner: Manner, log: Path, pipe: connection.Connection
) -> None:
    """The body of a job's process."""
    os.setsid()
    # A segfault of a plugin needs no image of gigabytes of memory on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _die_with_parent()
    with contextlib.suppress(OSError):
        # When memory runs out, the kernel shall take a job and not the one who records its end.
        Path("/proc/self/oom_score_adj").write_text("1000")
    if manner.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = manner.gpu
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
        execute(job, out, place, manner, progress)
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
    # The thread cannot run while a plugin's native code keeps Python's lock; then the system ends
    # this process with the server it was forked from, which goes when the coordinator does.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells one version of an atomically written file from the next."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
