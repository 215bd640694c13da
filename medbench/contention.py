"""How long this process stood ready and waited for a core, because others held them all.

On a shared runner most of the noise in a time is such waiting. It is told apart by the kernel, and
unlike processor time it leaves in what the code itself waits for: a sleep, a lock, a disk.
"""

from __future__ import annotations

import os
from pathlib import Path

_SCHEDSTAT = Path("/proc/self/schedstat")


class CoreWait:
    """Reads the time that the main thread has waited for a core so far (Linux; else 0).

    What is taken out of a time is read within it, after the clock at its start and before the one
    at its end: another process may get its turn between the two, and the wait exceed the time.
    """

    def __init__(self) -> None:
        try:
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._file = -1

    @property
    def known(self) -> bool:
        """Whether this system tells it."""
        return self._file >= 0

    def seconds(self) -> float:
        """Seconds since the process began; 0 where the system does not tell."""
        if self._file < 0:
            return 0.0
        # Fields of schedstat(5): time on a core, time ready and waiting, both in nanoseconds.
        return int(os.pread(self._file, 96, 0).split()[1]) / 1e9

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
