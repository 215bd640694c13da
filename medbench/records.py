"""Records: one JSON file a cell and one Parquet file of its per-episode scores, and back.

Needs neither torch nor a plugin, so a laptop with only the records can rebuild every table. The
Parquet file is written first and its digest stands in the JSON: a JSON file that can be read is
the sign of a complete record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medbench.errors import DataError, UsageError
from medbench.files import atomic, file_digest, write_json

SCHEMA = 1
# In the folder of a run: which key each cell of its last plan has.
PLAN_FILE = "plan.json"
STATUSES = ("ok", "crash", "oom", "timeout", "non_finite", "contract", "unavailable")
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

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Per-episode metrics, ``(n_episodes,)`` each, in the order of the episodes.

        Raises `DataError` when the file is missing, or is not the one that was recorded.
        """
        path = self.path.parent / str(self.data["scores_file"])
        if not path.is_file():
            raise DataError(f"{self.path}: its scores file {path.name} is missing.")
        if file_digest(path) != self.data["scores_digest"]:
            raise DataError(
                f"{path}: the scores were changed after they were recorded; delete both files of "
                "this record and run the suite again."
            )
        table = pq.read_table(path)
        return {name: table.column(name).to_numpy() for name in table.column_names}


def slug(*parts: object) -> str:
    """A file name of the given words; other characters become dashes."""
    words = [re.sub(r"[^A-Za-z0-9._@]+", "-", str(p)).strip("-.") for p in parts]
    return "_".join(w for w in words if w)[:150]


def write_record(
    path: Path, data: Mapping[str, Any], scores: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Any]:
    """Write a record to `path` (``.json``), and its scores beside it; returns the document.

    Raises `OutputError`, with nothing half-written.
    """
    document = dict(data)
    if scores is not None:
        target = path.with_suffix(".parquet")
        with atomic(target) as temporary:
            pq.write_table(
                pa.table({k: np.asarray(v) for k, v in scores.items()}),
                temporary,
                compression="zstd",
            )
        document |= {"scores_file": target.name, "scores_digest": file_digest(target)}
    write_json(path, document)
    return document


def read_record(path: Path) -> Record:
    """The record in a file. Raises `DataError` when it is not one this version can read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable record: {error}.") from error
    if not isinstance(data, dict) or any(k not in data for k in _REQUIRED):
        raise DataError(f"{path}: not a record: it lacks one of {', '.join(_REQUIRED)}.")
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
    if data["status"] == "ok" and "scores_file" not in data:
        raise DataError(f"{path}: status is ok, and it names no scores file.")
    return Record(data, path)


def find_records(folders: Iterable[Path]) -> list[Record]:
    """The record that counts of every cell in `folders` (each a run's folder or one of records).

    A folder that a run wrote may hold records of earlier settings. Of the cells in the run's last
    plan the record with the planned key counts; of others the newest, so that a cell that failed
    and was then repaired has not failed. Raises `UsageError` for a folder without records.
    """
    chosen: dict[str, Record] = {}
    for folder in folders:
        for record in _current(folder):
            key = json.dumps([identity(record), record.data.get("hardware", {}).get("class")])
            if key not in chosen or _created(record) > _created(chosen[key]):
                chosen[key] = record
    return list(chosen.values())


def _current(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    inside = folder / "records" if (folder / "records").is_dir() else folder
    paths = sorted(p for p in inside.glob("*.json") if not p.name.startswith("."))
    paths = [p for p in paths if p.name != PLAN_FILE]
    if not paths:
        raise UsageError(f"{folder} holds no records; 'medbench run SUITE --out DIR' makes them.")
    try:
        planned: dict[str, str] = json.loads((folder / PLAN_FILE).read_text())
    except (OSError, ValueError):
        planned = {}
    cells: dict[str, list[Record]] = {}
    for path in paths:
        record = read_record(path)
        cell = path.stem.rpartition("-")[0]
        if cell not in planned or record.data["key"] == planned[cell]:
            cells.setdefault(identity(record), []).append(record)
    found = []
    for records in cells.values():
        records.sort(key=_created, reverse=True)
        # What came last tells whether the cell works; if it does, every machine's times count.
        found += [r for r in records if r.ok] if records[0].ok else records[:1]
    return found


def _created(record: Record) -> str:
    return str(record.data.get("created"))


def identity(record: Record) -> str:
    """What makes two records the same row and seed of one table; hardware apart."""
    cell = record.cell
    parts = [cell[k] for k in _CELL]
    parts += [cell.get("backbone_label"), cell.get("algorithm_label"), cell.get("sources")]
    return json.dumps(parts)
