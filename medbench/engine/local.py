"""The local engine: one fresh process for every job, forked from a server that has torch loaded.

A job's process leads its own process group and dies with it.
"""

from __future__ import annotations

import contextlib
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
from medbench.engine.reaper import Reaper
from medbench.engine.slots import Slot
from medbench.errors import OutputError, Unavailable, UsageError
from medbench.files import output_error
from medbench.jobs import WAITING, Folders, Job, Manner
from medbench.quiet import quiet_folder

_POLL_S = 0.5
_GRACE_S = 3.0
_OUTPUT_TROUBLE = 75


@dataclass
class _Running:
    attempt: Attempt
    slots: Sequence[Slot]
    stamp: tuple[int, int]
    process: Any
    pipe: connection.Connection
    began: float
    # Moves on with what the job waited for others: what its time limit counts from.
    started: float
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
        training_processes: int = 1,
        timeouts: Mapping[str, float],
        memory_bytes: int | None = None,
        exclusive: bool = True,
        quiet: Path | None = None,
        shared: bool = False,
    ) -> None:
        """`quiet`: where the locks of cost lanes lie [by the name of `out`].

        `shared`: other executors run jobs on this machine too.

        `training_processes` share a training whose method can, each in a slot of its own. Raises
        `UsageError` when there are not so many GPUs.
        """
        gpus = {slot.gpu for slot in slots} - {None}
        if gpus and training_processes > len(gpus):
            raise UsageError(
                f"--training-processes {training_processes} needs as many GPUs, and this run has "
                f"{len(gpus)}. Name more with --gpus, or share a training among fewer."
            )
        self.n_slots = len(slots)
        self._training_processes = training_processes
        self._out, self._place = out, place
        self._slots = list(slots)
        self._threads, self._timeouts, self._exclusive = threads, timeouts, exclusive
        self._quiet = quiet
        self._folders = Folders(out)
        self._guard = Guard(memory_bytes, shared=shared)
        self._running: list[_Running] = []
        self._context = multiprocessing.get_context("forkserver")
        self._reaper: Reaper | None = None

    def open(self) -> None:
        """See `medbench.engine.executor.Executor.open`."""

    def has_room(self, job: Job) -> bool:
        """See `medbench.engine.executor.Executor.has_room`."""
        return self._free_for(job) is not None

    def start(self, attempt: Attempt) -> str:
        """See `medbench.engine.executor.Executor.start`."""
        if self._reaper is None:
            self._prepare_server(attempt.job)
            self._reaper = Reaper()
        job = attempt.job
        slots = self._free_for(job)
        assert slots, "there is no room"
        for slot in slots:
            self._slots.remove(slot)
        device = slots[0].device
        # A training on several GPUs disturbs whoever measures on any of them.
        shared = "gpus" if slots[0].gpu and self._training_processes > 1 else device
        quiet = self._quiet / shared if self._quiet else quiet_folder(self._out, shared)
        manner = Manner(
            threads=self._threads,
            processes=self._training_processes,
            gpu=",".join(slot.gpu for slot in slots if slot.gpu) or None,
            quiet=str(quiet),
            exclusive=self._exclusive,
            episodes_per_block=attempt.episodes_per_block,
            earlier=attempt.earlier,
        )
        stamp = self._folders.stamp(job)
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child,
            args=(job, self._out, self._place, manner, self._folders.log(job), writer),
            name=job.title,
            daemon=False,
        )
        process.start()
        assert process.pid is not None
        self._reaper.watch(process.pid)
        writer.close()
        now = time.monotonic()
        self._running.append(_Running(attempt, slots, stamp, process, reader, now, now))
        return device if len(slots) == 1 else f"{len(slots)} x {device}"

    def _free_for(self, job: Job) -> list[Slot] | None:
        """The slots that a job would take; None when there are not enough now."""
        if job.kind == "cell" or not job.request["parallel"]:
            return self._slots[:1] or None
        by_gpu: dict[str | None, Slot] = {}
        for slot in self._slots:
            by_gpu.setdefault(slot.gpu, slot)
        # Each process wants a GPU of its own; on the CPU one slot is like another.
        free = list(by_gpu.values()) if None not in by_gpu else self._slots
        count = min(self._training_processes, self.n_slots)
        return free[:count] if len(free) >= count else None

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
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None

    def _prepare_server(self, job: Job) -> None:
        # Read by the math libraries when they load, so they must be set before the server starts.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(self._threads)
        # This module too: children must run the code of this run, whatever is edited meanwhile.
        preload = [__name__]
        # Trainings come first in a plan: where this is none, there are none.
        if job.kind == "training":
            preload.append("medbench.engine.preload_training")
        preload.append("medbench.engine.preload")
        if "timm" in str(job.request["backbone"]["name"]):
            preload.append("timm")
        self._context.set_forkserver_preload(preload)

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
        if self._reaper is not None:
            self._reaper.forget(process.pid)
        running.pipe.close()
        self._running.remove(running)
        self._slots += running.slots
        if running.fatal or process.exitcode == _OUTPUT_TROUBLE:
            raise OutputError(running.fatal or f"{job.title}: the output could not be written.")
        lost = self._obituary(running)
        if lost is not None and running.lost is not None:
            lost = running.lost
        process.close()
        return [*news, Ended(job, time.monotonic() - running.began, lost)]

    def _obituary(self, running: _Running) -> Lost | None:
        """Why this try left no record; None when it did."""
        job, code, folders = running.job, running.process.exitcode, self._folders
        if folders.stamp(job) != running.stamp:
            return None
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


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
