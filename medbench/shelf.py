"""The briefs of one folder of records, kept in the run's ``cache`` folder between commands.

What is kept of a record is used while size, modification and change time of its files are those
of the day it was read and checked; anything else is read and checked again. Nothing depends on
the file: it may be removed at any time, and where it cannot be written all goes on without.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from medbench.briefs import Brief, Own, Setting, read_brief
from medbench.errors import DataError, OutputError
from medbench.files import write_bytes
from medbench.records import PLAN_FILE, choose, record_files

FILE = "records.json"
# Raised when what is kept, or how it is computed, changes.
VERSION = 5
# A file that changed this shortly before it was read may change again within one tick of the file
# system's clock, and look the same.
_SETTLED_NS = 2_000_000_000
_THREADS = 8
_CHUNK = 64

Stamp = tuple[int, int, int]
Interval = tuple[float, float, float, int, int]
# The verdicts of one table: algorithm and backbone of a row, and its verdict's values.
Maybe = float | None
Judged = list[tuple[str, str, str, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe]]
_NO_FILE: Stamp = (0, 0, 0)
T = TypeVar("T")
R = TypeVar("R")


class _Kept(msgspec.Struct, array_like=True):
    own: Own
    setting: int
    stamp: Stamp
    scores_stamp: Stamp
    verified: bool


class _File(msgspec.Struct):
    version: int
    settings: list[Setting]
    cells: list[_Kept]
    # By metric: mean, ends, seeds and episodes of rows, by a hash of all they depend on.
    intervals: dict[str, dict[str, Interval]]
    # By metric: verdicts of tables, by a hash of all they depend on.
    verdicts: dict[str, dict[str, Judged]]


class Shelf:
    """The records of one folder (a run's, or one of records), in brief.

    `briefs` are by file name, and `damaged` holds what is wrong with files that are no records.
    `intervals` and `verdicts` are what tables computed of the scores before.
    """

    def __init__(self, folder: Path) -> None:
        inside = folder / "records"
        self.folder = folder
        self.briefs: dict[str, Brief] = {}
        self.damaged: dict[str, DataError] = {}
        self.intervals: dict[str, dict[str, Interval]] = {}
        self.verdicts: dict[str, dict[str, Judged]] = {}
        self._settings: dict[Setting, Setting] = {}
        self._file = folder / "cache" / FILE if inside.is_dir() else None
        self._inside = inside if inside.is_dir() else folder
        self._opened_ns = time.time_ns()
        self._stamps = _stamps(self._inside)
        names = [n for n in self._stamps if n.endswith(".json") and n != PLAN_FILE]
        kept = self._kept()
        self._fill(sorted(names), kept)
        self._before = (len(kept), *self._state()[1:])

    def _kept(self) -> dict[str, tuple[_Kept, Setting]]:
        if self._file is None:
            return {}
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=_File)
            if found.version != VERSION:
                return {}
            settings = [self._settings.setdefault(s, s) for s in found.settings]
            kept = {k.own.name: (k, settings[k.setting]) for k in found.cells}
        except (OSError, msgspec.DecodeError, IndexError):
            return {}
        self.intervals, self.verdicts = found.intervals, found.verdicts
        return kept

    def _fill(self, names: Sequence[str], kept: Mapping[str, tuple[_Kept, Setting]]) -> None:
        folder = str(self._inside)
        unread = []
        for name in names:
            known = kept.get(name)
            if known is None or known[0].stamp != self._stamps[name]:
                unread.append(name)
                continue
            cell, setting = known
            same = cell.scores_stamp == self._stamps.get(cell.own.scores_file, _NO_FILE)
            self.briefs[name] = Brief(folder, setting, cell.own, cell.verified and same)
        for name, found in zip(unread, spread(self._read, unread), strict=True):
            if isinstance(found, DataError):
                self.damaged[name] = found
                continue
            found.folder = folder
            found.setting = self._settings.setdefault(found.setting, found.setting)
            self.briefs[name] = found
        if unread:
            self.briefs = {n: self.briefs[n] for n in names if n in self.briefs}

    def _read(self, name: str) -> Brief | DataError:
        try:
            return read_brief(self._inside / name)
        except DataError as error:
            return error

    def _state(self) -> tuple[int, int, dict[str, set[str]]]:
        rows = {metric: set(known) for metric, known in self.intervals.items()}
        rows |= {f"verdicts {metric}": set(known) for metric, known in self.verdicts.items()}
        return len(self.briefs), sum(b.verified for b in self.briefs.values()), rows

    def save(self) -> None:
        """Keep what was read for the next command, where the folder is a run's."""
        if self._file is None or not self._file.parent.is_dir() or self._state() == self._before:
            return
        places = {id(s): i for i, s in enumerate(self._settings.values())}
        cells = [
            _Kept(b.own, places[id(b.setting)], self._stamps[n], scores, settled and b.verified)
            for n, b in self.briefs.items()
            if self._settled(self._stamps[n])
            for scores in [self._stamps.get(b.own.scores_file, _NO_FILE)]
            for settled in [self._settled(scores)]
        ]
        data = _File(VERSION, list(self._settings.values()), cells, self.intervals, self.verdicts)
        with contextlib.suppress(OutputError):
            write_bytes(self._file, msgspec.json.encode(data))

    def _settled(self, stamp: Stamp) -> bool:
        return self._opened_ns - stamp[2] > _SETTLED_NS

    def newest(self, slug: str, but: str) -> Brief | None:
        """The newest record of the cell with a file name under a key other than `but`."""
        return next((b for b in self._by_slug.get(slug, ()) if b.key != but), None)

    @cached_property
    def _by_slug(self) -> dict[str, list[Brief]]:
        found: dict[str, list[Brief]] = {}
        for brief in sorted(self.briefs.values(), key=lambda b: b.created, reverse=True):
            found.setdefault(brief.stem.rpartition("-")[0], []).append(brief)
        return found


def find_briefs(folders: Iterable[Path]) -> tuple[list[Brief], list[Shelf]]:
    """What `medbench.records.find_records` finds, in brief, and the shelves it stood on.

    Raises as that does.
    """
    shelves = []
    for folder in folders:
        shelves.append(Shelf(folder))
        if shelves[-1].damaged:
            raise next(iter(shelves[-1].damaged.values()))
        if not shelves[-1].briefs:
            record_files(folder)
    return choose([(s.folder, list(s.briefs.values())) for s in shelves]), shelves


def spread(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order, several at a time: for reading many small files."""

    def some(start: int) -> list[R]:
        return [work(item) for item in items[start : start + _CHUNK]]

    if len(items) <= _CHUNK:
        return some(0)
    with ThreadPoolExecutor(_THREADS) as pool:
        return [found for part in pool.map(some, range(0, len(items), _CHUNK)) for found in part]


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Size, modification and change time of the files of a folder."""
    found = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                # A file that goes away while it is looked at was never there.
                with contextlib.suppress(OSError):
                    is_ = entry.stat()
                    found[entry.name] = (is_.st_size, is_.st_mtime_ns, is_.st_ctime_ns)
    return found
