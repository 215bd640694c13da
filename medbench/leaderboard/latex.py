"""A board as LaTeX: a booktabs table for each, the best row and those tied with it in bold."""

from __future__ import annotations

from collections.abc import Sequence

from medbench.leaderboard.gains import gain_over, references_of
from medbench.leaderboard.model import Board, Row, Table
from medbench.leaderboard.names import METRICS
from medbench.leaderboard.notes import facts, notes
from medbench.leaderboard.numbers import gain_of, number, ranks_of, score_of, times_of

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    # Brackets after a line's end would be read as its skip, and dashes and quotes as ligatures.
    "[": "{[}", "]": "{]}", "-": "{-}", "`": "{`}", "'": "{'}",
}  # fmt: skip
_TABLE = str.maketrans(_SPECIAL)


def latex_text(board: Board) -> str:
    """Tables to be put into a document that loads booktabs (and fontenc T1, for quotes)."""
    lines = [r"% \usepackage[T1]{fontenc} and \usepackage{booktabs} are needed."]
    for table in board.tables:
        lines += ["", *_table(table)]
    lines += ["", r"\par\noindent\footnotesize"]
    lines += [rf"{escape(note)}\par" for note in notes(board)]
    return "\n".join(lines)


def escape(text: str) -> str:
    """`text` as LaTeX prints it: names are strangers' text, and none may be a command.

    >>> escape(r"50% of a_b & \\input{x}")
    '50\\\\% of a\\\\_b \\\\& \\\\textbackslash{}input\\\\{x\\\\}'
    """
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split()).translate(_TABLE)


def _table(table: Table) -> list[str]:
    name = METRICS.get(table.metric, table.metric)
    heads = ["algorithm", "backbone", f"{name} [95 %]", "tied", "rank [95 %]", "adapt ms (p95)"]
    heads += ["predict ms", "memory MiB", "adapted"]
    references = references_of([table])
    heads[3:3] = [f"gain over {name} [95 %]" for name in references]
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape(table.title)}}}",
        r"\begin{tabular}{ll" + "r" * (len(heads) - 2) + "}",
        r"\toprule",
        " & ".join(escape(h) for h in heads) + r" \\",
        r"\midrule",
    ]
    lines += [_line(row, table.metric, references) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {escape(fact)}" for fact in facts(table)]
    return [*lines, r"\end{table}"]


def _line(row: Row, metric: str, references: Sequence[str]) -> str:
    cells = [
        row.algorithm + (" (T)" if row.transductive else ""),
        row.backbone,
        score_of(row, metric),
        *(gain_of(gain_over(row, name), metric) for name in references),
        row.verdict.group if row.verdict else "-",
        ranks_of(row),
        times_of(row, full=False),
        number(row.prediction_s, 1e3),
        number(row.memory_bytes, 2.0**-20, 1),
        number(row.parameters_adapted, 1.0, 0),
    ]
    shown = [escape(c) for c in cells]
    if row.score is not None and row.tied_with_best:
        shown[0], shown[2] = rf"\textbf{{{shown[0]}}}", rf"\textbf{{{shown[2]}}}"
    return " & ".join(shown) + r" \\"
