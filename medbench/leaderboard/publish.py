"""A published board: a folder with a suite, records, and the tables made from them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.errors import DataError, UsageError
from medbench.files import write_bytes
from medbench.leaderboard.audit import Auditor
from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import SUITE, page_text
from medbench.leaderboard.render import render
from medbench.records import GROUPS, PICTURE, Record, find_records, read_record, record_files

# What a board's tables are called. The first three are always there; others where they are wanted.
FILES = {
    "md": "LEADERBOARD.md",
    "csv": "leaderboard.csv",
    "html": "index.html",
    "json": "leaderboard.json",
    "latex": "leaderboard.tex",
}
_ALWAYS = ("md", "csv", "html")


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file of a board, or with one that shall be added to it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def init(folder: Path, suite: bytes) -> None:
    """Make the folder of a board. Raises `UsageError` when there is one, `OutputError`."""
    if (folder / SUITE).exists():
        raise UsageError(f"{folder} is a board already; 'medbench board add' adds records to it.")
    write_bytes(folder / SUITE, suite)
    (folder / "records").mkdir(exist_ok=True)


def require_board(folder: Path) -> Path:
    """The suite of a board's folder. Raises `UsageError` when it is none."""
    if not (folder / SUITE).is_file():
        raise UsageError(
            f"{folder} is not a board: it has no {SUITE}. 'medbench board init {folder} --suite "
            "SUITE' makes one."
        )
    return folder / SUITE


@dataclass(frozen=True)
class Added:
    """How many records a board got, how many it had, and the pictures that were left behind."""

    new: int
    same: int
    pictures_left: int


def add(
    folder: Path, sources: Sequence[Path], auditor: Auditor, *, pictures: bool = False
) -> tuple[Added, list[Fault]]:
    """Copy records into a board; returns what was done, and what is wrong.

    `sources` are records, folders of them, or a run's. Query images stay behind without
    `pictures`. With any fault nothing is copied. Raises `UsageError` for a source without records,
    `OutputError`.
    """
    there = folder / "records"
    faults: list[Fault] = []
    # Those that are there come first: what is new must agree with them.
    for path in _files(there):
        faults += [Fault(path.name, f"(of the board itself) {w}") for w in auditor.faults(path)]
    new: list[tuple[Path, bytes]] = []
    n_same = n_left = 0
    for path in _chosen(sources, faults):
        wrong = auditor.faults(path)
        faults += [Fault(path.name, what) for what in wrong]
        if wrong:
            continue
        names = _own_files(read_record(path))
        if not pictures:
            kept = [n for n in names if not n.endswith(PICTURE)]
            n_left += len(names) - len(kept)
            names = kept
        files = {n: path.with_name(n).read_bytes() for n in names}
        known = {name for name in files if (there / name).exists()}
        if any((there / name).read_bytes() != files[name] for name in known):
            faults.append(
                Fault(path.name, "the board has another record of this key. Remove that one first.")
            )
        else:
            n_same += path.name in known
            new += [(there / name, body) for name, body in files.items() if name not in known]
    if faults:
        return Added(0, n_same, 0), faults
    # Scores first: a document is the sign of a complete record.
    for target, body in sorted(new, key=lambda pair: pair[0].suffix, reverse=True):
        write_bytes(target, body)
    return Added(sum(t.suffix == ".json" for t, _ in new), n_same, n_left), []


def _chosen(sources: Sequence[Path], faults: list[Fault]) -> list[Path]:
    """The files of the records that count; of damaged ones, all, for the audit to tell."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            try:
                found += [record.path for record in find_records([source])]
            except DataError:
                found += record_files(source)
        elif source.suffix == ".json" and source.is_file():
            found.append(source)
        else:
            what = "is neither a record (.json) nor a folder of records"
            raise UsageError(f"{source} {what if source.exists() else 'does not exist'}.")
    names = [p.name for p in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    faults += [Fault(name, "it is given twice.") for name in twice]
    return found


def _own_files(record: Record) -> list[str]:
    """Names of the files of a record without faults; a picture that is not there is none."""
    names = [record.path.name]
    if record.ok:
        names.append(f"{record.stem}.parquet")
        names += [f"{record.stem}{GROUPS}"] if record.data.get("groups") else []
        picture = record.path.with_suffix(PICTURE)
        names += [picture.name] if record.data.get("picture") and picture.exists() else []
    return names


def _files(folder: Path) -> list[Path]:
    return record_files(folder) if any(folder.glob("*.json")) else []


def tables(folder: Path, forms: Sequence[str] = ()) -> dict[str, str]:
    """The tables of a board's records, by file name, in the forms it has and those of `forms`.

    Raises `UsageError` or `DataError` when the records make none.
    """
    wanted = [f for f in FILES if f in (*_ALWAYS, *forms) or (folder / FILES[f]).exists()]
    # Not the board's folder itself: a run's cache there would be looked into.
    records = [folder / "records"]
    board = board_of(records)
    texts = {f: page_text(board, records) if f == "html" else render(board, f) for f in wanted}
    return {FILES[form]: text.rstrip("\n") + "\n" for form, text in texts.items()}


def build(folder: Path, forms: Sequence[str] = ()) -> list[str]:
    """Write the tables of a board; returns the names of those that changed.

    Raises `UsageError` or `DataError` when the records make none, `OutputError`.
    """
    changed = []
    for name, text in tables(folder, forms).items():
        path = folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            write_bytes(path, text.encode())
            changed.append(name)
    return changed


def check(folder: Path, auditor: Auditor) -> list[Fault]:
    """All that is wrong with a board: its records, and tables that are not what these make.

    Raises `UsageError` for a board without records.
    """
    faults = [
        Fault(path.name, what)
        for path in record_files(folder / "records")
        for what in auditor.faults(path)
    ]
    if faults:
        return faults
    known = {n for p in record_files(folder / "records") for n in _own_files(read_record(p))}
    faults += [
        Fault(path.name, "it belongs to no record.")
        for path in sorted((folder / "records").iterdir())
        if path.name not in known
    ]
    if faults:
        return faults
    for name, text in tables(folder).items():
        path = folder / name
        if not path.exists():
            faults.append(Fault(name, "it is missing. 'medbench board build' makes it."))
        elif path.read_bytes() != text.encode():
            faults.append(Fault(name, _first_difference(path.read_text("utf-8", "replace"), text)))
    return faults


def _first_difference(there: str, made: str) -> str:
    lines = list(difflib.unified_diff(there.splitlines(), made.splitlines(), n=0, lineterm=""))
    # After the two file names and the first place, the line that is there and the one it should be.
    shown = [line[:160] for line in lines[3:] if line[:1] in "+-"]
    gone = next((s[1:] for s in shown if s.startswith("-")), "nothing")
    new = next((s[1:] for s in shown if s.startswith("+")), "nothing")
    return f"the records make another table. It has {gone!r}, and they make {new!r}."
