"""Sees what a plugin does beside its work: files, sockets, other frames, global random states.

Python tells an audit hook of every file that is opened, every connection, and every look at
another frame. The hook is installed when the first guard is used, and idle while none is.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FRAMES = {"sys._getframe", "sys._current_frames", "gc.get_objects", "gc.get_referrers"}
_listeners: list[Callable[[str, tuple[Any, ...]], None]] = []
_installed = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for listener in tuple(_listeners):
        listener(event, args)


@contextlib.contextmanager
def _listening(listener: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    global _installed  # an audit hook can never be taken out again, so there is one
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse connections, and list the addresses that were asked for."""
    seen: list[str] = []

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event not in _NETWORK:
            return
        # Sockets between processes of one machine have paths for addresses.
        address = args[-1] if event in ("socket.connect", "socket.sendto") else args[0]
        if event in ("socket.connect", "socket.sendto") and not isinstance(address, tuple):
            return
        shown = address if isinstance(address, tuple) else (address,)
        seen.append(":".join(str(part) for part in shown[:2]))
        raise ConnectionRefusedError("medbench check lets no plugin reach the network here")

    with _listening(listen):
        yield seen


@contextlib.contextmanager
def writing_only(given: Path) -> Iterator[list[str]]:
    """List the files that are written or changed outside of `given`.

    The working folder, the home folder and the folder for temporary files lie in `given` for the
    time, and what libraries write there without telling Python is listed, too: only temporary
    files are allowed.
    """
    seen: list[str] = []
    given = given.resolve()
    rooms = {name: given / name for name in ("work", "home", "tmp")}

    def allowed(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        inside = Path(text).is_relative_to(given)
        own = any(Path(text).is_relative_to(rooms[name]) for name in ("work", "home"))
        return (inside and not own) or text.startswith(("/dev/", "/proc/")) or "__pycache__" in text

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(c in (mode or "") for c in "wax+") or bool((flags or 0) & _WRITING)
            if writes and not allowed(path):
                seen.append(str(path))
        elif event in _CHANGES and not allowed(args[0]):
            seen.append(str(args[0]))

    before = {name: os.environ.get(name) for name in ("HOME", "TMPDIR")}
    here = Path.cwd()
    for room in rooms.values():
        room.mkdir(parents=True)
    os.environ |= {"HOME": str(rooms["home"]), "TMPDIR": str(rooms["tmp"])}
    kept, tempfile.tempdir = tempfile.tempdir, None
    os.chdir(rooms["work"])
    try:
        with _listening(listen):
            yield seen
    finally:
        os.chdir(here)
        tempfile.tempdir = kept
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    told = {Path(text).name for text in seen}
    for name in ("work", "home"):
        left = (p for p in rooms[name].rglob("*") if p.is_file() and p.name not in told)
        seen += [f"{p.name} (in the {name} folder)" for p in left]


@contextlib.contextmanager
def frames_left_alone(package: str) -> Iterator[list[str]]:
    """List where modules of `package` look at other frames, or for objects that are not theirs."""
    seen: list[str] = []
    looking = False

    def listen(event: str, args: tuple[Any, ...]) -> None:
        nonlocal looking
        # The look at the stack below is such an event itself.
        if event not in _FRAMES or looking:
            return
        looking = True
        try:
            frame: FrameType | None = sys._getframe(2)
            # `inspect` asks for whoever called it; logging and the like ask for themselves.
            while frame is not None and frame.f_globals.get("__name__") == "inspect":
                frame = frame.f_back
            asking = str(frame.f_globals.get("__name__")) if frame is not None else ""
            if frame is not None and asking.partition(".")[0] == package:
                name = Path(frame.f_code.co_filename).name
                seen.append(f"{name}:{frame.f_lineno} calls {event}")
        finally:
            looking = False

    with _listening(listen):
        yield seen


# --- random states -------------------------------------------------------------------------------


def random_states() -> tuple[Any, ...]:
    """The states of the generators that a process shares: torch's, numpy's, Python's."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def changed_states(before: tuple[Any, ...]) -> list[str]:
    """Which of the shared generators moved since."""
    now = random_states()
    found = [] if torch.equal(before[0], now[0]) else ["torch"]
    if any(not np.array_equal(a, b) for a, b in zip(before[1], now[1], strict=True)):
        found.append("numpy")
    return found + (["random"] if before[2] != now[2] else [])


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Shared generators in a known state for the time, and as they were afterwards."""
    before = random_states()
    # torch.manual_seed asks every kind of device, and writes down the whole stack to do so.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
