"""Intervals cover what they claim to, in the settings that docs/statistics.md names."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medbench.stats import (
    Spread,
    bca,
    ends,
    estimate,
    estimate_groups,
    means,
    percentiles,
    replicates,
)

TRIALS = 1000


def covered(scores, truth=0.0) -> float:
    """How often the intervals of many rows hold the truth."""
    low, high = ends(means(scores), replicates(scores, 0), Spread.of(scores))
    return float(((low <= truth) & (truth <= high)).mean())


def error(share, n=TRIALS) -> float:
    return 3 * float(np.sqrt(share * (1 - share) / n))


def crossed(rng, n_seeds, n_episodes, seed_sd, episode_sd, rest_sd, n=TRIALS):
    return (
        rng.normal(0, seed_sd, (n, n_seeds, 1))
        + rng.normal(0, episode_sd, (n, 1, n_episodes))
        + rng.normal(0, rest_sd, (n, n_seeds, n_episodes))
    )


@pytest.mark.parametrize("n_episodes", [150, 600])
def test_one_seed_covers_new_episodes(n_episodes):
    scores = crossed(np.random.default_rng(n_episodes), 1, n_episodes, 0, 1, 0)
    assert covered(scores) == pytest.approx(0.95, abs=error(0.95) + 0.005)


@pytest.mark.parametrize("n_seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("sds", [(1.0, 0.3, 0.1), (0.1, 1.0, 1.0), (0.0, 1.0, 0.3)])
def test_few_seeds_cover_new_seeds_and_episodes(n_seeds, sds):
    scores = crossed(np.random.default_rng(n_seeds), n_seeds, 100, *sds)
    found = covered(scores)
    assert found >= 0.95 - error(0.95) - 0.005
    if sds[0] == 1.0:
        # Where seeds rule the interval is no wider than it need be.
        assert found == pytest.approx(0.95, abs=error(0.95) + 0.01)


def test_without_the_widening_three_seeds_would_not_be_covered():
    scores = crossed(np.random.default_rng(3), 3, 100, 1.0, 0.3, 0.1)
    low, high = percentiles(replicates(scores, 0))
    assert ((low <= 0) & (high >= 0)).mean() < 0.8


def test_the_variance_of_a_mean_is_unbiased_and_counts_what_it_should():
    sds = (0.5, 1.0, 2.0)
    scores = crossed(np.random.default_rng(4), 4, 50, *sds, n=4000)
    spread = Spread.of(scores)
    truth = 0.5**2 / 4 + 1.0 / 50 + 4.0 / 200
    own = spread.seed_means.var(axis=1, ddof=1) / 4 + spread.rest
    assert own.mean() == pytest.approx(truth, rel=0.05)
    assert means(scores).var() == pytest.approx(truth, rel=0.1)


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance():
    x = np.random.default_rng(5).normal(size=(3, 8))
    grand, rows, columns = x.mean(), x.mean(1, keepdims=True), x.mean(0, keepdims=True)
    ms_episode = 3 * ((columns - grand) ** 2).sum() / 7
    ms_rest = ((x - rows - columns + grand) ** 2).sum() / 14
    spread = Spread.of(x[None])
    assert spread.rest[0] == pytest.approx((ms_episode - ms_rest) / 24)
    assert spread.free[0] == 7


def test_p_and_interval_of_the_spread_are_one_thing():
    spread = Spread.of(crossed(np.random.default_rng(6), 3, 40, 1, 1, 1, n=50))
    for level in (0.5, 0.95, 0.999):
        edge = spread.reach(np.full(50, 1 - level))
        np.testing.assert_allclose(spread.p_value(edge), 1 - level, rtol=1e-6)


def test_seeds_that_vary_far_more_than_episodes_give_students_interval():
    rng = np.random.default_rng(7)
    seeds = rng.normal(0, 1, 3)
    scores = seeds[None, :, None] + rng.normal(0, 1e-4, (1, 3, 200))
    half = stats.t.ppf(0.975, 2) * seeds.std(ddof=1) / np.sqrt(3)
    assert Spread.of(scores).reach(np.array([0.05]))[0] == pytest.approx(half, rel=1e-3)


def test_bca_is_scipys_bca():
    scores = np.random.default_rng(8).exponential(1, 60)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=200_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    ours = estimate([scores[None]], method="bca")
    width = theirs.high - theirs.low
    # Two thousand replicates against two hundred thousand.
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    plain = estimate([scores[None]])
    assert ours.low > plain.low
    assert ours.high > plain.high


def test_bca_covers_better_where_scores_are_skewed():
    x = np.random.default_rng(9).exponential(1, (TRIALS, 1, 50))
    drawn, spread = replicates(x, 0), Spread.of(x)
    low, high = bca(means(x), drawn, spread)
    plain_low, plain_high = percentiles(drawn)
    corrected = ((low <= 1) & (high >= 1)).mean()
    plain = ((plain_low <= 1) & (plain_high >= 1)).mean()
    assert corrected > plain
    assert corrected >= 0.95 - error(0.95) - 0.015
    # What the percentile interval misses, it misses on one side.
    assert (plain_high < 1).mean() > 2 * (plain_low > 1).mean()


def test_bca_is_for_one_seed_and_flat_scores_have_no_width():
    with pytest.raises(ValueError, match="one training seed, and there are 2"):
        estimate([np.zeros((2, 5))], method="bca")
    found = estimate([np.full((1, 9), 0.3)], method="bca")
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.3))


def of_patients(rng, n_patients, patient_sd, n_episodes=100, n_query=20):
    """Right answers of queries whose patient decides how hard they are."""
    ability = np.clip(0.7 + rng.normal(0, patient_sd, n_patients), 0, 1)
    patients = rng.integers(0, n_patients, (n_episodes, n_query))
    right = rng.random((n_episodes, n_query)) < ability[patients]
    sums = np.bincount(patients.ravel(), right.ravel(), n_patients)
    return right.mean(axis=1), sums, np.bincount(patients.ravel(), minlength=n_patients)


@pytest.mark.parametrize(("n_patients", "sd"), [(40, 0.15), (40, 0.0), (200, 0.15)])
def test_resampling_patients_covers_new_patients_where_episodes_alone_do_not(n_patients, sd):
    rng = np.random.default_rng(n_patients)
    truth = np.clip(0.7 + rng.normal(0, sd, 400_000), 0, 1).mean()
    found = {"patients": 0, "episodes": 0}
    trials = 300
    for _ in range(trials):
        scores, sums, counts = of_patients(rng, n_patients, sd)
        wide = estimate_groups([scores[None]], [sums], [counts.astype(float)], "patient")
        plain = estimate([scores[None]])
        found["patients"] += wide.low <= truth <= wide.high
        found["episodes"] += plain.low <= truth <= plain.high
    assert found["patients"] / trials >= 0.95 - error(0.95, trials) - 0.01
    if (n_patients, sd) == (40, 0.15):
        assert found["episodes"] / trials < 0.8
    assert wide.covers == "episodes and patients"


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="9 patients are too few"):
        estimate_groups([np.ones((1, 5))], [np.ones(9)], [np.ones(9)], "patient")
