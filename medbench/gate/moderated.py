"""Variances of many small samples, each helped by all others (Smyth 2004).

Five rounds tell little of a cell's noise, and twenty cells with five rounds each tell much of the
noise of the machine. The empirical-Bayes estimate shrinks each variance towards the common one, as
far as the variances themselves say that they are alike.
Source: G. K. Smyth, "Linear models and empirical Bayes methods for assessing differential
expression in microarray experiments", Stat. Appl. Genet. Mol. Biol. 3 (2004), equations in 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, polygamma

# With fewer samples the spread of their variances is not known well enough to shrink by.
_FEWEST = 4
# However alike variances look, each sample keeps a say: one disturbed round must show.
_MOST_PRIOR_DF = 20.0


@dataclass(frozen=True)
class Prior:
    """What is known of a variance before its own sample: its value, worth ``df`` observations."""

    variance: float
    df: float

    def posterior(self, variance: float, df: int) -> tuple[float, float]:
        """The moderated variance of a sample with `df` degrees of freedom, and its own."""
        total = self.df + df
        return (self.df * self.variance + df * variance) / total, total


def fit_prior(variances: Sequence[float], dfs: Sequence[int], declared: float) -> Prior:
    """The prior that sample `variances` with `dfs` degrees of freedom share.

    `declared` is the variance to assume, with the weight of four observations, where there are too
    few samples. Samples without spread (equal to the last digit) are left out.
    """
    pairs = [(v, d) for v, d in zip(variances, dfs, strict=True) if v > 0 and d > 0]
    if len(pairs) < _FEWEST:
        return Prior(declared, 4.0)
    s2 = np.array([v for v, _ in pairs])
    half = np.array([d for _, d in pairs], dtype=np.float64) / 2
    e = np.log(s2) - digamma(half) + np.log(half)
    extra = float(e.var(ddof=1) - polygamma(1, half).mean())
    df = math.inf if extra <= 0 else 2 * inverse_trigamma(extra)
    centre = float(e.mean())
    if math.isfinite(df):
        centre += float(digamma(df / 2)) - math.log(df / 2)
    return Prior(math.exp(centre), min(df, _MOST_PRIOR_DF))


def inverse_trigamma(value: float) -> float:
    """The positive x with trigamma(x) = `value`, by Newton's method on 1 / trigamma.

    >>> round(float(polygamma(1, inverse_trigamma(0.3))), 12)
    0.3
    """
    if value > 1e7:
        return 1 / math.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        here = float(polygamma(1, x))
        step = here * (1 - here / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x
