"""Storage that every node of a cluster reaches: a folder, or a bucket, by fsspec's URLs.

A file that is put there is whole or not there.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from medbench.errors import OutputError, Unavailable, UsageError
from medbench.files import atomic

# Object stores show an object when all of it has arrived.
_WHOLE_PUTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss")
_LOCAL = ("file", "local")


class _Absent(Exception):
    """There is no such file; unlike the system's own error it is no `OSError`."""


@dataclass(frozen=True)
class Store:
    """Files below `url`, by names such as ``records/x.json``; plain data that travels."""

    url: str

    def _opened(self) -> tuple[Any, str]:
        # fsspec keeps what it opened for each process.
        fs, root = fsspec.core.url_to_fs(self.url)
        return fs, str(root).rstrip("/")

    @property
    def _protocol(self) -> str:
        protocol = self._opened()[0].protocol
        return str(protocol if isinstance(protocol, str) else protocol[0])

    def is_folder(self, path: Path) -> bool:
        """Whether this is a folder of this machine, and that one."""
        _, root = self._opened()
        return self._protocol in _LOCAL and Path(root).resolve() == path.resolve()

    def put(self, path: Path, name: str) -> None:
        """Store a file under a name. Raises `OutputError`."""
        fs, root = self._opened()
        target = f"{root}/{name}"
        with self._troubles("written", name):
            if self._protocol in _LOCAL:
                with atomic(Path(target)) as temporary:
                    shutil.copyfile(path, temporary)
            elif self._protocol in _WHOLE_PUTS:
                fs.put_file(str(path), target)
            else:
                folder, _, last = target.rpartition("/")
                temporary_name = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}.tmp"
                fs.makedirs(folder, exist_ok=True)
                fs.put_file(str(path), temporary_name)
                fs.mv(temporary_name, target)

    def get(self, name: str, path: Path) -> bool:
        """Fetch a file, atomically; False when there is none. Raises `OutputError`."""
        fs, root = self._opened()
        fs.invalidate_cache()
        try:
            with atomic(path) as temporary, self._troubles("read", name):
                try:
                    fs.get_file(f"{root}/{name}", str(temporary))
                except (FileNotFoundError, IsADirectoryError) as error:
                    raise _Absent from error
        except _Absent:
            return False
        return True

    def write(self, name: str, data: bytes) -> None:
        """Store some bytes under a name. Raises `OutputError`."""
        fs, root = self._opened()
        with self._troubles("written", name):
            if self._protocol in _LOCAL:
                Path(root).joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            fs.pipe_file(f"{root}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """The bytes under a name; None when there are none. Raises `OutputError`."""
        fs, root = self._opened()
        fs.invalidate_cache()
        with self._troubles("read", name):
            try:
                found: bytes = fs.cat_file(f"{root}/{name}")
            except (FileNotFoundError, IsADirectoryError):
                return None
        return found

    def names(self, folder: str) -> set[str]:
        """Names of all files in a folder and those below it. Raises `OutputError`."""
        fs, root = self._opened()
        fs.invalidate_cache()
        with self._troubles("listed", folder):
            try:
                found = fs.find(f"{root}/{folder}")
            except FileNotFoundError:
                return set()
        start = len(root.lstrip("/")) + 1
        return {str(path).lstrip("/")[start:] for path in found}

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises `OutputError`."""
        fs, root = self._opened()
        with self._troubles("removed", name):
            try:
                fs.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    def sweep(self, folder: str) -> None:
        """Remove what writers that were killed left half-written in a folder."""
        _, root = self._opened()
        if self._protocol in _LOCAL:
            for path in Path(root, folder).glob(".*.tmp"):
                path.unlink(missing_ok=True)

    @contextmanager
    def _troubles(self, done: str, name: str) -> Iterator[None]:
        try:
            yield
        except (_Absent, OutputError):
            raise
        except Exception as error:  # every file system has errors of its own
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise OutputError(
                f"{name} cannot be {done} in {self.url}: {told}. Check the address, the network "
                "and the credentials."
            ) from error


def open_store(url: str) -> Store:
    """The storage at `url`: a path, ``s3://bucket/folder``, ``gs://bucket/folder``, and so on.

    Raises `UsageError` for what is no such address, `Unavailable` for a library that is missing.
    """
    if "://" not in url:
        return Store(str(Path(url).expanduser().resolve()))
    protocol = url.partition("://")[0]
    if protocol == "memory":
        raise UsageError("--store memory://: one process's memory is not seen by others.")
    try:
        fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise Unavailable(f"--store {url}: {error}") from error
    except ValueError as error:
        raise UsageError(
            f"--store {url}: {error}. Give a folder that all nodes see, s3://BUCKET/FOLDER or "
            "gs://BUCKET/FOLDER."
        ) from error
    return Store(url)
