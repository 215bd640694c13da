"""Reads one side of a gate: the folder of a run, a folder with rounds of runs, or a baseline file.

A file that is damaged is an error and never a cell less: a gate that leaves out what it cannot read
would pass.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medbench.errors import DataError, UsageError
from medbench.gate.baseline import read_baseline
from medbench.gate.measurements import (
    CALIBRATIONS,
    STAGES,
    WAITS,
    CellResult,
    Identity,
    Round,
    Side,
)
from medbench.records import PLAN_FILE, Record, find_records, read_scores

ROUNDS = "rounds"


def read_side(path: Path, metric: str) -> Side:
    """The measurements at `path`. Raises `UsageError` or `DataError` that names the file."""
    if path.is_file():
        return read_baseline(path, metric)
    if not path.exists():
        raise UsageError(
            f"There is no {path}. Give the output folder of a run, or a baseline file that "
            "'medbench gate --update' wrote."
        )
    rounds = path / ROUNDS
    folders = sorted(p for p in rounds.iterdir() if p.is_dir()) if rounds.is_dir() else [path]
    if not folders:
        raise UsageError(f"{rounds} holds no rounds; 'medbench bench' makes them.")
    side = read_folders(folders, metric, str(path))
    suite = next(
        (f / "suite.yaml" for f in (folders[0], path) if (f / "suite.yaml").is_file()), None
    )
    return dataclasses.replace(side, suite=str(suite) if suite else None)


def read_folders(folders: Sequence[Path], metric: str, name: str) -> Side:
    """One side of the runs in `folders`; a cell that several measured has as many rounds."""
    found: dict[Identity, list[CellResult]] = {}
    unmeasured: dict[str, None] = {}
    for folder in folders:
        for cell in _run(folder, metric):
            found.setdefault(cell.identity, []).append(cell)
        unmeasured |= dict.fromkeys(_unmeasured(folder))
    cells = {identity: _merge(same) for identity, same in found.items()}
    created = max((r.created for c in cells.values() for r in c.rounds), default="")
    return Side(name, cells, tuple(unmeasured), metric, created=created)


def _run(folder: Path, metric: str) -> list[CellResult]:
    """One result for each cell of a run; of several machines, the one measured last."""
    newest: dict[Identity, CellResult] = {}
    for record in sorted(find_records([folder]), key=lambda r: r.created):
        cell = cell_result(record, metric)
        newest[cell.identity] = cell
    return list(newest.values())


def cell_result(record: Record, metric: str) -> CellResult:
    """What a gate needs of a record. Raises `DataError` when its scores are not as recorded."""
    data = record.data
    if not record.ok:
        return CellResult(record.cell, str(data["status"]), str(data.get("error", "")))
    path = record.path.parent / str(data["scores_file"])
    scores = read_scores(path, str(data["scores_digest"]), [metric])
    if metric not in scores:
        known = ", ".join(read_scores(path, str(data["scores_digest"])))
        raise DataError(f"{record.path}: no metric {metric!r}; it has {known}.")
    target = data.get("ingredients", {}).get("target", {})
    return CellResult(
        record.cell,
        "ok",
        scores=tuple(scores[metric].tolist()),
        episodes=str(target.get("episodes", "")),
        data=str(target.get("dataset", {}).get("digest", "")),
        training=bool(data.get("training")),
        hardware=record.hardware,
        torch=str(data.get("versions", {}).get("torch", "")),
        rounds=(_round(record),),
    )


def _round(record: Record) -> Round:
    costs: Mapping[str, Any] = record.data.get("costs", {})
    raw = costs.get("episodes")
    times: dict[str, tuple[float, ...]] = {}
    waits: dict[str, tuple[float, ...]] = {}
    for name, stages in STAGES.items():
        try:
            if raw:
                columns = [np.asarray(raw[s], dtype=np.float64) for s in stages]
                times[name] = tuple(np.sum(columns, axis=0).tolist())
                if WAITS[name] in raw:
                    waits[name] = _waits(raw[WAITS[name]], times[name])
            elif name in costs.get("times", {}):
                times[name] = (float(costs["times"][name]["median"]),)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{record.path}: its times cannot be used: {error!r}.") from error
        if not all(np.isfinite(times.get(name, ()))):
            raise DataError(f"{record.path}: a time of {name} is not a finite number.")
    calibration = costs.get("calibration", {})
    return Round(
        created=record.created,
        times=times,
        waits=waits,
        calibration={k: tuple(calibration[k]) for k in CALIBRATIONS if calibration.get(k)},
        calibration_version=calibration.get("version"),
        memory={k: int(v) for k, v in costs.get("memory", {}).items() if v is not None},
        load=costs.get("load_average"),
    )


def _waits(raw: Sequence[float], times: Sequence[float]) -> tuple[float, ...]:
    """The waits for a core; none where one exceeds its time, as records of old may say."""
    found = tuple(float(v) for v in raw)
    # Times and waits are rounded in the record.
    return found if all(w < t + 1e-6 for w, t in zip(found, times, strict=True)) else ()


def _merge(same: Sequence[CellResult]) -> CellResult:
    """One result of several rounds; a cell that failed in one of them has failed."""
    failed = [c for c in same if not c.ok]
    if failed:
        last = failed[-1]
        times = f" (in {len(failed)} of {len(same)} rounds)" if len(same) > 1 else ""
        return CellResult(last.cell, last.status, last.error + times)
    last = same[-1]
    alike = [c for c in same if (c.episodes, c.data, c.hardware) == _place(last)]
    scores = np.array([c.scores for c in alike if len(c.scores) == len(last.scores)])
    wobble = float(scores.mean(axis=1).std(ddof=1)) if len(scores) > 1 else 0.0
    equal = bool((scores == scores[0]).all())
    return CellResult(
        last.cell,
        "ok",
        scores=last.scores if equal else tuple(scores.mean(axis=0).tolist()),
        wobble=wobble,
        episodes=last.episodes,
        data=last.data,
        training=last.training,
        hardware=last.hardware,
        torch=last.torch,
        rounds=tuple(r for c in alike for r in c.rounds),
    )


def _place(cell: CellResult) -> tuple[str, str, str | None]:
    return cell.episodes, cell.data, cell.hardware


def _unmeasured(folder: Path) -> list[str]:
    """Names of cells that the run planned and that have no record under the planned key."""
    try:
        planned = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / PLAN_FILE}: not a readable plan: {error}.") from error
    if not isinstance(planned, dict):
        raise DataError(f"{folder / PLAN_FILE}: not a plan: it holds no names of cells.")
    inside = folder / "records" if (folder / "records").is_dir() else folder
    return [
        slug
        for slug, key in planned.items()
        if not (inside / f"{slug}-{str(key)[:12]}.json").is_file()
    ]
