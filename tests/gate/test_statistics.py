"""The gate's statistics, held against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from medbench.gate.moderated import Prior, fit_prior, inverse_trigamma
from medbench.gate.ratios import Sample, in_turns, trimmed
from medbench.gate.steps import find_steps, noise_of
from medbench.gate.verdicts import holm


def test_holm_equals_the_step_down_rule():
    # By hand: 4 * .005, 3 * .01, 2 * .03 and then no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7]) == [0.7]


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(0)
    wrong = sum(min(holm(rng.random(20).tolist())) < 0.05 for _ in range(4000))
    assert 0.035 < wrong / 4000 < 0.065


@pytest.mark.parametrize("n", [8, 10, 25])
def test_the_trimmed_mean_is_yuens(n):
    values = np.random.default_rng(n).standard_t(3, n)
    mean, variance, df, weight = trimmed(values)
    cut = max(1, n // 10)
    assert mean == pytest.approx(stats.trim_mean(values, cut / n + 1e-9))
    # scipy's two-sample Yuen test with a constant second sample of no variance is the one-sample.
    theirs = stats.ttest_ind(values, np.zeros(n), equal_var=False, trim=cut / n + 1e-9)
    assert mean / math.sqrt(variance * weight) == pytest.approx(theirs.statistic)
    assert df == n - 2 * cut - 1


def test_few_values_are_not_trimmed():
    values = np.array([1.0, 2.0, 4.0])
    assert trimmed(values) == pytest.approx((7 / 3, values.var(ddof=1), 2, 1 / 3))


def test_the_interval_without_a_prior_is_the_t_interval():
    values = np.random.default_rng(1).normal(0.1, 0.08, 6)
    mean, variance, df, weight = trimmed(values)
    low, high, p = Sample(mean, variance, df, weight, 0.0, 1, 1, 6).interval(Prior(1.0, 0.0))
    test = stats.ttest_1samp(values, 0.0)
    assert p == pytest.approx(test.pvalue)
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_declared_noise_alone_gives_the_normal_interval():
    low, high, p = Sample(0.3, 0.0, 0, 0.0, 0.01, 1, 1, 1).interval(Prior(0.5, 4.0))
    assert (low, high) == pytest.approx((0.3 - 1.959964 * 0.1, 0.3 + 1.959964 * 0.1))
    assert p == pytest.approx(2 * stats.norm.sf(3.0))


def test_inverse_trigamma_inverts():
    for value in (1e-8, 1e-3, 0.3, 1.0, 50.0, 1e9):
        assert float(polygamma(1, inverse_trigamma(value))) == pytest.approx(value, rel=1e-6)


def test_the_fitted_prior_is_that_of_the_draws():
    # Variances drawn as the model says: s0^2 d0 / chi2(d0), then samples with d degrees of freedom.
    rng = np.random.default_rng(2)
    true = 0.04 * 10 / rng.chisquare(10, 20000)
    found = fit_prior((true * rng.chisquare(6, 20000) / 6).tolist(), [6] * 20000, 1.0)
    assert found.variance == pytest.approx(0.04, rel=0.03)
    assert found.df == pytest.approx(10, rel=0.1)


def test_equal_variances_lend_each_other_all_they_may():
    rng = np.random.default_rng(3)
    found = fit_prior((0.01 * rng.chisquare(4, 5000) / 4).tolist(), [4] * 5000, 1.0)
    assert found.variance == pytest.approx(0.01, rel=0.03)
    assert found.df == 20


def test_with_few_samples_the_declared_noise_is_the_prior():
    assert fit_prior([0.1, 0.2, 0.3], [4, 4, 4], 0.007) == Prior(0.007, 4.0)


def test_moderated_intervals_cover_as_they_say():
    rng = np.random.default_rng(4)
    inside = total = 0
    for _ in range(300):
        values = rng.normal(0, 0.1 * np.sqrt(8 / rng.chisquare(8, (12, 1))), (12, 5))
        samples = [Sample(*trimmed(v), 0.0, 1, 1, 5) for v in values]
        prior = fit_prior([s.variance for s in samples], [s.df for s in samples], 0.01)
        for sample in samples:
            low, high, _ = sample.interval(prior)
            inside += low <= 0 <= high
            total += 1
    assert 0.935 < inside / total < 0.965


def test_turns_are_told_from_sides_measured_apart(round_at):
    assert in_turns([round_at(0), round_at(2)], [round_at(1), round_at(3)])
    assert in_turns([round_at(0), round_at(3)], [round_at(1), round_at(2)])
    assert not in_turns([round_at(0), round_at(1)], [round_at(2), round_at(3)])
    assert not in_turns([round_at(0)], [round_at(1)])
    assert not in_turns([round_at(0), round_at(2)], [round_at(1)])


def test_steps_are_found_where_they_are_and_how_large():
    rng = np.random.default_rng(5)
    hits = places = 0
    for _ in range(200):
        series = 0.04 * rng.standard_t(3, 40) / math.sqrt(3)
        series[25:] += math.log(1.15)
        found = find_steps(series, 0.01, 0.05)
        hits += len(found) == 1
        places += len(found) == 1 and abs(found[0].at - 25) <= 1
    assert hits >= 190
    assert places >= 185


def test_noise_has_no_steps():
    rng = np.random.default_rng(6)
    wrong = sum(
        bool(find_steps(0.04 * rng.standard_t(3, 40) / math.sqrt(3), 0.01, 0.05))
        for _ in range(300)
    )
    assert wrong <= 6


def test_one_bad_run_is_no_step_and_neither_are_too_few_runs():
    quiet = np.random.default_rng(7).normal(0, 0.01, 30)
    quiet[12] += 1.0
    quiet[-1] += 1.0
    assert find_steps(quiet, 0.01, 0.05) == []
    assert find_steps([0.0, 0.0, 0.0, 1.0, 1.0], 0.01, 0.05) == []
    (step,) = find_steps([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 0.01, 0.05)
    assert (step.at, step.before, step.after) == (3, 0.0, 1.0)


def test_two_steps_are_two_and_the_noise_is_that_around_them():
    rng = np.random.default_rng(8)
    series = np.repeat([0.0, 0.5, 0.2], 20) + rng.normal(0, 0.03, 60)
    assert [s.at for s in find_steps(series, 0.01, 0.05)] == [20, 40]
    assert noise_of(series) == pytest.approx(0.03, rel=0.3)
