"""Two methods on shared episodes: the difference, its interval, and whether it could be chance.

With one training seed the test flips the signs of the episodes' differences: if both methods were
equally good, each difference could as well have had the other sign (Fisher, The Design of
Experiments, 1935, section 21). Few episodes are enumerated; many are summed up by a saddlepoint
approximation of the same permutation distribution (Robinson, Journal of the Royal Statistical
Society B 44 (1982) 91-101), whose relative error is small far out in the tail too, where
corrections for many comparisons look. With several seeds the models differ by chance as well, and
the larger p of two counts: of sign flips, and of the variance that seeds and episodes make
together (`medbench.stats.spread`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.stats.bootstrap import checked, estimate
from medbench.stats.digits import settled
from medbench.stats.saddlepoint import saddlepoint
from medbench.stats.spread import Floats, Spread

# Up to so many differences all signs are tried: a million sums.
_ENUMERATED = 20
# Up to so many on a common grid the distribution of the sum is built by convolution.
_CONVOLVED, _LONGEST = 100, 20_000
# What is smaller by so much than what it came from is rounding.
_ROUNDING = 1e-12
# A bound of memory: rows of one saddlepoint search.
_ROWS = 256


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, with its interval and the test's p."""

    mean: float
    low: float
    high: float
    p: float
    n_seeds: int
    n_episodes: int
    n_targets: int

    def verdict(self, matters: float, p: float | None = None) -> str:
        """What may be said, given the smallest difference that matters.

        `p`: the p after a correction, where there was one. ``better`` or ``worse`` when the test
        rejects at 5 %; with ``, slightly`` when the interval lies within what does not matter.
        Otherwise ``equal in practice`` when it lies there, and ``not told apart`` when not.
        """
        within = -matters < self.low and self.high < matters
        if (self.p if p is None else p) < 0.05:
            word = "better" if self.mean > 0 else "worse"
            return f"{word}, slightly" if within else word
        return "equal in practice" if within else "not told apart"


def compare(a: Sequence[Floats], b: Sequence[Floats], seed: int = 0) -> Difference:
    """The difference ``a - b`` of mean scores over shared seeds, episodes and targets.

    One array a target, ``(n_seeds, n_episodes)``, with the same seeds and episodes in both.
    Targets are taken as given and weigh alike. Episodes without a score on either side are left
    out. Raises `ValueError` when the shapes differ, or nothing is shared.
    """
    first, second = checked(a), checked(b)
    shapes = [[x.shape for x in side] for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"paired scores must have the same targets, seeds and episodes, and have {shapes[0]} "
            f"and {shapes[1]}. Compare what both were run on."
        )
    differences = [x - y for x, y in zip(first, second, strict=True)]
    differences = [d[:, np.isfinite(d).all(axis=0)] for d in differences]
    if any(d.size == 0 for d in differences):
        raise ValueError("a target has no episode with a score of both.")
    found = estimate(differences, seed=seed)
    p = float(p_values([d[None] for d in differences])[0])
    return Difference(
        found.mean, found.low, found.high, p, found.n_seeds, found.n_episodes, len(differences)
    )


def p_values(differences: Sequence[Floats], n_rows: int | None = None) -> Floats:
    """The two-sided p of many pairs at once, ``(n_pairs,)``.

    `differences`: one array a target, ``(n_pairs, n_seeds, n_episodes)``; NaN is left out. With
    `n_rows` the pairs are all those of so many rows, and the variance that seeds bring is learnt
    from them together (`Spread.pooled`).
    """
    return with_seeds([tested(differences)], n_rows)


Tested = tuple[Floats, Floats, Spread | None]


def tested(differences: Sequence[Floats]) -> Tested:
    """Of some pairs: p of sign flips, mean difference, and with several seeds its spread."""
    parts, spread, mean = [], None, np.zeros(len(differences[0]))
    for array in differences:
        there = np.isfinite(array).all(axis=1)
        known = np.where(there, array.mean(axis=1) if array.shape[1] > 1 else array[:, 0], 0.0)
        if array.shape[1] > 1:
            # Seeds that cancel out leave rounding behind, which is no difference.
            known[np.abs(known) < _ROUNDING * np.abs(np.nan_to_num(array)).max(axis=1)] = 0.0
        parts.append(known / np.maximum(there.sum(axis=1), 1)[:, None] / len(differences))
        mean += parts[-1].sum(axis=1)
        if array.shape[1] > 1:
            own = Spread.of(array)
            spread = own if spread is None else spread + own
    return (
        sign_flip(np.concatenate(parts, axis=1)),
        mean,
        None if spread is None else spread.over(len(differences)),
    )


def with_seeds(parts: Sequence[Tested], n_rows: int | None = None) -> Floats:
    """The p of all pairs that were `tested` in parts, seeds taken into account."""
    found = np.concatenate([p for p, _, _ in parts])
    spreads = [spread for _, _, spread in parts if spread is not None]
    if not spreads:
        return found
    spread = Spread.stacked(spreads)
    if n_rows is not None:
        spread = spread.pooled(n_rows)
    of_both = spread.p_value(np.concatenate([mean for _, mean, _ in parts]))
    larger: Floats = np.maximum(found, of_both)
    return larger


def sign_flip(differences: Floats) -> Floats:
    """Two-sided p of the sign-flip permutation test of each row, ``(n_rows,)``.

    `differences`: ``(n_rows, n)``. The share of all ``2 ** n`` choices of signs whose sum is as
    far from 0 as the one observed: exactly, for up to 20 differences that are not 0, or 100 on a
    common grid (accuracies are); else by Lugannani and Rice's saddlepoint formula.
    """
    n = np.count_nonzero(differences, axis=1)
    found = np.ones(len(differences))
    many = n > _CONVOLVED
    for i in np.flatnonzero((n > 0) & ~many).tolist():
        row = differences[i]
        values, total = np.abs(row[row != 0]), abs(float(row.sum()))
        grid = _grid(values)
        if grid is not None:
            found[i] = _convolved(grid[0], total / grid[1])
        elif n[i] <= _ENUMERATED:
            found[i] = _enumerated(values, total)
        else:
            many[i] = True
    rows = np.flatnonzero(many)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        some = differences if len(part) == len(differences) else differences[part]
        found[part] = settled(saddlepoint(np.abs(some), np.abs(some.sum(axis=1))))
    return found


def _grid(values: Floats) -> tuple[NDArray[np.int64], float] | None:
    """`values` as multiples of one number, and the number; None where there is none."""
    scale = float(values.max())
    if values.min() < _ROUNDING * scale:
        return None
    step = 0.0
    for value in np.unique((values / scale).round(14)) * scale:
        # Euclid's algorithm, with remainders of rounding taken for nothing.
        a, b = float(value), step
        while b > 1e-9 * scale:
            a, b = b, a % b
            b = 0.0 if a - b < 1e-9 * scale else b
        step = a
        if scale / step > _LONGEST:
            return None
    whole = np.rint(values / step).astype(np.int64)
    if whole.sum() > _LONGEST or np.abs(values / step - whole).max() > 1e-6:
        return None
    return whole, step


def _convolved(values: NDArray[np.int64], total: float) -> float:
    # Entry j: the probability that the sum is j - reach.
    law = np.ones(1)
    for value in values.tolist():
        wider = np.zeros(len(law) + 2 * value)
        wider[: len(law)] += law / 2
        wider[2 * value :] += law / 2
        law = wider
    middle, far = int(values.sum()), round(total)
    upper = float(law[middle + far :].sum())
    return min(1.0, 2 * upper if far else 1.0)


def _enumerated(values: Floats, total: float) -> float:
    sums = np.zeros(1)
    # The last sign is fixed: the other half of the sums mirrors this one.
    for value in values[:-1]:
        sums = np.concatenate([sums + value, sums - value])
    sums = np.abs(sums + values[-1])
    return float((sums >= total - 1e-12 * values.sum()).mean())


def holm(p: Floats, family: int | None = None) -> Floats:
    """Holm's step-down correction of some p values (Scandinavian Journal of Statistics 6 (1979)).

    `family`: how many comparisons there are, where `p` holds only some of them; the others count
    as if their p were larger, which can only make these larger than they need be.
    """
    n = len(p) if family is None else family
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p)[order] * (n - np.arange(len(p))))
    found = np.empty(len(p))
    found[order] = np.minimum(stepped, 1.0)
    return found


def wilcoxon(differences: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact up to 100 differences, ties included.

    It is the sign-flip test of the signed ranks; differences of 0 are left out, as Wilcoxon did
    (Biometrics Bulletin 1 (1945) 80-83).
    """
    kept = np.asarray(differences, dtype=np.float64)
    kept = kept[np.isfinite(kept) & (kept != 0)]
    if not len(kept):
        return 1.0
    return float(sign_flip((midranks(np.abs(kept)) * np.sign(kept))[None])[0])


def midranks(values: Floats) -> Floats:
    """Ranks ``1 ... n`` of `values`, smallest first, along the last axis; equal values share one.

    >>> midranks(np.array([0.5, 0.2, 0.5])).tolist()
    [2.5, 1.0, 2.5]
    """
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    found: Floats = below + (equal + 1) / 2
    return found
