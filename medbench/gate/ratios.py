"""Ratios of costs from rounds: the estimate, its uncertainty, and how the two sides were measured.

All is done on logarithms: a machine that is slower multiplies. Rounds that were run in turns
(A B, B A, ...) are compared pair by pair, so that what changes slowly cancels, and their own spread
tells the noise. Where the sides were measured apart, that noise is not in the data, and the
declared one takes its place: it does not shrink with more rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medbench.gate.measurements import Floats, Round
from medbench.gate.moderated import Prior
from medbench.gate.thresholds import Memory, Time

_TRIMMED_FROM = 8
# No two processes agree better than by one per cent, whatever a few rounds say by luck.
_LEAST_VARIANCE = 2 * 0.01**2


@dataclass(frozen=True)
class Sample:
    """What the rounds say of one log ratio, before other cells lend their knowledge of the noise.

    ``variance`` is that of one round (of one pair of rounds), with ``df``; ``fixed`` a variance of
    the mean that more rounds would not lessen.
    """

    mean: float
    variance: float
    df: int
    weight: float
    """What one round's variance is multiplied by for the mean's."""
    fixed: float
    before: float
    after: float
    n: int
    note: str = ""

    def interval(self, prior: Prior, level: float = 0.95) -> tuple[float, float, float]:
        """Both ends of the interval, and the two-sided p-value of no difference."""
        variance, df = prior.posterior(self.variance, self.df)
        within = max(variance, _LEAST_VARIANCE) * self.weight
        total = within + self.fixed
        if not self.weight:
            # All of it is declared, and nothing estimated from few rounds.
            df = math.inf
        error = math.sqrt(total)
        if error == 0:
            return self.mean, self.mean, 0.0 if self.mean else 1.0
        half = float(stats.t.ppf((1 + level) / 2, df)) * error
        p = 2 * float(stats.t.sf(abs(self.mean) / error, df))
        return self.mean - half, self.mean + half, p


def in_turns(before: Sequence[Round], after: Sequence[Round]) -> bool:
    """Whether the rounds of both sides alternate in time, pair by pair, two pairs at least."""
    if len(before) != len(after) or len(before) < 2:
        return False
    order = sorted([(r.created, 0) for r in before] + [(r.created, 1) for r in after])
    return all(a[1] != b[1] for a, b in zip(order[::2], order[1::2], strict=True))


def time_sample(
    before: Sequence[Round], after: Sequence[Round], name: str, rules: Time
) -> Sample | None:
    """What the rounds of a cell say of one of its times; None where a side did not measure it."""
    before = sorted((r for r in before if r.times.get(name)), key=lambda r: r.created)
    after = sorted((r for r in after if r.times.get(name)), key=lambda r: r.created)
    if not before or not after:
        return None
    net = all(r.waits.get(name) for r in [*before, *after])
    a = np.array([level(r, name, net=net) for r in before])
    b = np.array([level(r, name, net=net) for r in after])
    turns, moved = in_turns(before, after), _machine(before, after)
    noise, note = rules.noise, ""
    if moved is None:
        moved = np.zeros(1)
        if not turns:
            noise, note = rules.uncalibrated_noise, "no calibration of the machine on both sides"
    doubt = rules.calibration_error * float(np.mean(moved))
    return _sample(a, b - moved, turns, noise, doubt, (a, b), note)


def host_sample(before: Sequence[Round], after: Sequence[Round], rules: Memory) -> Sample | None:
    """What the rounds of a cell say of the resident set that its episodes added."""
    name = "peak_host_added_bytes"
    before = sorted((r for r in before if r.memory.get(name)), key=lambda r: r.created)
    after = sorted((r for r in after if r.memory.get(name)), key=lambda r: r.created)
    if not before or not after:
        return None
    a = np.log([r.memory[name] for r in before])
    b = np.log([r.memory[name] for r in after])
    return _sample(a, b, in_turns(before, after), rules.noise, 0.0, (a, b), "")


def trimmed(values: Floats) -> tuple[float, float, int, float]:
    """Mean of `values` without the most extreme tenth at each end, and how sure it is.

    Returns the mean, a variance, its degrees of freedom, and the factor that makes it the mean's
    variance. With eight values and more one at least is left out at each end: a neighbour on
    the machine who spoils one round must not decide. Source: K. K. Yuen, "The two-sample trimmed
    t for unequal population variances", Biometrika 61 (1974) 165-170.
    """
    n = len(values)
    cut = max(1, n // 10) if n >= _TRIMMED_FROM else 0
    kept = n - 2 * cut
    order = np.sort(values)
    inner = order[cut : n - cut]
    winsorised = np.clip(order, inner[0], inner[-1])
    variance = float(winsorised.var(ddof=1)) * (n - 1) / (kept - 1)
    return float(inner.mean()), variance, kept - 1, 1 / kept


def _sample(
    a: Floats,
    b: Floats,
    turns: bool,
    noise: float,
    doubt: float,
    measured: tuple[Floats, Floats],
    note: str,
) -> Sample:
    """`a` and `b`: log values by round, corrected; `measured`: the same as they were."""
    levels = (float(np.exp(measured[0].mean())), float(np.exp(measured[1].mean())))
    if turns:
        n = len(b)
        mean, spread, df, weight = trimmed(b - a)
        return Sample(mean, spread, df, weight, doubt**2, *levels, n, note)
    # Rounds of one session share its state: their number lessens nothing.
    fixed = doubt**2 + 2 * noise**2
    n = min(len(a), len(b))
    return Sample(float(b.mean() - a.mean()), 0.0, 0, 0.0, fixed, *levels, n, note)


def machine_change(before: Sequence[Round], after: Sequence[Round]) -> float | None:
    """By how much the machine was slower, as a log ratio; None without calibrations on both."""
    moved = _machine(before, after)
    return None if moved is None else float(moved.mean())


def level(round_: Round, name: str, *, net: bool) -> float:
    """The log of the median time of an episode, in this process."""
    values = np.asarray(round_.times[name], dtype=np.float64)
    if net:
        values = values - np.asarray(round_.waits[name])
    return float(np.log(max(float(np.median(values)), 1e-9)))


def _machine(before: Sequence[Round], after: Sequence[Round]) -> Floats | None:
    """By how much the machine was slower after, as log ratios: one a pair, or one in all."""
    versions = {r.calibration_version for r in [*before, *after]}
    if len(versions) != 1 or None in versions:
        return None
    if not all(r.calibration for r in [*before, *after]):
        return None
    a, b = np.array([speed(r) for r in before]), np.array([speed(r) for r in after])
    found: Floats = b - a if in_turns(before, after) else np.array([b.mean() - a.mean()])
    return found


def speed(round_: Round) -> float:
    """The mean log time of the pieces of calibration work, at both ends of the episodes."""
    return float(np.mean([np.mean(np.log(v)) for v in round_.calibration.values()]))
