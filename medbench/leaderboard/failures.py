"""What a failed cell does to a mean over targets, by the rule that counts against it most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from medbench.briefs import Brief
from medbench.leaderboard.intervals import Intervals
from medbench.leaderboard.judge import Held, Verdicts, judge
from medbench.leaderboard.model import ALL_PAIRS, RowKey
from medbench.leaderboard.names import LOWER
from medbench.stats import AcrossDatasets, Estimate, Floats, across_datasets, midranks
from medbench.stats.across import FEWEST

Worst = tuple[dict[RowKey, Estimate], Verdicts, dict[RowKey, float]]


def worst_case(
    intervals: Intervals,
    rows: Sequence[Mapping[RowKey, list[Brief]]],
    complete: Sequence[Mapping[RowKey, list[Brief]]],
) -> Worst | None:
    """Estimates, verdicts and mean ranks when a failed cell scores as badly as the worst did.

    In every episode it gets the worst score of any measured row on that target, so that no row
    comes out below it. Rows that were not run on some target stay out, and so does one whose
    seeds differ from the others'. None in boards of more than a hundred rows, or where a target
    has no measured row at all.
    """
    keys = [k for k in dict.fromkeys(k for g in rows for k in g) if all(k in g for g in rows)]
    if len(keys) > ALL_PAIRS or len(keys) < 2 or any(not c for c in complete):
        return None
    seeds = {tuple(sorted({b.own.seed for b in g[k]})) for g in rows for k in g if k in keys}
    if len(seeds) != 1:
        return None
    lower = intervals.metric in LOWER
    (shared,) = seeds
    held: list[dict[RowKey, Held]] = []
    for group in complete:
        known = {k: s for ks, scores in intervals.blocks(list(group), group)
                 for k, s in zip(ks, scores, strict=True)}  # fmt: skip
        length = min(s.shape[1] for s in known.values())
        means = np.stack([s[:, :length].mean(axis=0) for s in known.values()])
        floor = means.max(axis=0) if lower else means.min(axis=0)
        held.append({k: _held(shared, known.get(k, floor[None]), length) for k in keys})
    estimates = intervals.of_scores({k: [_scores(t[k]) for t in held] for k in keys})
    _, verdicts = judge(held, lower)
    sign = 1.0 if lower else -1.0
    ranks = np.mean(
        [midranks(sign * np.array([np.nanmean(_scores(t[k])) for k in keys])) for t in held], axis=0
    )
    return estimates, verdicts, dict(zip(keys, ranks.tolist(), strict=True))


def _held(seeds: tuple[int, ...], scores: Floats, length: int) -> Held:
    whole = np.broadcast_to(scores[:, :length], (len(seeds), length))
    return Held(seeds, whole.mean(axis=1), whole.mean(axis=0), whole)


def _scores(held: Held) -> Floats:
    assert held.scores is not None
    return held.scores


def over_datasets(
    names: Sequence[str],
    estimates: Sequence[Mapping[RowKey, Estimate]],
    keys: Sequence[RowKey],
    metric: str,
) -> AcrossDatasets | None:
    """Friedman's test and its successors, where there are data sets enough; shots are averaged.

    `names`: the data set (or site) of each target; shots of one are no new evidence.
    """
    by_name: dict[str, list[Floats]] = defaultdict(list)
    for name, found in zip(names, estimates, strict=True):
        by_name[name].append(np.array([found[k].mean for k in keys]))
    if len(by_name) < FEWEST or len(keys) < 2 or len(keys) > ALL_PAIRS:
        return None
    scores = np.stack([np.mean(means, axis=0) for means in by_name.values()])
    return across_datasets(-scores if metric in LOWER else scores)
