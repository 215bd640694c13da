"""Watches what jobs hold of this machine's memory, so that one that grows ends alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from medbench.engine.executor import Lost

# Below this share of free memory the kernel would soon choose a process to kill by itself.
_LEAST_FREE = 0.03
_EVERY_S = 0.4
_CGROUP = Path("/sys/fs/cgroup")


class Guard:
    """Says which jobs hold too much: one more than `limit_bytes`, or all more than there is.

    With `shared` others run jobs on this machine too, each with a guard, and only the largest of
    all ends.
    """

    def __init__(self, limit_bytes: int | None, *, shared: bool = False) -> None:
        self._limit, self._shared = limit_bytes, shared
        self._looked = 0.0

    def look(self, pids: Sequence[int]) -> list[tuple[int, Lost]]:
        """Of jobs by the process that leads each: which to end now, and why."""
        if not pids or time.monotonic() - self._looked < _EVERY_S:
            return []
        self._looked = time.monotonic()
        held = [resident(pid) for pid in pids]
        if self._limit is not None:
            over = [i for i, size in enumerate(held) if size > self._limit]
            if over:
                allowed = f"and --memory allows {_gib(self._limit)}."
                return [
                    (i, Lost("oom", f"It held {_gib(held[i])} of memory, {allowed}")) for i in over
                ]
        free, total = machine_memory()
        if free >= _LEAST_FREE * total:
            return []
        index = max(range(len(held)), key=held.__getitem__)
        if self._shared and any(resident(p) > held[index] for p in _jobs() if p not in pids):
            return []
        text = (
            f"It held {_gib(held[index])}, the most of all jobs, when {_gib(free)} of this "
            f"machine's {_gib(total)} were free."
        )
        return [(index, Lost("oom", text))]


def _jobs() -> list[int]:
    """Processes that lead a job on this machine, whoever gave it out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            line = " ".join(process.cmdline())
            if "medbench.engine.local" in line and os.getsid(process.pid) == process.pid:
                found.append(process.pid)
    return found


def resident(pid: int) -> int:
    """Bytes that a process and all it started hold in memory, those they share counted once."""
    total = 0
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total


def machine_memory() -> tuple[int, int]:
    """Free and total bytes that processes here may have: the machine's, or their cgroup's."""
    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files can be dropped at any time.
        used = int((_CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
        if limit < total:
            free, total = min(free, limit - used), limit
    return free, total


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
