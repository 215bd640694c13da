"""Keeps a device quiet while a job's cost lane is measured there.

The jobs of a run that share a device share two lock files. *work* is held by everybody who
computes, shared; *turn* by the one who measures, alone. Who measures takes the turn and waits for
the others, who let go of *work* at points where a pause harms nothing. The system frees the
locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from medbench.files import output_error

# Longer than a training's step or a block of episodes takes; a plugin that computes on for this
# long without a pause is not waited for.
PATIENCE_S = 30.0
# What a cost lane may take before the others go on beside it: a plugin that hangs must not take the
# whole run with it.
LONGEST_S = 600.0
_POLL_S = 0.005


def quiet_folder(out: Path, device: str) -> Path:
    """Where the locks of a run's jobs on one device of this machine lie.

    Beside nothing that other machines see: another node that shares `out` has devices of its own.
    """
    name = hashlib.blake2b(str(out.resolve()).encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"medbench-{os.getuid()}" / name / device


class Quiet:
    """One job's part in the quiet of its device; a context in which the job may compute.

    With `folder` None there are no other jobs, and nothing waits. With `exclusive` False cost lanes
    do not overlap one another, and other work goes on beside them. `told` hears True when this job
    begins to wait for a measurement, and False when it goes on.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        exclusive: bool = True,
        patience_s: float = PATIENCE_S,
        longest_s: float = LONGEST_S,
        told: Callable[[bool], None] = lambda waiting: None,
    ) -> None:
        self._folder, self._exclusive = folder, exclusive
        self._patience_s, self._longest_s, self._told = patience_s, longest_s, told
        self._files: list[IO[str]] = []
        self._impatient = False
        # Set by the block of `alone`: what disturbed the measurement, if anything did.
        self.disturbed_by: str | None = None

    def __enter__(self) -> Quiet:
        """Wait until nothing is measured, then hold *work*. Raises `OutputError`."""
        if self._folder is None:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files = [(self._folder / f"{n}.lock").open("a") for n in ("turn", "work")]
        except OSError as error:
            raise output_error(self._folder, error) from error
        if self._exclusive:
            self._join()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of everything."""
        for file in self._files:
            file.close()
        self._files = []

    def pause(self) -> None:
        """Let a measurement that waits go first; for points where a pause harms nothing."""
        if not self._files or not self._exclusive:
            return
        turn, work = self._files
        if _try(turn, fcntl.LOCK_SH) and not self._impatient:
            fcntl.flock(turn, fcntl.LOCK_UN)
            return
        fcntl.flock(work, fcntl.LOCK_UN)
        self._join()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A block that waits for another job, and computes nothing until that has come on."""
        if not self._files or not self._exclusive:
            yield
            return
        fcntl.flock(self._files[1], fcntl.LOCK_UN)
        try:
            yield
        finally:
            self._join()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A block that measures; after it `disturbed_by` tells whether the device was this job's.

        None: it was this job's alone from beginning to end.
        """
        self.disturbed_by = None
        if not self._files:
            yield
            return
        turn, work = self._files
        fcntl.flock(work, fcntl.LOCK_UN)
        self._told(True)
        fcntl.flock(turn, fcntl.LOCK_EX)
        self._gone_on.unlink(missing_ok=True)
        why = self._others() if self._exclusive else "other jobs were let run beside it"
        self._told(False)
        try:
            yield
        finally:
            if why is None and self._gone_on.exists():
                why = "it took so long that another job went on"
            self.disturbed_by = why
            # Only who has the turn wants *work* alone, so this does not wait.
            if self._exclusive:
                fcntl.flock(work, fcntl.LOCK_SH)
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _others(self) -> str | None:
        """Wait for the others to pause; why they did not."""
        work = self._files[1]
        until = time.monotonic() + self._patience_s
        while not _try(work, fcntl.LOCK_EX):
            if time.monotonic() > until:
                return f"another job did not pause within {self._patience_s:g} s"
            time.sleep(_POLL_S)
        return None

    def _join(self) -> None:
        turn, work = self._files
        if not _try(turn, fcntl.LOCK_SH):
            self._told(True)
            # Who has lost patience with a measurement does not wait for that one again.
            until = time.monotonic() + (0.0 if self._impatient else self._longest_s)
            while not _try(turn, fcntl.LOCK_SH):
                if time.monotonic() >= until:
                    self._impatient = True
                    self._gone_on.touch()
                    self._told(False)
                    return
                time.sleep(_POLL_S)
            self._told(False)
        self._impatient = False
        # Holding the turn shared, nobody can begin to measure before *work* is held.
        fcntl.flock(work, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)

    @property
    def _gone_on(self) -> Path:
        assert self._folder is not None
        return self._folder / "gone-on"


NOBODY = Quiet(None)


def _try(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
