"""Two rows compared on everything they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medbench.briefs import Brief
from medbench.errors import UsageError, did_you_mean
from medbench.leaderboard.build import main_metric
from medbench.leaderboard.model import RowKey
from medbench.leaderboard.names import LOWER
from medbench.leaderboard.numbers import shares
from medbench.shelf import find_briefs
from medbench.stats import Difference, Floats, Posterior, compare, holm, signed_rank

_Place = tuple[str, int, str, str, str, str]


@dataclass(frozen=True)
class Pair:
    """The comparison on one target; ``p`` is corrected for the targets shown."""

    target: str
    difference: Difference
    p: float
    verdict: str


@dataclass(frozen=True)
class Pairs:
    """Two rows on all targets they share, and over them; differences are ``first - second``.

    ``posterior``: of the Bayesian signed-rank test over data sets (shots averaged), with
    ``matters`` as the region of practical equivalence: which has the better score.
    """

    first: RowKey
    second: RowKey
    metric: str
    matters: float
    targets: tuple[Pair, ...]
    overall: Pair | None
    posterior: Posterior | None


def compare_rows(
    folders: Sequence[Path],
    first: str,
    second: str,
    backbone: str | None,
    metric: str | None,
    matters: float,
) -> Pairs:
    """Compare two rows, each named ``ALGORITHM`` or ``ALGORITHM@BACKBONE``.

    Raises `UsageError` for a name that is not there, or could be several rows, or when the two
    share no target; `DataError` for records that are wrong.
    """
    briefs, _ = find_briefs(folders)
    metric = metric or main_metric(briefs)
    rows: dict[RowKey, dict[_Place, dict[int, Brief]]] = defaultdict(lambda: defaultdict(dict))
    for b in briefs:
        if b.ok:
            s, own = b.setting, b.own
            key = (own.algorithm_label or own.algorithm, own.backbone_label or own.backbone)
            place = (
                s.protocol,
                s.protocol_version,
                s.target,
                str(s.sources),
                str(s.hardware),
                s.data,
            )
            rows[key][place][own.seed] = b
    keys = [_row(name, backbone, list(rows)) for name in (first, second)]
    if keys[0] == keys[1]:
        raise UsageError(f"{first!r} and {second!r} are the same row.")
    one, other = rows[keys[0]], rows[keys[1]]
    shared = [p for p in sorted(one) if p in other and set(one[p]) & set(other[p])]
    if not shared:
        raise UsageError(
            f"{' on '.join(keys[0])} and {' on '.join(keys[1])} share no target with the "
            "same seeds, sources, data and hardware."
        )
    # A mean over targets resamples seeds for all of them together.
    everywhere = set.intersection(*(set(one[p]) & set(other[p]) for p in shared))
    sign = -1.0 if metric in LOWER else 1.0
    found: list[Difference] = []
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    for place in shared:
        seeds = sorted(set(one[place]) & set(other[place]))
        both = [_scores([side[place][s] for s in seeds], metric) for side in (one, other)]
        n = min(scores.shape[1] for scores in both)
        found.append(compare([both[0][:, :n]], [both[1][:, :n]]))
        kept = [i for i, s in enumerate(seeds) if s in everywhere]
        for side, scores in zip(sides, both, strict=True):
            side.append(scores[kept, :n])
    corrected = holm(np.array([d.p for d in found]))
    targets = tuple(
        Pair(f"{p[0]} v{p[1]}: {p[2]}", d, float(c), _verdict(d, sign, matters, float(c)))
        for p, d, c in zip(shared, found, corrected, strict=True)
    )
    overall, posterior = None, None
    if len(shared) > 1 and everywhere:
        whole = compare(*sides)
        overall = Pair("overall", whole, whole.p, _verdict(whole, sign, matters, whole.p))
        by_name: dict[str, list[float]] = defaultdict(list)
        for place, d in zip(shared, found, strict=True):
            by_name[place[2].rpartition(":")[0]].append(sign * d.mean)
        posterior = signed_rank(np.array([np.mean(v) for v in by_name.values()]), matters)
    return Pairs(keys[0], keys[1], metric, matters, targets, overall, posterior)


def _scores(members: Sequence[Brief], metric: str) -> Floats:
    arrays = [b.scores(metric) for b in members]
    length = min(map(len, arrays))
    return np.stack([a[:length] for a in arrays])


def _row(name: str, backbone: str | None, keys: Sequence[RowKey]) -> RowKey:
    algorithm, _, own = name.rpartition("@") if "@" in name else (name, "", backbone or "")
    found = [k for k in keys if k[0] == algorithm and own in ("", k[1])]
    if not found:
        known = [k[0] for k in keys] if own == "" else [f"{a}@{b}" for a, b in keys]
        raise UsageError(f"There is no measured row {name!r}.{did_you_mean(name, known)}")
    if len(found) > 1:
        several = ", ".join("@".join(k) for k in sorted(found))
        raise UsageError(
            f"{name!r} stands for {len(found)} rows: {several}. Give one of these, or --backbone."
        )
    return found[0]


def _verdict(difference: Difference, sign: float, matters: float, p: float) -> str:
    word = difference.verdict(matters, p)
    if sign < 0 and word.startswith(("better", "worse")):
        other = "worse" if word.startswith("better") else "better"
        word = other + word[len("better" if word.startswith("better") else "worse") :]
    return word


def table(pairs: Pairs) -> str:
    """The comparison as lines for a terminal."""
    factor, digits = shares(pairs.metric)
    first, second = (" on ".join(k) for k in (pairs.first, pairs.second))
    lines = [f"{first} minus {second}, {pairs.metric}{' in points' if factor > 1 else ''}:"]
    shown = [*pairs.targets, *([pairs.overall] if pairs.overall else [])]
    width = max(len(p.target) for p in shown)
    for pair in shown:
        d = pair.difference
        mean, low, high = (f"{v * factor:+.{digits}f}" for v in (d.mean, d.low, d.high))
        p = "p <0.001" if pair.p < 0.001 else f"p {pair.p:.3f}"
        lines.append(f"  {pair.target:<{width}}  {mean} [{low}, {high}]  {p}  {pair.verdict}")
    lines.append(
        f"Intervals cover 95 % over {'seeds and ' if shown[0].difference.n_seeds > 1 else ''}"
        "episodes; p is corrected by Holm's method for the targets shown; the smallest difference "
        f"that matters is {pairs.matters * factor:.{digits}f}."
    )
    if pairs.posterior is not None:
        p3 = pairs.posterior
        lines.append(
            f"Over data sets (Bayesian signed-rank): {first} is better by more than that with "
            f"probability {p3.first:.2f}, {second} with {p3.second:.2f}, neither with "
            f"{p3.neither:.2f}."
        )
    return "\n".join(lines)
