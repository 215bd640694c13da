"""Intervals that cover new patients or images: whole groups of answers are resampled.

Episodes redraw the same test images again and again, so a bootstrap over episodes says nothing of
other patients. Where the group behind every query is known, the groups are drawn anew as wholes
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Both sources of
chance are crossed, and their variances add up, less what single answers bring to both (Cameron,
Gelbach and Miller, Journal of Business and Economic Statistics 29 (2011) 238-249). Few groups, or
groups of which some hold most answers, tell little of how groups differ, so that part of the
variance has Student's quantile of its own, by Kish's effective number of groups (Survey Sampling,
1965, section 8.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed
from medbench.stats.bootstrap import (
    REPLICATES,
    Estimate,
    checked,
    means,
    percentiles,
    replicates,
)
from medbench.stats.digits import printable
from medbench.stats.spread import Floats, Spread

# Of fewer groups a bootstrap says too little.
FEWEST = 10
# A bound of memory: so many draws at a time, 32 MB.
_DRAWS = 1 << 22


@dataclass(frozen=True)
class Answered:
    """What one row answered on one target, counted by group, over all its seeds together.

    ``group``, ``right`` and ``answers``: ``(n_groups,)`` whole numbers: which group it is, its
    right answers, and all of them. Targets of one ``population`` share groups: what is drawn for
    one of them is drawn for all.
    """

    population: str
    group: NDArray[np.int64]
    right: Floats
    answers: Floats


def group_replicates(right: Floats, answers: Floats, population: str, seed: int = 0) -> Floats:
    """The share of right answers in every replicate of groups, ``(n_rows, REPLICATES)``.

    `right`, `answers`: ``(n_rows, n_groups)``. Every group is drawn whole, so large ones weigh
    more, as they do in the mean. All rows meet the same draws, which follow from `population` and
    the number of groups.
    """
    n_rows, n = right.shape
    # RandomState's streams are frozen by numpy's policy: tables can be rebuilt bit by bit.
    random = np.random.RandomState(derive_seed("groups", population, n, seed) % 2**32)
    both = np.concatenate([right, answers]).T
    sums = np.empty((REPLICATES, 2 * n_rows))
    step = max(1, _DRAWS // n)
    for start in range(0, REPLICATES, step):
        count = min(step, REPLICATES - start)
        drawn = random.randint(0, n, (count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        # Whole numbers: every sum is exact, in whatever order it is made.
        sums[start : start + count] = times.astype(np.float64) @ both
    hits, total = sums[:, :n_rows].T, sums[:, n_rows:].T
    share = right.sum(axis=1, keepdims=True) / answers.sum(axis=1, keepdims=True)
    found: Floats = np.where(total > 0, hits / np.where(total > 0, total, 1.0), share)
    return found


def estimate_groups(
    scores: Sequence[Floats], answered: Sequence[Answered], kind: str, seed: int = 0
) -> Estimate:
    """As `medbench.stats.estimate`, of accuracies, covering new groups of `kind` besides.

    `scores`: for each target ``(n_seeds, n_episodes)``, and `answered` what they were made of.
    Raises `ValueError` for a target of fewer than ten groups, too few to stand for others.
    """
    (found,) = estimates_by_group([(scores, answered)], kind, seed)
    return found


def estimates_by_group(
    rows: Sequence[tuple[Sequence[Floats], Sequence[Answered]]], kind: str, seed: int = 0
) -> list[Estimate]:
    """`estimate_groups` of many rows; those that answered about the same groups share the work."""
    drawn = [_Drawn() for _ in rows]
    shared: dict[tuple[str, bytes], list[tuple[int, Floats, Floats]]] = {}
    for i, (_, answered) in enumerate(rows):
        for population in dict.fromkeys(a.population for a in answered):
            parts = [a for a in answered if a.population == population]
            for part in parts:
                if len(part.group) < FEWEST:
                    raise ValueError(
                        f"{len(part.group)} {kind}s are too few to resample; {FEWEST} are needed."
                    )
            names = np.unique(np.concatenate([p.group for p in parts]))
            right, answers = _aligned(parts, names)
            shared.setdefault((population, names.tobytes()), []).append((i, right, answers))
    for (population, _), members in shared.items():
        lengths = [len(right) for _, right, _ in members]
        shares = group_replicates(
            np.concatenate([right for _, right, _ in members]),
            np.concatenate([answers for _, _, answers in members]),
            population,
            seed,
        )
        ends = np.cumsum(lengths)[:-1]
        for (i, _, answers), own in zip(members, np.split(shares, ends), strict=True):
            drawn[i].add(own.sum(axis=0), answers.sum(axis=0))
    return [
        _estimate(scores, answered, own, kind, seed)
        for (scores, answered), own in zip(rows, drawn, strict=True)
    ]


class _Drawn:
    """Of one row: replicates of the groups of all its targets, and how sure their variance is."""

    def __init__(self) -> None:
        self.total: Floats = np.zeros(REPLICATES)
        self.variance = 0.0
        self._squares = 0.0

    def add(self, sums: Floats, answers: Floats) -> None:
        """A population: sums over its targets in each replicate, and the answers of each group."""
        effective = max(2.0, float(answers.sum() ** 2 / (answers**2).sum()))
        self.total += sums - sums.mean()
        # Groups drawn with replacement vary less than new ones would.
        variance = float(sums.var()) * effective / (effective - 1)
        self.variance += variance
        self._squares += variance**2 / (effective - 1)

    @property
    def free(self) -> float:
        """The variance's degrees of freedom (Satterthwaite)."""
        return self.variance**2 / self._squares if self._squares > 0 else 1.0


def _aligned(parts: Sequence[Answered], names: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Right answers and answers of the groups in `names`, ``(n_targets, n_groups)`` each."""
    found: tuple[Floats, Floats] = (
        np.zeros((len(parts), len(names))),
        np.zeros((len(parts), len(names))),
    )
    for i, part in enumerate(parts):
        places = np.searchsorted(names, part.group)
        found[0][i, places], found[1][i, places] = part.right, part.answers
    return found


def _estimate(
    scores: Sequence[Floats], answered: Sequence[Answered], drawn: _Drawn, kind: str, seed: int
) -> Estimate:
    from scipy.special import stdtrit

    arrays = checked(scores)
    n = len(arrays)
    mean, total, twice = np.zeros(1), drawn.total[None].copy(), 0.0
    spread = None
    for i, (array, own) in enumerate(zip(arrays, answered, strict=True)):
        part = Spread.of(array[None])
        spread = part if spread is None else spread + part
        mean += means(array[None])
        total += replicates(array[None], i, seed)
        if array.shape[0] == 1:
            # With several seeds an answer is a mean of zeros and ones, which varies less.
            share = float(own.right.sum() / own.answers.sum())
            twice += share * (1 - share) / float(own.answers.sum())
    assert spread is not None
    mean, total, spread = mean / n, total / n, spread.over(n)
    of_groups = drawn.variance / n**2 * float(stdtrit(drawn.free, 0.975)) ** 2
    others = float(spread.reach(np.array([0.05]))[0]) ** 2
    both = of_groups + others - twice / n**2 * float(stdtrit(np.inf, 0.975)) ** 2
    reach = np.sqrt(max(both, of_groups, others))
    low, high = percentiles(total)
    factor = np.where(high > low, 2 * reach / np.where(high > low, high - low, 1.0), 1.0)
    low, high = printable(mean - factor * (mean - low)), printable(mean + factor * (high - mean))
    n_episodes = sum(a.shape[1] for a in arrays)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), spread.n_seeds, n_episodes, kind)
