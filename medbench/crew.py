"""The further processes of one training: started, watched, and ended with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from types import TracebackType
from typing import Any, final

from medbench.distributed import PeerLost, Seat, open_store

_GRACE_S = 10.0
_JOIN_S = 60.0

Report = tuple[str, str, str]
"""Status, stage and message of a process that failed."""
Work = Callable[..., Report | None]


@dataclass(frozen=True)
class Lost:
    """The first process of a crew that ended before its work was done."""

    status: str
    stage: str
    message: str


@final
class Crew:
    """Holds the processes of ranks 1, 2, ... of a training whose rank 0 is this process.

    They are fresh interpreters, as a process with threads or a GPU cannot be forked safely, in this
    process's group and with its log. They die with it. When one of them fails, whatever this
    process does is told so: its next `medbench.distributed` call raises `PeerLost`, and where it
    does not come out within seconds (NCCL waits for ever), `give_up` is called from another thread.
    """

    def __init__(
        self, world: int, work: Work, arguments: tuple[Any, ...], give_up: Callable[[Lost], None]
    ) -> None:
        """`work(seat, *arguments)` runs in each process; a failure is returned, not raised."""
        self._store = open_store()
        self.seat = Seat(0, world, int(self._store.port))
        self._give_up = give_up
        self._ending = threading.Event()
        self._told = threading.Event()
        self._out = threading.Event()
        self._lost: Lost | None = None
        context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[connection.Connection] = []
        for rank in range(1, world):
            reader, writer = context.Pipe(duplex=False)
            seat = Seat(rank, world, self.seat.port)
            process = context.Process(
                target=_run,
                args=(work, seat, arguments, writer),
                name=f"process {rank + 1} of {world}",
            )
            process.start()
            writer.close()
            self._processes.append(process)
            self._pipes.append(reader)
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Crew:
        """Nothing more is needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the others end their work, or end them when this process has failed."""
        if isinstance(error, PeerLost):
            self._told.wait(_GRACE_S)  # who was lost, before the others are ended too
            self._out.set()
        self._ending.set()
        if error is None:
            for process in self._processes:
                process.join(_JOIN_S)
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()

    def cause(self, error: BaseException) -> Lost | None:
        """Which process's failure ended this one's work with `error`, if it is not its own."""
        return self._lost if isinstance(error, PeerLost) else None

    def _watch(self) -> None:
        waiting = dict(zip(self._processes, self._pipes, strict=True))
        while waiting and not self._ending.is_set():
            connection.wait([process.sentinel for process in waiting], timeout=1.0)
            for process in [p for p in waiting if not p.is_alive()]:
                pipe = waiting.pop(process)
                if self._ending.is_set():
                    return
                lost = _obituary(process, pipe)
                if lost is not None and self._lost is None:
                    self._tell(lost)

    def _tell(self, lost: Lost) -> None:
        self._lost = lost
        self._told.set()
        # This process's own way out tells more, and leaves the output whole.
        if not self._out.wait(_GRACE_S) and not self._ending.is_set():
            self._give_up(lost)


def _obituary(process: Any, pipe: connection.Connection) -> Lost | None:
    process.join()
    report: Report | None = None
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll():
            report = pipe.recv()
    if report is not None:
        status, stage, message = report
        return Lost(status, stage, f"{process.name.capitalize()}: {message}")
    code = process.exitcode
    if code == 0:
        return None
    name = process.name.capitalize()
    if code is not None and code < 0:
        killed = signal.Signals(-code).name
        hint = " (the kernel does that when memory runs out)" if -code == signal.SIGKILL else ""
        return Lost("crash", "meta_train", f"{name} was killed by {killed}{hint}.")
    return Lost("crash", "meta_train", f"{name} ended with exit code {code} before its work.")


def _run(work: Work, seat: Seat, arguments: tuple[Any, ...], pipe: connection.Connection) -> None:
    """The body of a further process."""
    _die_with_parent()
    try:
        report = work(seat, *arguments)
    except PeerLost:
        # Whoever failed first is to blame, and will be heard of; this process is ended then.
        time.sleep(_JOIN_S)
        raise
    if report is not None:
        pipe.send(report)
        pipe.close()
        os._exit(1)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
