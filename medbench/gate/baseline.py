"""The committed baseline: the measurements of a run in one plain JSON file, a line for each cell.

It holds what a gate needs of a run's records and no more, so that it can be committed and
its changes read in a review. A digest over its content tells a file that was cut or edited.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench import __version__
from medbench.errors import DataError, UsageError
from medbench.files import bytes_digest, canonical, write_bytes
from medbench.gate.measurements import CellResult, Round, Side

SCHEMA = 1
_KIND = "medbench-baseline"


def write_baseline(path: Path, side: Side, commit: str | None = None) -> None:
    """Write `side` to `path`, atomically.

    Raises `UsageError` when nothing was measured: a gate against such a file could never fail.
    """
    bad = [c.title for c in side.cells.values() if not c.ok]
    if not side.cells or len(bad) == len(side.cells):
        raise UsageError(f"{side.name}: no cell was measured; a baseline of it would hold nothing.")
    if bad or side.unmeasured:
        names = [*bad, *side.unmeasured]
        raise UsageError(
            f"{side.name}: {len(names)} of {side.n_planned} cells were not measured "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); a baseline without them "
            "would never miss them. Repair the run first, or run a suite without them."
        )
    cells = [_cell_out(c) for c in side.cells.values()]
    head = {
        "kind": _KIND,
        "schema": SCHEMA,
        "medbench": __version__,
        "metric": side.metric,
        "created": side.created,
        "commit": commit,
        "digest": _digest(side.metric, cells),
    }
    lines = [f"{json.dumps(k)}: {json.dumps(v)}," for k, v in head.items()]
    body = ",\n".join(json.dumps(c, separators=(",", ":"), allow_nan=False) for c in cells)
    write_bytes(path, ("{\n" + "\n".join(lines) + '\n"cells": [\n' + body + "\n]\n}\n").encode())


def read_baseline(path: Path, metric: str) -> Side:
    """The measurements in a baseline file.

    Raises `DataError` for a file that is no baseline, is newer than this medbench, or was changed
    by hand, and `UsageError` where it holds the scores of another metric.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable baseline file: {error}.") from error
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        raise DataError(
            f"{path}: not a baseline file; 'medbench gate {path} RUN --update' writes one."
        )
    if not isinstance(data.get("schema"), int) or not 1 <= data["schema"] <= SCHEMA:
        raise DataError(
            f"{path}: baseline schema {data.get('schema')!r}; this medbench reads 1 to {SCHEMA}. "
            "A newer medbench wrote it: upgrade."
        )
    if not isinstance(data.get("cells"), list) or data.get("digest") != _digest(
        data.get("metric"), data["cells"]
    ):
        raise DataError(
            f"{path}: its content is not what was written: it was cut, merged or edited. Restore "
            f"it, or write it anew with 'medbench gate {path} RUN --update'."
        )
    if data["metric"] != metric:
        raise UsageError(
            f"{path} holds {data['metric']}, and the thresholds ask for {metric}. Write it "
            "anew with --update, or set accuracy.metric."
        )
    try:
        cells = [_cell_in(c) for c in data["cells"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a cell of it cannot be used: {error!r}.") from error
    return Side(
        str(path),
        {c.identity: c for c in cells},
        (),
        metric,
        commit=data.get("commit"),
        created=str(data.get("created", "")),
    )


def commit_here() -> str | None:
    """The commit that is checked out, with ``+`` when files were changed since; None outside git.

    In CI it is what the environment says, as a checkout there may be a merge of its own.
    """
    told = os.environ.get("GITHUB_SHA") or os.environ.get("CI_COMMIT_SHA")
    if told:
        return told
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if changed else "")


def _digest(metric: Any, cells: Any) -> str:
    return bytes_digest(canonical({"metric": metric, "cells": cells}))


def _cell_out(cell: CellResult) -> dict[str, Any]:
    return {
        "cell": dict(cell.cell),
        "status": cell.status,
        "scores": [None if math.isnan(v) else v for v in cell.scores],
        "wobble": cell.wobble,
        "episodes": cell.episodes,
        "data": cell.data,
        "training": cell.training,
        "hardware": cell.hardware,
        "torch": cell.torch,
        "rounds": [
            {
                "created": r.created,
                "times": _rounded(r.times),
                "waits": _rounded(r.waits),
                "calibration": {k: list(v) for k, v in r.calibration.items()},
                "calibration_version": r.calibration_version,
                "memory": dict(r.memory),
                "load": r.load,
            }
            for r in cell.rounds
        ],
    }


def _cell_in(data: Mapping[str, Any]) -> CellResult:
    return CellResult(
        cell=data["cell"],
        status=str(data["status"]),
        scores=tuple(math.nan if v is None else float(v) for v in data["scores"]),
        wobble=float(data["wobble"]),
        episodes=str(data["episodes"]),
        data=str(data["data"]),
        training=bool(data["training"]),
        hardware=data["hardware"],
        torch=str(data["torch"]),
        rounds=tuple(
            Round(
                created=str(r["created"]),
                times=_floats(r["times"]),
                waits=_floats(r["waits"]),
                calibration=_floats(r["calibration"]),
                calibration_version=r["calibration_version"],
                memory={k: int(v) for k, v in r["memory"].items()},
                load=r["load"],
            )
            for r in data["rounds"]
        ),
    )


def _rounded(values: Mapping[str, tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: [round(v, 7) for v in found] for name, found in values.items()}


def _floats(values: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(float(v) for v in found) for name, found in values.items()}
