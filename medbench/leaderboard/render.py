"""Boards as text: a terminal table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from medbench.leaderboard.names import FORMATS, METRICS
from medbench.leaderboard.table import Board, Row, Table

__all__ = ["FORMATS", "render"]

# The first columns hold names.
_N_NAMES = 2
_CORNERS = (("╭", "┬", "╮"), ("├", "┼", "┤"), ("╰", "┴", "╯"))
# Printed as they are; the others are shares, printed in per cent.
_RAW = ("nll", "grade_error", "kappa")


def render(board: Board, form: str) -> str:
    """The board in one of `FORMATS`."""
    if form == "csv":
        return _csv(board)
    if form == "json":
        return json.dumps(dataclasses.asdict(board), indent=1, allow_nan=False)
    blocks = []
    for table in board.tables:
        title = f"## {table.title}\n" if form == "md" else f"{table.title}\n"
        lines = [_headers(table), *([_escape(c, form) for c in cells] for cells in _cells(table))]
        body = _drawn(lines, form)
        facts = _facts(table)
        blocks.append(f"{title}\n{body}\n\n{facts}" if form == "md" else f"{title}{body}\n{facts}")
    return "\n\n".join([*blocks, _notes(board, form)])


def _headers(table: Table) -> list[str]:
    head = ["algorithm", "backbone", f"{METRICS.get(table.metric, table.metric)} [95 %]"]
    if not table.target:
        head += ["rank", "targets"]
    head += ["adapt ms (p95)", "predict ms", "host MiB"]
    if _has_device(table):
        head.append("device MiB")
    return [*head, "adapted", "train s", "train images", "seeds x episodes"]


def _drawn(lines: Sequence[Sequence[str]], form: str) -> str:
    """Lines of cells, the first of them headers, as a table; names stand left, numbers right."""
    widths = [
        max(2 + _width(column[0]), *map(_width, column)) for column in zip(*lines, strict=True)
    ]

    def padded(cells: Sequence[str]) -> list[str]:
        gaps = [w - _width(c) for w, c in zip(widths, cells, strict=True)]
        return [
            f" {c}{' ' * gap} " if i < _N_NAMES else f" {' ' * gap}{c} "
            for i, (c, gap) in enumerate(zip(cells, gaps, strict=True))
        ]

    bar = "|" if form == "md" else "│"
    head, *body = [f"{bar}{bar.join(padded(cells))}{bar}" for cells in lines]
    if form == "md":
        return "\n".join([head, f"|{'|'.join('-' * (w + 2) for w in widths)}|", *body])
    rules = ["─" * (w + 2) for w in widths]
    top, middle, bottom = (left + mid.join(rules) + right for left, mid, right in _CORNERS)
    return "\n".join([top, head, middle, *body, bottom])


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _has_device(table: Table) -> bool:
    return any(r.peak_device_bytes is not None for r in table.rows)


def _cells(table: Table) -> list[list[str]]:
    lines = []
    has_device = _has_device(table)
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
        if has_device:
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


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|_*`[]"} | {"<": "&lt;", ">": "&gt;"})


def _escape(text: str, form: str) -> str:
    # Names are strangers' text; a bar or a newline would break the row.
    text = " ".join(text.split())
    return text.translate(_MARKDOWN) if form == "md" else text


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


def _csv(board: Board) -> str:
    """A line for every row of every table; what is not known is empty."""
    out = io.StringIO()
    lines = (_line(table, row) for table in board.tables for row in table.rows)
    writer = None
    for line in lines:
        if writer is None:
            writer = csv.DictWriter(out, list(line), lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return out.getvalue()


def _line(table: Table, row: Row) -> dict[str, Any]:
    score = row.score
    return {
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
