"""Writes that are whole or not there at all, and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from medbench.errors import OutputError

# Made once: `json.dumps` with settings makes an encoder at every call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """One byte string for one JSON value: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value).encode()


def content_key(ingredients: Any) -> str:
    """BLAKE2b-128 over the canonical JSON of `ingredients`, in hexadecimal."""
    return bytes_digest(canonical(ingredients))


def bytes_digest(data: bytes) -> str:
    """BLAKE2b-128 of some bytes, in hexadecimal: what `file_digest` gives for a file of them."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b-128 over the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well it is synced and becomes `path`.

    Raises `OutputError` when the disk is full or the folder cannot be written; nothing is left.
    """
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent
        )
        os.close(handle)
        yield Path(name)
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, atomically. Raises `OutputError`."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(_plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def output_error(path: Path, error: OSError) -> OutputError:
    """What an operating-system error about `path` means for the person who runs."""
    hints = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "no permission to write there; choose another folder with --out",
        errno.EPERM: "no permission to write there; choose another folder with --out",
        errno.EROFS: "the file system is read-only; choose another folder with --out",
        errno.ENOENT: "the folder cannot be created, or is gone: was it removed during a run?",
        errno.ENOTDIR: "a part of the path is a file; choose another folder with --out",
        errno.EEXIST: "a file of that name is in the way; choose another folder with --out",
    }
    return OutputError(f"{path}: {hints.get(error.errno or 0, error.strerror or str(error))}.")


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only when the folder itself is synced.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[IO[str]]:
    """Hold an exclusive lock on a file; the system frees it when the process dies.

    Raises `OutputError`, naming the holder, when `wait` is False and it is held.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise OutputError(
                f"{path.parent} is in use by {holder}. Wait for it to end, or choose another "
                "folder with --out."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield file
