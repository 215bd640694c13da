"""How far a mean over crossed seeds and episodes may be off: its variance, and how sure that is.

Seeds and episodes are crossed random effects: score ``x[s, e] = mean + seed[s] + episode[e] +
rest[s, e]``. The mean's variance has a part of each, estimated from mean squares (Searle, Casella
and McCulloch, Variance Components, 1992, chapter 4). Two or three seeds tell little about theirs.
Satterthwaite's degrees of freedom for the sum make too little of that (89 % coverage with two
seeds), so each part is given Student's quantile of its own, and their squares are added (Howe,
Journal of the American Statistical Association 69 (1974) 789-794).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.stats.digits import settled

Floats = NDArray[np.float64]
# Of a variance that is itself uncertain a smaller p would say too much.
_LEAST = 1e-12


@dataclass(frozen=True)
class Pool:
    """The variances that seeds bring, ``(n_rows,)``, after rows have learnt from one another.

    ``free``: the degrees of freedom they then have.
    """

    variance: Floats
    free: float


@dataclass(frozen=True)
class Spread:
    """What the variance of many rows' means is made of; rows of several targets add up.

    ``seed_means`` ``(n_rows, n_seeds)``; the others ``(n_rows,)``: ``rest`` is the variance of the
    mean that episodes bring, ``free`` its degrees of freedom, ``second`` and ``third`` the sums of
    squares and cubes of what each episode moves the mean by.
    """

    seed_means: Floats
    rest: Floats
    free: Floats
    second: Floats
    third: Floats
    pool: Pool | None = None

    @property
    def n_seeds(self) -> int:
        """How many training seeds each row has."""
        return int(self.seed_means.shape[1])

    @classmethod
    def of(cls, scores: Floats) -> Spread:
        """The spread of rows on one target, `scores` ``(n_rows, n_seeds, n_episodes)``.

        Episodes without a score for some seed are left out.
        """
        n_seeds = scores.shape[1]
        there = np.asarray(np.isfinite(scores).all(axis=1))
        known = np.where(there[:, None], scores, 0.0)
        n = np.maximum(there.sum(axis=1), 1)
        seed_means = known.sum(axis=2) / n[:, None]
        grand = seed_means.mean(axis=1)
        moved = np.where(there, known.mean(axis=1) - grand[:, None], 0.0) / n[:, None]
        free = np.maximum(n - 1, 1)
        squares = moved * moved
        # A power of three would take ten times as long.
        second, third = squares.sum(axis=1), (squares * moved).sum(axis=1)
        episode = second * n / free
        if n_seeds == 1:
            return cls(seed_means, episode, free, second, third)
        total = np.where(there[:, None], known - grand[:, None, None], 0.0)
        # What neither the seed nor the episode explains, by Pythagoras.
        left = (total**2).sum(axis=(1, 2)) - n_seeds * second * n**2
        left -= n * ((seed_means - grand[:, None]) ** 2).sum(axis=1)
        residual = np.maximum(left, 0.0) / ((n_seeds - 1) * free) / (n_seeds * n)
        return cls(seed_means, episode - residual, free, second, third)

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            self.seed_means + other.seed_means,
            self.rest + other.rest,
            self.free + other.free,
            self.second + other.second,
            self.third + other.third,
        )

    def of_row(self, i: int) -> Spread:
        """The spread of one row alone."""
        one = slice(i, i + 1)
        return Spread(
            self.seed_means[one], self.rest[one], self.free[one], self.second[one], self.third[one]
        )

    @classmethod
    def stacked(cls, spreads: Sequence[Spread]) -> Spread:
        """The rows of several spreads, which must have as many seeds."""
        return cls(
            np.concatenate([s.seed_means for s in spreads]),
            np.concatenate([s.rest for s in spreads]),
            np.concatenate([s.free for s in spreads]),
            np.concatenate([s.second for s in spreads]),
            np.concatenate([s.third for s in spreads]),
        )

    def over(self, n: int) -> Spread:
        """The spread of the mean over `n` targets, of their sum."""
        return Spread(
            self.seed_means / n, self.rest / n**2, self.free, self.second / n**2, self.third / n**3
        )

    @property
    def acceleration(self) -> Floats:
        """A sixth of the skewness of what is averaged, ``(n_rows,)``; 0 where nothing varies."""
        found: Floats = self.third / np.where(self.second > 0, 6 * self.second**1.5, 1.0)
        return found

    @property
    def variance(self) -> Floats:
        """Of each row's mean, ``(n_rows,)``."""
        found: Floats = self._of_seeds + np.maximum(self.rest, 0.0)
        return found

    @property
    def _of_seeds(self) -> Floats:
        if self.n_seeds == 1:
            return np.zeros(len(self.seed_means))
        if self.pool is not None:
            return self.pool.variance
        found: Floats = self.seed_means.var(axis=1, ddof=1) / self.n_seeds
        return found

    def pooled(self, n_rows: int) -> Spread:
        """The same for all pairs of `n_rows` rows, which learn from one another how seeds vary.

        With three seeds each variance has two degrees of freedom, and at the level that is left
        after a correction for many comparisons nothing could be told apart. So variances are taken
        as draws from one scaled inverse chi-square law, whose scale and weight follow from how
        much they differ: a lot, and each counts for itself; no more than chance, and they count as
        one (Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004) 3). As that
        law may not hold, no variance is taken for smaller than it was found, and the degrees of
        freedom are halved; simulated, the family's error then stays below 5 % even where the seeds
        of one method vary eight times as much as those of the others.
        """
        from scipy.special import digamma, polygamma

        own, d = self._of_seeds, self.n_seeds - 1
        if d == 0 or n_rows < 3 or not own.any():
            return self
        logs = np.log(np.maximum(own, 1e-5 * float(np.median(own[own > 0]))))
        logs += math.log(d / 2) - digamma(d / 2)
        surplus = float(logs.var(ddof=1) - polygamma(1, d / 2))
        free, variance = (n_rows - 1.0) * d, np.full(len(own), float(own.mean()))
        if surplus > 0:
            weight = 2 * _inverse_trigamma(surplus)
            scale = math.exp(float(logs.mean()) + float(digamma(weight / 2)) - math.log(weight / 2))
            free, variance = min(weight + d, free), (weight * scale + d * own) / (weight + d)
        pool = Pool(np.maximum(own, variance), max(float(d), free / 2))
        return dataclasses.replace(self, pool=pool)

    def reach(self, p: Floats) -> Floats:
        """How far from 0 a mean must be to have that two-sided `p`, ``(n_rows,)``."""
        from scipy.special import stdtrit

        # Of the lower tail, as 1 - p / 2 would lose the digits of a small p.
        squared = sum(stdtrit(free, p / 2) ** 2 * part for free, part in self._parts)
        found: Floats = np.sqrt(squared)
        return found

    @property
    def _parts(self) -> list[tuple[Floats, Floats]]:
        """Degrees of freedom and variance of what the mean's variance is made of, of every row."""
        parts = [(np.asarray(self.free, dtype=np.float64), np.maximum(self.rest, 0.0))]
        if self.n_seeds > 1:
            free = self.n_seeds - 1.0 if self.pool is None else self.pool.free
            parts.append((np.full(len(self.rest), free), self._of_seeds))
        return parts

    def p_value(self, mean: Floats) -> Floats:
        """The two-sided p of every `mean` against 0, ``(n_rows,)``; no less than 1e-12.

        Where `reach` is the mean, by Newton's steps on the logarithms of both, and halvings of the
        bracket where these would leave it.
        """
        from scipy.special import betaln, stdtr, stdtrit

        found = np.where(mean == 0, 1.0, _LEAST)
        rows = np.flatnonzero((self.variance > 0) & (mean != 0))
        rows = rows[self.reach(np.full(len(mean), _LEAST))[rows] > np.abs(mean[rows])]
        if not len(rows):
            return found
        parts = [(free[rows], part[rows]) for free, part in self._parts]
        bottoms = [np.log(free) / 2 + betaln(free / 2, 0.5) for free, _ in parts]
        wanted, size = 2 * np.log(np.abs(mean[rows])), self.variance[rows]
        low, high = np.full(len(rows), math.log(_LEAST)), np.zeros(len(rows))
        # What it would be if all of the variance were known as well as the last part.
        first = 2 * stdtr(parts[-1][0], -np.abs(mean[rows]) / np.sqrt(size))
        at = np.clip(np.log(np.maximum(first, _LEAST)), low, -1e-9)
        for _ in range(100):
            p = np.exp(at)
            squared, slope = np.zeros(len(rows)), np.zeros(len(rows))
            for (free, part), bottom in zip(parts, bottoms, strict=True):
                q = -stdtrit(free, p / 2)
                squared += q**2 * part
                # Student's density is exp(-log_density): its quantile falls by p / 2 over it.
                log_density = bottom + (free + 1) / 2 * np.log1p(q**2 / free)
                slope -= q * part * p * np.exp(log_density)
            # Of a p that rounds to 1 neither has a logarithm.
            gap = np.log(np.maximum(squared, 1e-300)) - wanted
            low, high = np.where(gap > 0, at, low), np.where(gap > 0, high, at)
            falls = slope < 0
            new = at - gap * squared / np.where(falls, slope, 1.0)
            inside = falls & (new >= low) & (new <= high)
            new = np.where(inside, new, (low + high) / 2)
            step, at = np.abs(new - at), new
            if (step <= 1e-13 * np.maximum(1.0, -at)).all():
                break
        found[rows] = settled(np.exp(at))
        return found

    def widening(self, width: Floats, level: float) -> Floats:
        """By how much bootstrap intervals of that `width` must be stretched, 1 or more.

        Few seeds drawn with replacement vary less than new ones would, and their spread is itself
        uncertain: with three seeds a percentile interval may cover 76 %.
        """
        wanted = 2 * self.reach(np.full(len(width), 1 - level))
        found: Floats = np.where(width > 0, wanted / np.where(width > 0, width, 1.0), 1.0)
        return np.maximum(found, 1.0)


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function is `value`, by Newton's steps on its reciprocal."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        found = float(polygamma(1, x))
        step = found * (1 - found / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x
