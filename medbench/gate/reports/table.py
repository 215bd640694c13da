"""The outcome for a terminal, and as Markdown for a pull request or a job summary."""

from __future__ import annotations

from collections.abc import Sequence

from medbench.gate.reports import words
from medbench.gate.verdicts import Comparison, Outcome, Verdict

_HEAD = ("cell", "metric", "verdict", "before", "after", "change [95 %]", "certainty")
_MOST = 200


def terminal(outcome: Outcome, *, everything: bool = False) -> str:
    """The outcome as plain text; without `everything`, what is equivalent is only counted."""
    lines = [f"baseline  {outcome.before}", f"current   {outcome.after}", ""]
    rows = [_row(c) for c in _shown(outcome, everything)]
    if rows:
        widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
        for cells in (_HEAD, *rows):
            text = "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True))
            lines.append(text.rstrip())
        lines.append("")
    lines += [f"{t.what.upper()}  {t.title}: {t.message}" for t in outcome.troubles]
    lines += [f"note: {text}" for text in outcome.notices]
    lines += [_counts(outcome), _explained(outcome)]
    if outcome.reproduce:
        lines.append(f"reproduce: {outcome.reproduce}")
    return "\n".join([*lines, outcome.headline])


def markdown(outcome: Outcome) -> str:
    """The outcome as a comment: the verdict, what changed, and the rest folded away."""
    lines = [f"## medbench gate: {_escape(outcome.headline)}", ""]
    lines += [f"Baseline {_escape(outcome.before)}; current {_escape(outcome.after)}.", ""]
    loud = [c for c in _shown(outcome, False) if c.verdict is not Verdict.CANNOT_TELL]
    quiet = [c for c in _shown(outcome, True) if c not in loud]
    lines += _table(loud)
    for trouble in outcome.troubles:
        lines.append(f"- **{trouble.what}** {_escape(trouble.title)}: {_escape(trouble.message)}")
    lines += [f"- {_escape(text)}" for text in outcome.notices]
    lines += ["", f"{_counts(outcome)} {_explained(outcome)}"]
    if outcome.reproduce:
        lines += ["", "```sh", outcome.reproduce, "```"]
    if quiet:
        few = quiet[:_MOST]
        title = f"{len(quiet)} comparisons that are equivalent or cannot be told"
        lines += ["", f"<details><summary>{title}</summary>", "", *_table(few)]
        if len(few) < len(quiet):
            lines.append(f"... and {len(quiet) - len(few)} more; the JSON report has all.")
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _shown(outcome: Outcome, everything: bool) -> list[Comparison]:
    found = [c for c in outcome.comparisons if everything or c.verdict is not Verdict.EQUIVALENT]
    return sorted(found, key=lambda c: words.ORDER.index(c.verdict))


def _row(c: Comparison) -> tuple[str, ...]:
    return (
        c.title,
        words.metric(c),
        c.verdict.value,
        words.value(c, c.before),
        words.value(c, c.after),
        words.change(c),
        words.certainty(c),
    )


def _table(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    for c in comparisons:
        cells = [_escape(text) for text in _row(c)]
        if c.verdict is Verdict.REGRESSION:
            cells[2] = f"**{cells[2]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _counts(outcome: Outcome) -> str:
    counts = [(v.value, len(outcome.having(v))) for v in words.ORDER]
    said = ", ".join(f"{n} {word}" for word, n in counts if n) or "no comparison"
    noun = "cell" if outcome.n_cells == 1 else "cells"
    return f"{outcome.n_cells} {noun} compared: {said}."


def _explained(outcome: Outcome) -> str:
    tests = sum(c.p is not None for c in outcome.comparisons)
    return words.explained(tests, outcome.family_error)


def _escape(text: str) -> str:
    for sign in "\\|*_<>`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
