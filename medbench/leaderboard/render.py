"""Boards as text: a terminal table, Markdown and JSON; CSV and LaTeX have modules of their own."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Sequence

from medbench.leaderboard.csvfile import csv_text
from medbench.leaderboard.gains import gain_over, references_of
from medbench.leaderboard.latex import latex_text
from medbench.leaderboard.model import Board, Row, Table
from medbench.leaderboard.names import FORMATS, METRICS
from medbench.leaderboard.notes import facts, notes
from medbench.leaderboard.numbers import gain_of, number, range_of, ranks_of, score_of, times_of

__all__ = ["FORMATS", "render"]

# Raised when the JSON of a board changes its form.
SCHEMA = 1
# The first columns hold names.
_N_NAMES = 2
_CORNERS = (("╭", "┬", "╮"), ("├", "┼", "┤"), ("╰", "┴", "╯"))
_MIB = 2.0**-20

Column = tuple[str, Callable[[Row], str]]


def render(board: Board, form: str) -> str:
    """The board in one of `FORMATS`, but for ``html`` (see `medbench.leaderboard.page`)."""
    if form == "csv":
        return csv_text(board)
    if form == "latex":
        return latex_text(board)
    if form == "json":
        document = {"schema": SCHEMA, **dataclasses.asdict(board)}
        return json.dumps(document, indent=1, allow_nan=False)
    blocks = []
    for table in board.tables:
        title = f"## {_escape(table.title, form)}\n" if form == "md" else f"{table.title}\n"
        columns = _columns(table, form)
        lines = [[name for name, _ in columns]]
        lines += [[_escape(show(row), form) for _, show in columns] for row in table.rows]
        body = _drawn(lines, form)
        told = "\n".join(_escape(line, form) for line in facts(table))
        blocks.append(f"{title}\n{body}\n\n{told}" if form == "md" else f"{title}{body}\n{told}")
    between = "\n\n" if form == "md" else "\n"
    return "\n\n".join([*blocks, between.join(_escape(line, form) for line in notes(board))])


def _columns(table: Table, form: str) -> list[Column]:
    """What is shown of a row; a terminal gets the columns that fit it."""
    metric, full = table.metric, form == "md"

    def measured(name: str) -> bool:
        return any(getattr(r, name) is not None for r in table.rows)

    found: list[Column] = [
        ("algorithm", lambda r: r.algorithm + (" (T)" if r.transductive else "")),
        ("backbone", lambda r: r.backbone),
        (f"{METRICS.get(metric, metric)} [95 %]", lambda r: score_of(r, metric)),
        ("tied", lambda r: r.verdict.group if r.verdict else "-"),
        ("rank [95 %]", ranks_of),
    ]
    # Beside the score, in the order of their names.
    for name in reversed(references_of([table])):
        found.insert(3, (f"gain over {name} [95 %]", _gain(name, metric)))
    if full:
        found += [
            ("to the best [95 %]", lambda r: range_of(r, metric)),
            ("p", lambda r: _p(r.verdict.p if r.verdict else None)),
        ]
    found.append(("P(best)", lambda r: number(r.verdict.p_best if r.verdict else None, 1.0, 2)))
    if not table.target:
        found.append(("targets", lambda r: f"{r.targets_ok}/{r.targets}"))
    found += [
        ("adapt ms (p95; IQR)" if full else "adapt ms (p95)", lambda r: times_of(r, full)),
        ("predict ms", lambda r: number(r.prediction_s, 1e3)),
    ]
    if full:
        found.append(("features ms", lambda r: number(r.feature_s, 1e3)))
    found.append(("host MiB", lambda r: number(r.peak_host_added_bytes, _MIB, 1)))
    if measured("peak_device_bytes"):
        found.append(("device MiB", lambda r: number(r.peak_device_bytes, _MIB, 1)))
    if full and measured("peak_device_reserved_bytes"):
        found.append(("reserved MiB", lambda r: number(r.peak_device_reserved_bytes, _MIB, 1)))
    if measured("energy_j"):
        found.append(("energy J", lambda r: number(r.energy_j, 1.0)))
    found.append(("adapted", lambda r: number(r.parameters_adapted, 1.0, 0)))
    if full:
        found.append(("model MiB", lambda r: number(r.model_bytes, _MIB)))
    found.append(("train s", lambda r: number(r.train_s, 1.0, 0)))
    if full:
        found += [
            ("train images", lambda r: number(r.train_images, 1.0, 0)),
            ("front", _front),
        ]
    found.append(
        ("seeds x episodes", lambda r: f"{r.score.n_seeds} x {r.n_episodes}" if r.score else "-")
    )
    return found


def _gain(reference: str, metric: str) -> Callable[[Row], str]:
    return lambda row: gain_of(gain_over(row, reference), metric)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _front(row: Row) -> str:
    """On which fronts of accuracy against cost the row stands: time, memory."""
    return "".join(["t" if row.pareto_time else "", "m" if row.pareto_memory else ""]) or "-"


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


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|_*`[]"} | {"<": "&lt;", ">": "&gt;"})


def _escape(text: str, form: str) -> str:
    # Names are strangers' text; a bar or a newline would break the row, and control characters
    # would speak to the terminal.
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text.translate(_MARKDOWN) if form == "md" else text
