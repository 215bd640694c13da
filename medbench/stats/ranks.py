"""Ranks of the rows of a table, as far as paired tests tell them apart.

A bootstrap of ranks would promise too much: two methods that are nearly equal change places in
every replicate, and the mean over targets of such ranks is drawn to the middle. Intervals here
follow from the tests instead: a rank cannot be better than one place behind all methods that are
significantly better. With tests whose family-wise error is at most 5 % all these intervals hold
together with 95 % (Al Mohamad, Goeman and van Zwet, Biometrics 78 (2022) 627-638).
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medbench.stats.spread import Floats

Flags = NDArray[np.bool_]


def rank_bounds(better: Flags) -> tuple[Floats, Floats]:
    """The best and the worst rank each of n methods may have, ``(n,)`` each.

    ``better[i, j]``: i is significantly better than j.
    """
    n = len(better)
    return 1.0 + better.sum(axis=0), float(n) - better.sum(axis=1)


def p_best(replicates: Floats) -> Floats:
    """The share of bootstrap replicates in which each row is the best, ``(n_rows,)``.

    `replicates`: ``(n_rows, n_replicates)``, larger is better; rows that tie for best share it.
    """
    best = replicates == replicates.max(axis=0)
    found: Floats = (best / best.sum(axis=0)).mean(axis=1)
    return found


def tie_groups(different: Flags) -> list[str]:
    """Letters for methods in the order of their scores, ``(n, n)``; those sharing one are tied.

    A group is a longest run of neighbours none of which differs significantly from another, as
    critical-difference diagrams draw bars. The best method has ``a``.

    >>> d = np.zeros((3, 3), bool); d[0, 2] = d[2, 0] = True
    >>> tie_groups(d)
    ['a', 'ab', 'b']
    """
    n = len(different)
    runs: list[tuple[int, int]] = []
    for start in range(n):
        end = start + 1
        while end < n and not different[start : end + 1, end].any():
            end += 1
        if not runs or end > runs[-1][1]:
            runs.append((start, end))
    letters = [""] * n
    for number, (start, end) in enumerate(runs):
        for i in range(start, end):
            letters[i] += _letter(number)
    return letters


def _letter(number: int) -> str:
    """Of the n-th group: a to z, then A to Z, then a1 and so on."""
    alphabet = string.ascii_letters
    turn, place = divmod(number, len(alphabet))
    return alphabet[place] + (str(turn) if turn else "")


def better_than(means: Floats, p: Floats, pairs: Sequence[tuple[int, int]]) -> Flags:
    """``better[i, j]`` from the corrected `p` of each of `pairs`, at 5 %."""
    found = np.zeros((len(means), len(means)), dtype=bool)
    for (i, j), value in zip(pairs, p, strict=True):
        if value < 0.05:
            found[(i, j) if means[i] > means[j] else (j, i)] = True
    return found
