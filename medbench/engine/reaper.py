"""Ends the jobs of a coordinator that was killed; run as a script, in a process of its own.

A job watches its coordinator in a thread, which cannot run while a plugin's native code keeps
Python's lock. This process needs nobody's lock: it reads which process groups there are from its
standard input, and when that ends without a farewell it kills them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import IO


class Reaper:
    """The coordinator's end of the line to the process that would end its jobs."""

    def __init__(self) -> None:
        """Starts the process; it takes no part in Ctrl-C, and ends after this object's `close`."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    def watch(self, group: int) -> None:
        """A job began; `group` is its process group."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """A job has ended, and its number may soon be another process's."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """All jobs have ended."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
        self._process.wait()

    def _tell(self, text: str) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        # Without it all goes on; it only mends what a kill may leave behind.
        with contextlib.suppress(OSError):
            pipe.write(text.encode())
            pipe.flush()


def main(lines: IO[str]) -> None:
    """Keep the list of groups until `lines` end, then kill those still on it."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)
