"""Intervals that cover new patients (or images), where records hold the answers of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medbench.briefs import Brief
from medbench.errors import UsageError
from medbench.leaderboard.intervals import Findings
from medbench.leaderboard.model import RowKey
from medbench.shelf import spread
from medbench.stats import Answered, Estimate, Floats, estimates_by_group
from medbench.stats.clusters import FEWEST

_INSTEAD = "Use --interval percentile, which covers episodes from the images given."
# A bound of memory: the answers of so many rows at a time.
_ROWS = 256

Read = tuple[Floats, Answered, str]


def require_counted(metric: str) -> None:
    """Raise `UsageError` for a metric that is no share of right answers."""
    if metric == "accuracy":
        return
    why = f"{metric} is no share of right answers"
    if metric in ("dice", "iou", "hd95", "nsd", "ap50", "ap50_95", "froc"):
        why = f"masks and boxes, which {metric} is of, are not just right or wrong"
    raise UsageError(f"--interval groups is for accuracy: {why}. {_INSTEAD}")


def with_groups(found: Findings, tables: Sequence[Mapping[RowKey, Sequence[Brief]]]) -> Findings:
    """The findings, with intervals of accuracies that cover new patients or images besides.

    Targets of one data set (and site) are about the same patients, which are drawn for all of them
    together. Raises `UsageError` for records without answers by group, or with too few groups.
    """
    alone: list[dict[RowKey, Estimate]] = [{} for _ in tables]
    overall: dict[RowKey, Estimate] = {}
    keys = list(dict.fromkeys(key for plain in found.alone for key in plain))
    for start in range(0, len(keys), _ROWS):
        some = keys[start : start + _ROWS]
        read = [
            {k: _read(table[k]) for k in some if k in plain}
            for table, plain in zip(tables, found.alone, strict=True)
        ]
        for into, answers in zip(alone, read, strict=True):
            into.update(_estimates({k: [r] for k, r in answers.items()}))
        whole = [k for k in some if k in found.overall]
        overall |= _estimates({k: [answers[k] for answers in read] for k in whole})
    return dataclasses.replace(found, alone=alone, overall=overall)


def _read(members: Sequence[Brief]) -> Read:
    """Of one row on one target: scores by seed and episode, and what they were made of."""
    for brief in members:
        if not brief.own.groups_file:
            raise UsageError(
                f"{brief.path} does not hold the answers of each patient or image: an earlier "
                f"medbench wrote it. Run its cell again. {_INSTEAD}"
            )
    counts = spread(Brief.groups, members)
    first, kind, setting = counts[0], members[0].own.groups_kind, members[0].setting
    if any(
        not np.array_equal(c[name], first[name]) for c in counts for name in ("group", "answers")
    ):
        raise UsageError(
            f"{members[0].path}: other seeds of its row had other episodes, and were asked about "
            f"other {kind}s. Run all with as many episodes. {_INSTEAD}"
        )
    n = len(first["group"])
    if n < FEWEST:
        raise UsageError(
            f"{setting.target}: {n} {kind}s are too few to stand for others; {FEWEST} are needed. "
            f"{_INSTEAD}"
        )
    answered = Answered(
        f"{setting.data} {setting.target.rpartition(':')[0]}",
        first["group"].astype(np.int64),
        np.sum([c["right"] for c in counts], axis=0),
        first["answers"] * len(counts),
    )
    return np.stack(spread(_accuracies, members)), answered, kind


def _accuracies(brief: Brief) -> Floats:
    return brief.scores("accuracy")


def _estimates(rows: Mapping[RowKey, Sequence[Read]]) -> dict[RowKey, Estimate]:
    by_kind: dict[str, list[RowKey]] = {}
    for key, parts in rows.items():
        kinds = {kind for *_, kind in parts}
        # Over targets of both kinds the weaker claim holds.
        by_kind.setdefault(kinds.pop() if len(kinds) == 1 else "image", []).append(key)
    found: dict[RowKey, Estimate] = {}
    for kind, keys in by_kind.items():
        together = [([s for s, *_ in rows[k]], [a for _, a, _ in rows[k]]) for k in keys]
        found |= dict(zip(keys, estimates_by_group(together, kind), strict=True))
    return found
