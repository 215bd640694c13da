"""Records: a JSON file a cell, and beside it its scores, its answers by group and a picture.

Needs neither torch nor a plugin, so a laptop with only the records can rebuild every table.
These are written first, and their digests stand in the JSON: a JSON file that can be read
is the sign of a complete record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from medbench.errors import FAILURES, DataError, UsageError
from medbench.files import atomic, bytes_digest, file_digest, write_bytes, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
# The ending of the file with the right answers of each patient or image.
GROUPS = ".groups.parquet"
# The ending of the file with a picture of some answers.
PICTURE = ".webp"
# In the folder of a run: which key each cell of its last plan has.
PLAN_FILE = "plan.json"
# The longest file name of a job, before its key.
SLUG = 150
STATUSES = ("ok", *FAILURES)
_REQUIRED = ("schema", "key", "status", "cell")
_CELL = ("protocol", "protocol_version", "target", "way", "shot", "backbone", "algorithm", "seed")


@dataclass(frozen=True)
class Record:
    """A record in memory: the JSON document, and the folder it was read from."""

    data: Mapping[str, Any]
    path: Path

    @property
    def ok(self) -> bool:
        """Whether the cell was measured."""
        return bool(self.data["status"] == "ok")

    @property
    def cell(self) -> Mapping[str, Any]:
        """Which cell this is: protocol, target, backbone, algorithm, seed and their labels."""
        found: Mapping[str, Any] = self.data["cell"]
        return found

    @property
    def key(self) -> str:
        """The content key it was recorded under."""
        return str(self.data["key"])

    @property
    def created(self) -> str:
        """When it was written; texts sort as times do."""
        return str(self.data.get("created"))

    @property
    def stem(self) -> str:
        """The name of its file, without the ending."""
        return self.path.stem

    @property
    def hardware(self) -> str | None:
        """The class of the machine that measured it; a failed record has none."""
        found = self.data.get("hardware", {}).get("class")
        return None if found is None else str(found)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two records the same row and seed of one table; hardware apart."""
        return identity(self.cell)

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Per-episode metrics, ``(n_episodes,)`` each, in the order of the episodes.

        Raises `DataError` when the file is missing, or is not the one that was recorded.
        """
        path = self.path.parent / str(self.data["scores_file"])
        return read_scores(path, str(self.data["scores_digest"]))


def read_scores(
    path: Path, digest: str, columns: Sequence[str] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Metrics of a scores file, all or those of `columns` that it has.

    Raises `DataError` when the file is missing, or its bytes have another digest.
    """
    # Not at the top: commands that read no scores start a quarter of a second sooner.
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What is checked is what is read: the file is opened once.
    data = checked_bytes(path, digest)
    file = pq.ParquetFile(pa.BufferReader(data))
    # Threads would cost more than the few kilobytes of one record.
    table = file.read(columns=columns, use_threads=False)
    # Not `to_numpy`, which imports pandas.
    arrays = {n: np.from_dlpack(table.column(n).combine_chunks()) for n in table.column_names}
    return {n: np.asarray(array, dtype=np.float64) for n, array in arrays.items()}


def checked_bytes(path: Path, digest: str) -> bytes:
    """The bytes of a file that a record names. Raises `DataError` as `read_scores` does."""
    what = "groups" if path.name.endswith(GROUPS) else "scores"
    try:
        data = path.read_bytes()
    except OSError as error:
        stem = path.name.removesuffix(GROUPS).removesuffix(".parquet")
        record = path.with_name(f"{stem}.json")
        raise DataError(f"{record}: its {what} file {path.name} is missing.") from error
    if bytes_digest(data) != digest:
        raise DataError(
            f"{path}: the {what} were changed after they were recorded; delete the files of this "
            "record and run the suite again."
        )
    return data


def slug(*parts: object, limit: int | None = SLUG) -> str:
    """A file name of the given words; other characters become dashes."""
    words = [re.sub(r"[^A-Za-z0-9._@]+", "-", str(p)).strip("-.") for p in parts]
    return "_".join(w for w in words if w)[:limit]


def write_record(
    path: Path,
    data: Mapping[str, Any],
    scores: Mapping[str, NDArray[Any]] | None = None,
    groups: tuple[str, Mapping[str, NDArray[Any]]] | None = None,
    picture: bytes | None = None,
) -> dict[str, Any]:
    """Write a record to `path` (``.json``), and its scores beside it; returns the document.

    `groups`: what groups queries (``patient`` or ``image``), and ``group``, ``answers`` and
    ``right`` of each. `picture`: a WebP file that shows some answers. Raises `OutputError`, with
    nothing half-written.
    """
    document = dict(data)
    if scores is not None:
        target = path.with_suffix(".parquet")
        _write_columns(target, scores)
        document |= {"scores_file": target.name, "scores_digest": file_digest(target)}
    if groups is not None:
        kind, counts = groups
        target = path.with_name(f"{path.stem}{GROUPS}")
        _write_columns(target, counts)
        document["groups"] = {"kind": kind, "file": target.name, "digest": file_digest(target)}
    if picture is not None:
        target = path.with_suffix(PICTURE)
        write_bytes(target, picture)
        document["picture"] = {"file": target.name, "digest": bytes_digest(picture)}
    write_json(path, document)
    return document


def _write_columns(target: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic(target) as temporary:
        pq.write_table(
            pa.table({k: _column(v) for k, v in columns.items()}),
            temporary,
            compression="zstd",
            # For a few hundred numbers they cost more, in bytes and in time to read, than they
            # save.
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )


def _column(values: NDArray[Any]) -> Any:
    """Numbers as Arrow's array; from its own constructor, since `pyarrow.array` imports pandas."""
    import numpy as np
    import pyarrow as pa

    numbers = np.ascontiguousarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        raise TypeError(
            f"a column must be a row of numbers, and is {numbers.shape} {numbers.dtype}"
        )
    kind, buffer = pa.from_numpy_dtype(numbers.dtype), pa.py_buffer(numbers)
    return pa.Array.from_buffers(kind, len(numbers), [None, buffer])


def read_record(path: Path) -> Record:
    """The record in a file. Raises `DataError` when it is not one this version can read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable record: {error}.") from error
    if not isinstance(data, dict) or any(k not in data for k in _REQUIRED):
        raise DataError(f"{path}: not a record: it lacks one of {', '.join(_REQUIRED)}.")
    check_document(data, path)
    return Record(data, path)


def check_document(data: Mapping[str, Any], path: Path) -> None:
    """Raise `DataError` for a document that is no record this version can read."""
    if not isinstance(data["schema"], int) or not 1 <= data["schema"] <= SCHEMA:
        raise DataError(
            f"{path}: record schema {data['schema']!r}; this medbench reads 1 to {SCHEMA}. "
            "A newer medbench wrote it: upgrade."
        )
    if data["status"] not in STATUSES:
        raise DataError(f"{path}: status {data['status']!r} is not one of {', '.join(STATUSES)}.")
    missing = [k for k in _CELL if k not in data["cell"]]
    if missing:
        raise DataError(f"{path}: its cell lacks {', '.join(missing)}.")
    if data["status"] == "ok" and not data.get("scores_file"):
        raise DataError(f"{path}: status is ok, and it names no scores file.")


class Found(Protocol):
    """What choosing between records looks at."""

    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def created(self) -> str: ...  # noqa: D102
    @property
    def stem(self) -> str: ...  # noqa: D102
    @property
    def hardware(self) -> str | None: ...  # noqa: D102
    @property
    def identity(self) -> tuple[Any, ...]: ...  # noqa: D102


F = TypeVar("F", bound=Found)


def find_records(folders: Iterable[Path]) -> list[Record]:
    """The record that counts of every cell in `folders` (each a run's folder or one of records).

    Raises `UsageError` for a folder without records.
    """
    return choose([(f, [read_record(p) for p in record_files(f)]) for f in folders])


def record_files(folder: Path) -> list[Path]:
    """The JSON files of the records in a run's folder or in one of records, by name.

    Raises `UsageError` when there are none.
    """
    if not folder.is_dir():
        what = "is a file, and not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"{folder} {what}. Name the output folder of a run; 'medbench run SUITE --out DIR' "
            "makes one."
        )
    inside = folder / "records" if (folder / "records").is_dir() else folder
    paths = sorted(p for p in inside.glob("*.json") if not p.name.startswith("."))
    paths = [p for p in paths if p.name != PLAN_FILE]
    if not paths:
        raise UsageError(f"{folder} holds no records; 'medbench run SUITE --out DIR' makes them.")
    return paths


def choose(folders: Iterable[tuple[Path, Sequence[F]]]) -> list[F]:
    """The record that counts of every cell, of the records of each folder.

    A folder that a run wrote may hold records of earlier settings. Of the cells in the run's last
    plan the record with the planned key counts; of others the newest, so that a cell that failed
    and was then repaired has not failed.
    """
    chosen: dict[tuple[Any, ...], F] = {}
    for folder, records in folders:
        for record in _current(folder, records):
            key = (record.identity, record.hardware)
            if key not in chosen or record.created > chosen[key].created:
                chosen[key] = record
    return list(chosen.values())


def _current(folder: Path, records: Sequence[F]) -> list[F]:
    try:
        planned: dict[str, str] = json.loads((folder / PLAN_FILE).read_text())
    except (OSError, ValueError):
        planned = {}
    cells: dict[tuple[Any, ...], list[F]] = {}
    for record in records:
        cell = record.stem.rpartition("-")[0]
        if cell not in planned or record.key == planned[cell]:
            cells.setdefault(record.identity, []).append(record)
    found: list[F] = []
    for same in cells.values():
        same.sort(key=lambda r: r.created, reverse=True)
        # What came last tells whether the cell works; if it does, every machine's times count.
        found += [r for r in same if r.ok] if same[0].ok else same[:1]
    return found


def identity(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """The fields of a cell that tell it from other cells."""
    sources = cell.get("sources")
    return (
        *(cell[k] for k in _CELL),
        cell.get("backbone_label"),
        cell.get("algorithm_label"),
        None if sources is None else tuple(sources),
    )
