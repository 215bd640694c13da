"""Boards as text: a terminal table, Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pandas as pd
from tabulate import tabulate

from medbench.leaderboard.table import Board, Row, Table

FORMATS = ("table", "md", "csv", "json")
_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "auroc": "AUROC",
    "f1": "macro F1",
    "nll": "NLL",
    "ece": "ECE",
    "average_precision": "mean AP",
    "grade_error": "grade error",
    "kappa": "weighted kappa",
}
# Printed as they are; the others are shares, printed in per cent.
_RAW = ("nll", "grade_error", "kappa")


def render(board: Board, form: str) -> str:
    """The board in one of `FORMATS`."""
    if form == "csv":
        text: str = _frame(board).to_csv(index=False, lineterminator="\n")
        return text
    if form == "json":
        return json.dumps(dataclasses.asdict(board), indent=1, allow_nan=False)
    blocks = []
    for table in board.tables:
        title = f"## {table.title}\n" if form == "md" else f"{table.title}\n"
        body = tabulate(
            [[_escape(c, form) for c in cells] for cells in _cells(table)],
            headers=_headers(table),
            tablefmt="github" if form == "md" else "rounded_outline",
            disable_numparse=True,
            colalign=("left", "left", *["right"] * (len(_headers(table)) - 2)),
        )
        facts = _facts(table)
        blocks.append(f"{title}\n{body}\n\n{facts}" if form == "md" else f"{title}{body}\n{facts}")
    return "\n\n".join([*blocks, _notes(board, form)])


def _headers(table: Table) -> list[str]:
    head = ["algorithm", "backbone", f"{_NAMES.get(table.metric, table.metric)} [95 %]"]
    if not table.target:
        head += ["rank", "targets"]
    head += ["adapt ms (p95)", "predict ms", "host MiB"]
    if _has_device(table):
        head.append("device MiB")
    return [*head, "adapted", "train s", "train images", "seeds x episodes"]


def _has_device(table: Table) -> bool:
    return any(r.peak_device_bytes is not None for r in table.rows)


def _cells(table: Table) -> list[list[str]]:
    lines = []
    for row in table.rows:
        name = row.algorithm + (" (T)" if row.transductive else "")
        line = [name, row.backbone, _score(row, table.metric)]
        if not table.target:
            line += [_number(row.mean_rank, 1.0, 1), f"{row.targets_ok}/{row.targets}"]
        line += [
            f"{_number(row.adaptation_s, 1e3)} ({_number(row.adaptation_p95_s, 1e3)})",
            _number(row.prediction_s, 1e3),
            _number(row.peak_host_added_bytes, 2.0**-20, 1),
        ]
        if _has_device(table):
            line.append(_number(row.peak_device_bytes, 2.0**-20, 1))
        line += [
            _number(row.parameters_adapted, 1.0, 0),
            _number(row.train_s, 1.0, 0),
            _number(row.train_images, 1.0, 0),
            f"{row.score.n_seeds} x {row.n_episodes}" if row.score else "-",
        ]
        lines.append(line)
    return lines


def _score(row: Row, metric: str) -> str:
    if row.score is None:
        reasons = ", ".join(f"{n} {status}" for status, n in row.failures.items())
        return f"FAILED ({reasons})" if row.n_failed else "incomplete"
    s = row.score
    if metric in _RAW:
        return f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]"
    return f"{100 * s.mean:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]"


def _number(value: float | None, factor: float, digits: int | None = None) -> str:
    if value is None:
        return "-"
    scaled = value * factor
    if digits is None:
        # Three significant digits: times span a thousandfold.
        digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:,.{digits}f}"


def _escape(text: str, form: str) -> str:
    # Names are strangers' text; a bar or a newline would break the row.
    text = " ".join(text.split())
    if form == "md":
        for char in "\\|_*`<>[]":
            text = (
                text.replace(char, f"\\{char}")
                if char not in "<>"
                else text.replace(char, "&lt;" if char == "<" else "&gt;")
            )
    return text


def _facts(table: Table) -> str:
    parts = [f"hardware: {table.hardware}"]
    if table.sources:
        parts.append(f"sources: {', '.join(table.sources)}")
    overlaps = sorted({o for r in table.rows for o in r.overlap})
    # Overall, each target has overlaps of its own, which its table tells.
    if overlaps and (table.target or len(overlaps) == 1):
        parts.append(f"overlap: {'; '.join(overlaps)}")
    lines = ["; ".join(parts)]
    for row in table.rows:
        lines += [f"failed: {row.algorithm} / {row.backbone}: {e}" for e in row.errors]
    return "\n".join(lines) if len(lines) == 1 else "\n".join([lines[0], *lines[1:]])


def _notes(board: Board, form: str) -> str:
    rows = [row for table in board.tables for row in table.rows]
    first = []
    if board.covers:
        first.append(
            f"The interval is a bootstrap over {' / '.join(board.covers)}, the images given."
        )
    if any(row.transductive for row in rows):
        first.append("(T): transductive, sees all queries of an episode at once.")
    lines = [
        *([" ".join(first)] if first else []),
        "adapt: from raw support images to a ready classifier, one episode at a time (median and "
        "95th percentile); predict: from raw query images to scores, for all queries of an "
        "episode; host MiB: memory added by adapting and predicting, above the process before "
        "it; adapted: parameters that adaptation sets; train images: how many meta-training looked "
        "at, each time counted.",
    ]
    if any(row.n_failed for row in rows):
        lines.append(
            "A row with a failed cell has no score and ranks last; times are of the cells that "
            "ended."
        )
    if board.licences:
        lines.append(
            "Data licences: "
            + "; ".join(f"{k}: {v}" for k, v in sorted(board.licences.items()))
            + "."
        )
    return "\n\n".join(lines) if form == "md" else "\n".join(lines)


def _frame(board: Board) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for table in board.tables:
        for row in table.rows:
            score = row.score
            rows.append(
                {
                    "protocol": table.protocol,
                    "target": table.target or "overall",
                    "way": table.way,
                    "shot": table.shot,
                    "algorithm": row.algorithm,
                    "backbone": row.backbone,
                    "transductive": row.transductive,
                    "metric": table.metric,
                    "mean": score.mean if score else None,
                    "low": score.low if score else None,
                    "high": score.high if score else None,
                    "interval_covers": score.covers if score else None,
                    "n_seeds": score.n_seeds if score else None,
                    "n_episodes": row.n_episodes,
                    "mean_rank": row.mean_rank,
                    "n_ok": row.n_ok,
                    "n_failed": row.n_failed,
                    "failures": " ".join(f"{k}:{v}" for k, v in row.failures.items()),
                    "adaptation_s": row.adaptation_s,
                    "adaptation_p95_s": row.adaptation_p95_s,
                    "prediction_s": row.prediction_s,
                    "peak_host_bytes": row.peak_host_bytes,
                    "peak_host_added_bytes": row.peak_host_added_bytes,
                    "peak_device_bytes": row.peak_device_bytes,
                    "parameters_adapted": row.parameters_adapted,
                    "train_s": row.train_s,
                    "train_images": row.train_images,
                    "hardware": table.hardware,
                    "sources": " ".join(table.sources),
                    "overlap": "; ".join(row.overlap),
                }
            )
    frame = pd.DataFrame(rows)
    for column in ("way", "shot", "n_seeds"):
        frame[column] = frame[column].astype("Int64")
    return frame
