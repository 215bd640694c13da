"""What a reader must know beside the numbers: below each table, and below all of them."""

from __future__ import annotations

from medbench.leaderboard.gains import references_of
from medbench.leaderboard.model import ALL_PAIRS, Board, Table, Within
from medbench.leaderboard.names import METRICS
from medbench.leaderboard.numbers import number, shares

_WHAT = {
    "percentile": "percentile bootstrap",
    "groups": "percentile bootstrap",
    "bca": "bias-corrected and accelerated bootstrap for one training seed, percentile for several",
}


def facts(table: Table) -> list[str]:
    """Lines below one table: machine, sources, overlap, failures, budgets, data sets compared."""
    parts = [f"hardware: {table.hardware}"]
    if table.sources:
        parts.append(f"sources: {', '.join(table.sources)}")
    overlaps = sorted({o for r in table.rows for o in r.overlap})
    # Overall, each target has overlaps of its own, which its table tells.
    if overlaps and (table.target or len(overlaps) == 1):
        parts.append(f"overlap: {'; '.join(overlaps)}")
    lines = ["; ".join(parts)]
    lines += [f"failed: {r.algorithm} / {r.backbone}: {e}" for r in table.rows for e in r.errors]
    for what, some in (
        ("adaptation time", [w for w in table.within if w.memory_bytes is None]),
        ("peak memory", [w for w in table.within if w.time_s is None]),
        ("both", [w for w in table.within if None not in (w.time_s, w.memory_bytes)]),
    ):
        if some:
            lines.append(f"best by {what}: {'; '.join(_within(w, table.metric) for w in some)}")
    return lines + _across(table)


def _within(within: Within, metric: str) -> str:
    time, size = within.time_s, within.memory_bytes
    limits = [f"{number(time, 1e3)} ms"] if time is not None else []
    limits += [f"{number(size, 2.0**-20, 0)} MiB"] if size is not None else []
    limit = " and ".join(limits) or "any cost"
    if within.mean is None:
        return f"none within {limit}"
    factor, digits = shares(metric)
    mean = f"{within.mean * factor:.{digits}f}"
    return f"{within.algorithm} / {within.backbone} {mean} within {limit}"


def _across(table: Table) -> list[str]:
    found = table.across
    if found is None:
        return []
    groups: dict[str, list[str]] = {}
    for (algorithm, backbone), letters in zip(table.across_rows, found.groups, strict=True):
        for letter in letters:
            groups.setdefault(letter, []).append(f"{algorithm} / {backbone}")
    tied = "; ".join(f"{k}: {', '.join(v)}" for k, v in sorted(groups.items()))
    return [
        f"over {found.n_datasets} data sets as observations: Friedman chi-square "
        f"{found.friedman:.1f}, p {found.p:.2g}; Nemenyi's critical difference "
        f"{found.critical_difference:.2f} mean ranks; not told apart by Wilcoxon's test with "
        f"Holm's correction: {tied}"
    ]


def notes(board: Board) -> list[str]:
    """Lines below all tables: what intervals, ties, ranks, costs and failures mean."""
    rows = [row for table in board.tables for row in table.rows]
    lines = []
    if board.covers:
        line = f"Interval: {_WHAT[board.method]} over {' / '.join(board.covers)}"
        line += "" if board.method == "groups" else ", the images given"
        several = any(r.score is not None and r.score.n_seeds > 1 for r in rows)
        line += "; widened for the number of seeds" if several else ""
        if board.method == "groups":
            line += (
                "; whole patients, or images where patients are not known, are drawn anew, and the "
                "same for all targets of one data set. Tests, ties, ranks, differences and worst "
                "cases are of the images given"
            )
        lines.append(f"{line}.")
    if any(row.verdict for row in rows):
        lines.append(_verdicts(board))
    references = references_of(board.tables)
    if references:
        lines.append(
            f"gain over {' and '.join(references)}: the mean difference to that row of the same "
            "backbone on shared seeds and episodes, with its interval; above zero the row is "
            "better. Such rows know which of their sources' classes are asked about, look at no "
            "labelled image of the target, and adapt to nothing."
        )
    if any(row.transductive for row in rows):
        lines.append("(T): transductive, sees all queries of an episode at once.")
    lines.append(
        "adapt: from raw support images to a ready classifier, one episode at a time (median, 95th "
        "percentile, and interquartile range where given); predict: from raw query images to "
        "scores, for all queries of an episode; features: the part of both that extracts features; "
        "host MiB: memory added by adapting and predicting, above the process before it; adapted: "
        "parameters that adaptation sets; train images: how many meta-training looked at, each "
        "time counted; front: no other row of the table is as accurate in less adaptation time "
        "(t) or memory (m)."
    )
    if not any(row.energy_j is not None for row in rows):
        lines.append("Energy: not measured.")
    if len(board.hardware) > 1:
        lines.append(
            f"Times were taken on {len(board.hardware)} classes of hardware "
            f"({'; '.join(board.hardware)}); each table holds one, and times of different tables "
            "do not compare."
        )
    if any(row.n_failed for row in rows):
        lines.append(_failures(board))
    if board.licences:
        known = "; ".join(f"{k}: {v}" for k, v in sorted(board.licences.items()))
        lines.append(f"Data licences: {known}.")
    return lines


def _verdicts(board: Board) -> str:
    factor, digits = shares(board.metric)
    unit = " points" if factor > 1 else ""
    text = (
        "tied: rows sharing a letter are not told apart at 5 % by paired tests on shared episodes "
        "(sign flips; with several seeds, also seeds and episodes as crossed random effects), "
        "corrected by Holm's method for all pairs of the table; [ ] of a rank: the ranks these "
        "tests leave open, for all rows together; P(best): share of bootstrap replicates in which "
        f"the row has the best {METRICS.get(board.metric, board.metric)}. The smallest difference "
        f"that matters is set to {board.matters * factor:.{digits}f}{unit}: a smaller one may be "
        "significant and of no use."
    )
    if any(len(t.rows) > ALL_PAIRS for t in board.tables):
        text += (
            f" In tables of more than {ALL_PAIRS} rows each is compared with the best alone (a: "
            "not told apart from it), corrected as for all pairs."
        )
    return text


def _failures(board: Board) -> str:
    text = (
        "A row with a failed cell has no score and ranks last on that target; times are of the "
        "cells that ended."
    )
    rules = {t.rule for t in board.tables}
    if "complete cases" in rules:
        text += " Complete cases: over the targets on which no row failed."
    if "worst case" in rules:
        text += (
            " Worst case: a failed cell scores, in every episode, as badly as the worst measured "
            "row of that target."
        )
    return text
