"""Where the SLURM engine submits to: SLURM itself, or submitit's processes on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from medbench.engine.slurmoptions import SlurmOptions
from medbench.errors import Unavailable

# States of a task that is not over.
ALIVE = (
    "PENDING",
    "RUNNING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "COMPLETING",
    "CONFIGURING",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
    "PREEMPTED",
)
# SLURM's own limit is 1001 tasks an array, where an administrator has not changed it.
_ARRAY = 500
# Before SLURM kills what is left of a task, it waits for half a minute.
_GONE_WITHIN_S = 120.0


class Queue(Protocol):
    """Where tasks are submitted to; `folder` holds submitit's files.

    ``late_s``: how long the files of a task that is over may take to be seen here; ``poll_s``
    and ``gather_s``: how often to look, and how long to gather tasks for one array.
    """

    folder: Path
    n_at_once: int
    late_s: float
    poll_s: float
    gather_s: float

    def leftovers(self) -> list[str]:
        """Tasks of this run that are queued or running, whoever submitted them."""
        ...

    def submit(self, tasks: Sequence[Callable[[], Any]], limit_s: float) -> list[Any]:
        """Queue tasks that may take `limit_s` each; returns submitit's jobs.

        Raises `Unavailable` with what SLURM said against it.
        """
        ...

    def states(self, ids: Sequence[str]) -> dict[str, str] | None:
        """States, in SLURM's words, of those tasks it knows; None when it does not answer."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """End tasks; returns when they are gone. Raises `Unavailable` when they stay."""
        ...


def open_queue(out: Path, options: SlurmOptions, n_at_once: int | None) -> Queue:
    """The queue that `options` name, for the run in `out`. Raises `Unavailable`."""
    # It would print a line for each call, in the midst of the progress of the run.
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    if options.cluster == "local":
        return LocalQueue(out, options, n_at_once or os.cpu_count() or 1)
    for program in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(program) is None:
            raise Unavailable(
                f"{program} is not on PATH: this machine cannot submit to SLURM. Run this on a "
                "login node, or try it here with --slurm cluster=local."
            )
    return SlurmQueue(out, options, n_at_once or 256)


def _fresh_folder(out: Path) -> tuple[Path, Path]:
    # Ids of tasks come again one day, and a result that lies there would be taken for theirs.
    top = out.resolve() / "slurm" / "jobs"
    return top, top / uuid.uuid4().hex[:12]


def _n_timeouts(limit_s: float, minutes: float) -> int:
    """How often a task may go back into the queue after SLURM's time limit."""
    return math.ceil(limit_s / (60 * minutes))


class SlurmQueue:
    """SLURM, asked through its own commands."""

    late_s, poll_s, gather_s = 60.0, 2.0, 10.0

    def __init__(self, out: Path, options: SlurmOptions, n_at_once: int) -> None:
        self.n_at_once = n_at_once
        self._options = options
        _, self.folder = _fresh_folder(out)
        # By this name the next coordinator finds what this one leaves.
        digest = hashlib.blake2b(str(out.resolve()).encode(), digest_size=6).hexdigest()
        self._name = f"medbench-{digest}"

    def leftovers(self) -> list[str]:
        """See `Queue.leftovers`."""
        told = self._squeue("--me", "--array", "--name", self._name, "--format", "%i")
        if told is None:
            raise Unavailable("squeue does not answer, so tasks of an earlier run cannot be found.")
        return told.split()

    def submit(self, tasks: Sequence[Callable[[], Any]], limit_s: float) -> list[Any]:
        """See `Queue.submit`."""
        found: list[Any] = []
        for start in range(0, len(tasks), _ARRAY):
            executor = submitit.SlurmExecutor(
                self.folder, max_num_timeout=_n_timeouts(limit_s, self._options.minutes)
            )
            executor.update_parameters(**self._options.sbatch(), job_name=self._name)
            try:
                found += executor.submit_array(list(tasks[start : start + _ARRAY]))
            except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
                if found:
                    self.cancel([str(job.job_id) for job in found])
                lines = [line for line in str(error).splitlines() if line.strip()]
                told = [line for line in lines if "error" in line.lower()] or lines
                raise Unavailable(f"SLURM refused the jobs: {' '.join(told[:3])}") from error
        return found

    def states(self, ids: Sequence[str]) -> dict[str, str] | None:
        """See `Queue.states`."""
        arrays = sorted({i.partition("_")[0] for i in ids})
        command = ("--states", "all", "--array", "--jobs", ",".join(arrays), "--format", "%i %T")
        told = self._squeue(*command)
        if told is None:
            return None
        lines = (line.split() for line in told.splitlines())
        return {line[0]: line[1] for line in lines if len(line) == 2}

    def cancel(self, ids: Sequence[str]) -> None:
        """See `Queue.cancel`."""
        if not ids:
            return
        for start in range(0, len(ids), _ARRAY):
            command = ["scancel", *ids[start : start + _ARRAY]]
            subprocess.run(command, capture_output=True, check=False, timeout=120)
        until = time.monotonic() + _GONE_WITHIN_S
        left = list(ids)
        while left and time.monotonic() < until:
            states = self.states(left)
            if states is not None:
                left = [i for i in left if states.get(i, "GONE") in ALIVE]
            if left:
                time.sleep(self.poll_s)
        if left:
            raise Unavailable(
                f"SLURM tasks of this run do not end after scancel: {', '.join(left[:5])}. When "
                "they are gone, run the same command again."
            )

    def _squeue(self, *arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["squeue", "--noheader", *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and "Invalid job id" not in done.stderr:
            return None
        return done.stdout


class LocalQueue:
    """submitit's local executor: processes of this machine in place of SLURM's tasks."""

    late_s, poll_s, gather_s = 1.0, 0.1, 0.0

    def __init__(self, out: Path, options: SlurmOptions, n_at_once: int) -> None:
        self.n_at_once = n_at_once
        self._options = options
        self._top, self.folder = _fresh_folder(out)
        self._jobs: dict[str, Any] = {}

    def leftovers(self) -> list[str]:
        """See `Queue.leftovers`."""
        return [str(p.pid) for p in self._processes()]

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                ours = any(w.startswith(f"{self._top}{os.sep}") for w in words)
                if ours and any(w.startswith("submitit.") for w in words):
                    yield process

    def submit(self, tasks: Sequence[Callable[[], Any]], limit_s: float) -> list[Any]:
        """See `Queue.submit`."""
        executor = submitit.LocalExecutor(
            self.folder, max_num_timeout=_n_timeouts(limit_s, self._options.minutes)
        )
        executor.update_parameters(
            timeout_min=self._options.minutes,
            signal_delay_s=min(self._options.signal_delay_s, int(30 * self._options.minutes)),
            gpus_per_node=self._options.gpus_per_node or 0,
        )
        found = [executor.submit(task) for task in tasks]
        self._jobs |= {str(job.job_id): job for job in found}
        return found

    def states(self, ids: Sequence[str]) -> dict[str, str] | None:
        """See `Queue.states`."""
        return {i: str(self._jobs[i].state) for i in ids if i in self._jobs}

    def cancel(self, ids: Sequence[str]) -> None:
        """See `Queue.cancel`."""
        leaders = [p for p in map(_process, ids) if p is not None]
        # Jobs end when what hosts them does, and that takes them a moment.
        everybody = {p.pid: p for leader in leaders for p in _family(leader)}.values()
        # A controller ends its tasks on SIGINT, and leaves them behind when it is killed.
        for leader in leaders:
            with contextlib.suppress(psutil.Error):
                leader.send_signal(signal.SIGINT)
        if not _gone(everybody, 10.0):
            for process in everybody:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if not _gone(everybody, 10.0):
                left = sorted(p.pid for p in everybody if _alive(p))
                raise Unavailable(f"Processes of this run do not end: {left}.")


def _process(pid: str) -> psutil.Process | None:
    try:
        return psutil.Process(int(pid))
    except psutil.Error:
        return None


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def _gone(processes: Collection[psutil.Process], patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while any(_alive(p) for p in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
