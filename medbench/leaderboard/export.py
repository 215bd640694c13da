"""Records as one tidy table, for an analysis of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from medbench.briefs import Brief
from medbench.errors import UsageError
from medbench.files import atomic
from medbench.leaderboard.names import METRICS
from medbench.records import read_scores
from medbench.shelf import find_briefs

_COSTS = (
    "adaptation_s", "adaptation_p95_s", "adaptation_iqr_s", "prediction_s", "feature_s",
    "peak_host_bytes", "peak_host_added_bytes", "peak_device_bytes", "peak_device_reserved_bytes",
    "energy_j", "parameters_adapted", "model_bytes", "train_s", "train_images",
)  # fmt: skip
_RECORDS = 200


def export(folders: Sequence[Path], out: Path, of: Literal["episodes", "cells"]) -> int:
    """Write a line for each episode, or each cell, of the records in `folders`; returns how many.

    `out` ends with ``.parquet`` or ``.csv``. Failed cells have lines of their own in a table of
    cells, and none in one of episodes. Raises `UsageError`, `DataError` or `OutputError`.
    """
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    if out.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{out}: the name must end with .parquet or .csv.")
    briefs, _ = find_briefs(folders)
    briefs = sorted(briefs, key=lambda b: b.own.name)
    schema = _schema(of)
    n = 0
    with atomic(out) as temporary:
        if out.suffix == ".parquet":
            writer: Any = pq.ParquetWriter(temporary, schema, compression="zstd")
        else:
            writer = pc.CSVWriter(temporary, schema)
        with writer:
            for start in range(0, len(briefs), _RECORDS):
                some = briefs[start : start + _RECORDS]
                lines = [
                    line for b in some for line in (_lines(b) if of == "episodes" else [_cell(b)])
                ]
                if lines:
                    writer.write_table(pa.Table.from_pylist(lines, schema=schema))
                n += len(lines)
    return n


def _schema(of: str) -> Any:
    import pyarrow as pa

    names = ("protocol", "target", "backbone", "algorithm", "hardware", "data", "sources", "key")
    whole = ("protocol_version", "way", "shot", "seed")
    fields = [(n, pa.string()) for n in names] + [(n, pa.int64()) for n in whole]
    fields += [("transductive", pa.bool_()), ("weights", pa.string())]
    if of == "episodes":
        fields += [("episode", pa.int64())] + [(m, pa.float64()) for m in METRICS]
    else:
        fields += [("status", pa.string()), ("error", pa.string()), ("overlap", pa.string())]
        fields += [("n_episodes", pa.int64())]
        fields += [(m, pa.float64()) for m in METRICS] + [(c, pa.float64()) for c in _COSTS]
    return pa.schema(fields)


def _names(brief: Brief) -> dict[str, Any]:
    s, own = brief.setting, brief.own
    return {
        "protocol": s.protocol,
        "protocol_version": s.protocol_version,
        "target": s.target.rpartition(":")[0],
        "way": s.way,
        "shot": s.shot,
        "backbone": own.backbone_label or own.backbone,
        "algorithm": own.algorithm_label or own.algorithm,
        "seed": own.seed,
        "hardware": s.hardware,
        "data": s.data or None,
        "sources": None if s.sources is None else " ".join(s.sources),
        "transductive": s.transductive if brief.ok else None,
        "weights": own.weights,
        "key": brief.key,
    }


def _scores(brief: Brief) -> dict[str, Any]:
    return read_scores(Path(brief.folder, brief.own.scores_file), brief.own.scores_digest)


def _lines(brief: Brief) -> Iterator[dict[str, Any]]:
    if not brief.ok:
        return
    names = _names(brief)
    columns = {m: [_known(v) for v in values.tolist()] for m, values in _scores(brief).items()}
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        yield {**names, "episode": i, **dict(zip(columns, row, strict=True))}


def _cell(brief: Brief) -> dict[str, Any]:
    import numpy as np

    own = brief.own
    found = {**_names(brief), "status": own.status, "error": own.error or None}
    found["overlap"] = "; ".join(brief.setting.overlap) or None
    found |= {name: getattr(own, name) for name in _COSTS}
    if brief.ok:
        scores = _scores(brief)
        found["n_episodes"] = len(next(iter(scores.values())))
        found |= {m: None if np.isnan(v).all() else float(np.nanmean(v)) for m, v in scores.items()}
    return found


def _known(value: float) -> float | None:
    # What an episode does not have is missing in a table, and not a number that is none.
    return None if value != value else value
