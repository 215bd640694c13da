"""The tail of a sum with random signs, by a saddlepoint approximation of many rows at once.

Robinson, Journal of the Royal Statistical Society B 44 (1982) 91-101, with the formula of Lugannani
and Rice, Advances in Applied Probability 12 (1980) 475-490. Accuracies are multiples of one share,
so a row of thousands of differences holds a few dozen values: each counts once, with how often it
occurs.
"""

from __future__ import annotations

import math

import numpy as np

from medbench.stats.spread import Floats

# Values that differ by less, of the largest, are one value but for rounding.
_ROUNDING = 1e-12
# Beyond this, 1 - tanh(x) ** 2 loses digits.
_SMALL = 1.0


def saddlepoint(values: Floats, total: Floats) -> Floats:
    """The two-sided p of each row, ``(n_rows,)``: that signs drawn at random reach `total`.

    `values` ``(n_rows, n)``, not negative; `total` ``(n_rows,)``, the absolute sum observed.
    """
    least = np.exp2(1.0 - (values > 0).sum(axis=1))
    values, counts = _distinct(values)
    firsts, seconds = counts * values, counts * values**2
    most, second = firsts.sum(axis=1), seconds.sum(axis=1)
    extreme = total >= most * (1 - 1e-9)
    x = np.where(extreme, 0.0, total)
    t = _root(values, firsts, seconds, x, x / second, 1e-10 * most)
    argument = t[:, None] * values
    slope = np.tanh(argument)
    small, after = argument < _SMALL, np.exp(-2 * argument)
    narrowed = np.where(small, 1 - slope**2, 4 * after / (1 + after) ** 2)
    # log cosh, with all its digits where it is small: there they are all that is looked at.
    bent = np.log1p(np.where(small, -(slope**2), after))
    log_cosh = np.where(small, -bent / 2, argument - math.log(2) + bent)
    curve = (seconds * narrowed).sum(axis=1)
    w = np.sqrt(np.maximum(2 * (t * x - (counts * log_cosh).sum(axis=1)), 0.0))
    u = t * np.sqrt(curve)
    near = w < 1e-3
    safe_w, safe_u = np.where(near, 1.0, w), np.where(near, 1.0, u)
    correction = np.where(near, 0.0, 1 / safe_u - 1 / safe_w)
    upper = _normal_tail(w) + np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi) * correction
    found: Floats = np.where(extreme, least, np.clip(2 * upper, least, 1.0))
    return found


def _root(
    values: Floats, firsts: Floats, seconds: Floats, x: Floats, start: Floats, near: Floats
) -> Floats:
    """Where the first cumulant derivative of each row is `x`, to `near`.

    It is concave, so Newton's steps come from below and never pass the root. Rows that are there
    are left alone.
    """
    t = start.copy()
    rows = np.arange(len(t))
    for _ in range(100):
        slope = np.tanh(t[rows, None] * values)
        gap = x[rows] - (firsts * slope).sum(axis=1)
        t[rows] += gap / (seconds * (1 - slope**2)).sum(axis=1)
        going = np.abs(gap) > near[rows]
        if not going.any():
            break
        if not going.all():
            rows, values, firsts, seconds = (a[going] for a in (rows, values, firsts, seconds))
    return t


def _distinct(values: Floats) -> tuple[Floats, Floats]:
    """The distinct values of each row and how often they occur, ``(n_rows, k)``; 0 fills rows.

    Where most values are distinct they stay as they are.
    """
    n_rows, n = values.shape
    ordered = np.sort(values, axis=1)
    new = np.ones((n_rows, n), dtype=bool)
    new[:, 1:] = np.diff(ordered, axis=1) > _ROUNDING * ordered[:, -1:]
    each = new.sum(axis=1)
    if 2 * int(each.max()) > n:
        return values, np.ones((1, n))
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=new.size)
    rows = np.repeat(np.arange(n_rows), each)
    columns = np.arange(len(starts)) - np.repeat(np.cumsum(each) - each, each)
    found, counts = np.zeros((n_rows, int(each.max()))), np.zeros((n_rows, int(each.max())))
    # The mean of what is one value keeps sums as they were.
    found[rows, columns] = np.add.reduceat(ordered.ravel(), starts) / lengths
    counts[rows, columns] = lengths
    return found, counts


def _normal_tail(z: Floats) -> Floats:
    # Not scipy's: importing it takes longer than a few thousand of these.
    return np.array([math.erfc(v / math.sqrt(2)) / 2 for v in z.tolist()])
