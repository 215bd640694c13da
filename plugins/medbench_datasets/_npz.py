"""Arrays inside an ``.npz`` file, mapped from disk where they are large or lie uncompressed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import DataError
from medbench_datasets._store import file_digest, one_at_a_time, replacing

LARGE_BYTES = 16 << 20
"""Compressed arrays above this many bytes are unpacked to the cache once, and mapped from there.

Below it, unpacking takes a tenth of a second in each process, and is not worth the disk.
"""

_BLOCK = 4 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError)


@dataclass
class Mapped:
    """An array on disk that is mapped when first used, and again after a copy to a new process."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False
    _array: NDArray[Any] | None = None

    def __call__(self) -> NDArray[Any]:
        if self._array is None:
            if 0 in self.shape:  # an empty file region cannot be mapped
                return np.empty(self.shape, self.dtype)
            self._array = np.memmap(
                self.path,
                dtype=self.dtype,
                mode="r",
                offset=self.offset,
                shape=self.shape,
                order="F" if self.fortran else "C",
            )
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memmap carries its whole content; the recipe is enough.
        return {**self.__dict__, "_array": None}


@dataclass
class Loaded:
    """An array small enough to be kept in memory."""

    array: NDArray[Any]

    def __call__(self) -> NDArray[Any]:
        return self.array


ArrayOnDemand = Mapped | Loaded


@dataclass(frozen=True)
class Header:
    """Type and shape of a member, known without reading its data."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    @property
    def n_bytes(self) -> int:
        """Size of the data when unpacked."""
        n = self.dtype.itemsize
        for length in self.shape:
            n *= length
        return n


class NpzFile:
    """The members of one ``.npz`` file; opening it reads the directory and nothing else.

    Raises `DataError` when the file is not a whole zip archive, or a member is not a plain array.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.cache = cache
        with self._archive() as archive:
            self._members = {
                info.filename.removesuffix(".npy"): info for info in archive.infolist()
            }

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays' names, sorted."""
        return tuple(sorted(self._members))

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def header(self, name: str) -> Header:
        """Type and shape of one array."""
        return self._header(name)[0]

    def load(self, name: str) -> NDArray[Any]:
        """One array, in memory: meant for labels and other short ones."""
        header, start = self._header(name)
        data = bytearray()
        with self._archive() as archive, archive.open(self._members[name]) as member:
            member.read(start)
            while block := member.read(_BLOCK):  # reading to the end makes zipfile check the CRC
                data += block
        if len(data) != header.n_bytes:
            raise DataError(
                f"{self.path}: {name} holds {len(data)} bytes; its header {header.dtype} "
                f"{header.shape} promises {header.n_bytes}. The file was damaged: get it again."
            )
        flat = np.frombuffer(bytes(data), dtype=header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """The items along the first axis, one after the other, without holding them all."""
        header, start = self._header(name)
        if header.fortran:
            yield from self.load(name)
            return
        one = Header(header.dtype, header.shape[1:], fortran=False)
        with self._archive() as archive, archive.open(self._members[name]) as member:
            member.read(start)
            for _ in range(header.shape[0]):
                data = member.read(one.n_bytes)
                yield np.frombuffer(data, dtype=one.dtype).reshape(one.shape)

    def on_demand(self, name: str) -> ArrayOnDemand:
        """One array, mapped when it lies uncompressed or is large, else loaded."""
        header, start = self._header(name)
        info = self._members[name]
        if info.compress_type == zipfile.ZIP_STORED:
            if info.file_size - start != header.n_bytes:
                raise DataError(
                    f"{self.path}: {name} holds {info.file_size - start} bytes; expected "
                    f"{header.n_bytes}. The file was damaged: get it again."
                )
            offset = self._data_offset(info) + start
            return Mapped(self.path, offset, header.dtype, header.shape, header.fortran)
        if header.n_bytes <= LARGE_BYTES:
            return Loaded(self.load(name))
        return self._unpacked(name, header, start)

    def _unpacked(self, name: str, header: Header, start: int) -> Mapped:
        digest = file_digest(self.path, self.cache).blake2b
        target = self.cache / "unpacked" / f"{digest[:32]}-{name}.npy"
        n_bytes = start + header.n_bytes
        if not _is_whole(target, n_bytes):
            with one_at_a_time(target):
                if not _is_whole(target, n_bytes):  # else another process was faster
                    self._unpack(name, target, n_bytes)
        return Mapped(target, start, header.dtype, header.shape, header.fortran)

    def _unpack(self, name: str, target: Path, n_bytes: int) -> None:
        """Copy a member to a file of its own, block by block."""
        with (
            self._archive() as archive,
            archive.open(self._members[name]) as member,
            replacing(target) as file,
        ):
            n_found = 0
            while block := member.read(_BLOCK):
                n_found += len(block)
                file.write(block)
            if n_found != n_bytes:
                raise DataError(
                    f"{self.path}: {name} unpacks to {n_found} bytes; expected {n_bytes}. "
                    "The file was damaged: get it again."
                )

    def _header(self, name: str) -> tuple[Header, int]:
        """The header of a member, and where its data begin inside the member."""
        with self._archive() as archive, archive.open(self._members[name]) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
            else:
                raise DataError(
                    f"{self.path}: {name} is an array file of version {version}; expected 1.0 or "
                    "2.0. Write it again with numpy.savez."
                )
            start = member.tell()
        if dtype.hasobject:
            raise DataError(
                f"{self.path}: {name} has dtype object, which only pickle can read, and pickle can "
                "run any code. Write it again as numbers or fixed-length text."
            )
        return Header(dtype, tuple(shape), fortran), start

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        # The local header repeats name and extra field with lengths of its own.
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return int(info.header_offset) + 30 + int(name) + int(extra)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except _BROKEN as error:
            raise DataError(
                f"{self.path} is not a whole .npz file ({error}); it has "
                f"{self.path.stat().st_size} bytes. It was truncated or altered: get it again."
            ) from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from error


def _is_whole(path: Path, n_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == n_bytes
