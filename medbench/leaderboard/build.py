"""A board from the records in folders, with what earlier commands computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medbench.briefs import Brief
from medbench.errors import UsageError
from medbench.leaderboard.model import Board
from medbench.leaderboard.names import MAIN, MATTERS
from medbench.leaderboard.table import Method, build_board
from medbench.shelf import Interval, Judged, find_briefs


def main_metric(briefs: Sequence[Brief]) -> str:
    """By what records are ranked unless told: one measured record of each protocol says.

    Raises `UsageError` when they have no such metric in common, `DataError` for damaged scores.
    """
    found: dict[str, str] = {}
    for protocol, brief in {b.setting.protocol: b for b in briefs if b.ok}.items():
        metrics = brief.metrics()
        found.setdefault(next((m for m in MAIN if m in metrics), MAIN[0]), protocol)
    if len(found) > 1:
        told = ", ".join(f"{metric} ({protocol})" for metric, protocol in found.items())
        raise UsageError(
            f"The records are of several task kinds, ranked by {told}; a board has one metric. "
            "Name folders with records of one kind."
        )
    return next(iter(found), MAIN[0])


def board_of(
    folders: Sequence[Path],
    metric: str | None = None,
    method: Method = "percentile",
    matters: float = MATTERS,
) -> Board:
    """The board of the records in `folders`; what is computed of a run's is kept in its cache.

    Without `metric` rows are ranked by the main one of the records' task kind.

    Raises `UsageError` for folders without records, or without what `method` needs, and
    `DataError` for records that are wrong.
    """
    briefs, shelves = find_briefs(folders)
    metric = metric or main_metric(briefs)
    # What groups are needed for besides is not kept.
    name = f"{metric}, bca" if method == "bca" else metric
    intervals: dict[str, Interval] = {}
    verdicts: dict[str, Judged] = {}
    board = build_board(
        briefs,
        metric,
        {k: v for shelf in shelves for k, v in shelf.intervals.get(name, {}).items()},
        intervals,
        method=method,
        matters=matters,
        known_verdicts={k: v for s in shelves for k, v in s.verdicts.get(name, {}).items()},
        used_verdicts=verdicts,
    )
    for shelf in shelves:
        shelf.intervals[name], shelf.verdicts[name] = intervals, verdicts
        shelf.save()
    return board
