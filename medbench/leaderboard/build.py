"""A board from the records in folders, with what earlier commands computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medbench.leaderboard.model import Board
from medbench.leaderboard.names import MATTERS
from medbench.leaderboard.table import build_board
from medbench.shelf import Interval, Judged, find_briefs


def board_of(
    folders: Sequence[Path],
    metric: str = "accuracy",
    method: Literal["percentile", "bca"] = "percentile",
    matters: float = MATTERS,
) -> Board:
    """The board of the records in `folders`; what is computed of a run's is kept in its cache.

    Raises `UsageError` for folders without records, `DataError` for records that are wrong.
    """
    briefs, shelves = find_briefs(folders)
    name = metric if method == "percentile" else f"{metric}, {method}"
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
