"""Writes that are whole or absent, and digests of files that are not computed twice."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medbench.api import DataError, DataMissing, Unavailable

_BLOCK = 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` only when the block ends without an error.

    The temporary file lies in the same folder, so that the rename cannot be half done. Raises
    `Unavailable` when the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise Unavailable(
            f"Cannot write {path}: {error.strerror}. Choose a folder that can be written."
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                if error.filename is not None or isinstance(error, (ConnectionError, TimeoutError)):
                    raise  # about what is being read, not about this file
                raise Unavailable(
                    f"Cannot write {path}: {error.strerror or error}. "
                    "Free space there, or choose another folder."
                ) from error
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; what killed ones left of it is removed.

    The system frees the lock when its holder dies. Raises `Unavailable` when the folder cannot be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise Unavailable(
            f"Cannot write {path}: {error.strerror}. Choose a folder that can be written."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for debris in path.parent.glob(f".{path.name}.*.part"):
            debris.unlink(missing_ok=True)
        yield


@dataclass(frozen=True)
class FileDigest:
    """What identifies the bytes of one file: MD5 for published lists, BLAKE2b for ourselves."""

    md5: str
    blake2b: str


def combined(*parts: object) -> str:
    """One hexadecimal BLAKE2b over `parts`, each told apart from its neighbours."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def remembered(cache: Path, kind: str, key: str) -> dict[str, Any] | None:
    """What `remember` kept under this key, or None."""
    try:
        found = json.loads(_note(cache, kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def remember(cache: Path, kind: str, key: str, facts: dict[str, Any]) -> None:
    """Keep facts that are slow to find; a cache that cannot be written only costs time."""
    with contextlib.suppress(Unavailable, OSError), replacing(_note(cache, kind, key)) as file:
        file.write(json.dumps({"key": key, **facts}, indent=1).encode())


def _note(cache: Path, kind: str, key: str) -> Path:
    return cache / kind / f"{combined(key)[:32]}.json"


def file_digest(path: Path, cache: Path) -> FileDigest:
    """MD5 and BLAKE2b of a file, remembered for as long as its size and time stay the same."""
    path = path.resolve()
    try:
        stat = path.stat()
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
        known = remembered(cache, "digests", key)
        if known is not None:
            return FileDigest(str(known["md5"]), str(known["blake2b"]))
        # MD5 identifies published files here; it protects nothing.
        md5 = hashlib.md5(usedforsecurity=False)
        blake = hashlib.blake2b(digest_size=32)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                md5.update(block)
                blake.update(block)
    except FileNotFoundError as error:
        raise DataMissing(f"{path} is gone: it was there when the dataset was opened.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    found = FileDigest(md5.hexdigest(), blake.hexdigest())
    remember(cache, "digests", key, {"md5": found.md5, "blake2b": found.blake2b})
    return found


def manifest(root: Path, names: Iterable[str]) -> str:
    """A key that changes whenever one of the files below `root` is changed, added or removed."""
    digest = hashlib.blake2b(str(root.resolve()).encode(), digest_size=32)
    for name in names:
        try:
            stat = (root / name).stat()
        except OSError as error:
            raise DataMissing(
                f"{root / name} cannot be found: {error.strerror}. Put the file back."
            ) from error
        digest.update(f"\n{name}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def tree_digest(root: Path, names: Sequence[str], cache: Path) -> str:
    """BLAKE2b over names and bytes of files below `root`, remembered while none of them changes."""
    key = manifest(root, names)
    known = remembered(cache, "trees", key)
    if known is not None:
        return str(known["blake2b"])
    digest = hashlib.blake2b(digest_size=32)
    for name in names:
        content = (root / name).read_bytes()
        digest.update(f"{len(name)}:{name}:{len(content)}:".encode())
        digest.update(content)
    found = digest.hexdigest()
    remember(cache, "trees", key, {"blake2b": found})
    return found
