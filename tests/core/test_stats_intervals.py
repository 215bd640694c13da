"""Intervals cover what they claim to, in the settings that docs/statistics.md names."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medbench.stats import (
    Answered,
    Spread,
    bca,
    ends,
    estimate,
    estimate_groups,
    estimates_by_group,
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


@pytest.mark.parametrize(
    ("n_seeds", "n_rows"), [(1, None), (2, None), (3, None), (3, 20), (10, 20)]
)
def test_the_p_of_a_spread_is_the_root_that_halving_finds(n_seeds, n_rows):
    rng = np.random.default_rng(n_seeds)
    scores = crossed(rng, n_seeds, 40, 0.5, 1.0, 0.5, 190)
    scores[0], scores[1] = 0.0, 0.25  # nothing varies
    spread = Spread.of(scores)
    spread = spread if n_rows is None else spread.pooled(n_rows)
    mean = means(scores) * 10.0 ** rng.uniform(-12, 1.5, 190)
    low, high = np.full(190, np.log(1e-12)), np.zeros(190)
    for _ in range(60):
        middle = (low + high) / 2
        beyond = spread.reach(np.exp(middle)) <= np.abs(mean)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    halved = np.where(spread.variance == 0, np.where(mean == 0, 1.0, 1e-12), np.exp(high))
    np.testing.assert_allclose(spread.p_value(mean), halved, rtol=1e-9)
    assert len(set(spread.p_value(mean))) > 100


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


def of_patients(rng, ability, likely=None, n_episodes=100, n_query=20, n_seeds=1, seed_sd=0.0):
    """Scores, and right answers of queries whose patient decides how hard they are.

    `likely`: how often each patient is asked about. Seeds move all patients alike.
    """
    n = len(ability)
    patients = rng.choice(n, (n_episodes, n_query), p=likely)
    moved = ability + rng.normal(0, seed_sd, (n_seeds, 1))
    right = rng.random((n_seeds, n_episodes, n_query)) < np.clip(moved, 0, 1)[:, patients]
    group, place = np.unique(patients, return_inverse=True)
    sums = np.bincount(place.ravel(), right.sum(axis=0).ravel())
    answers = n_seeds * np.bincount(place.ravel()).astype(float)
    return right.mean(axis=2), group, sums, answers


def truth_of(sd):
    """The mean ability of all patients there could be; abilities stay within 0 and 1."""
    return np.clip(0.7 + np.random.default_rng(0).normal(0, sd, 400_000), 0, 1).mean()


def abilities(rng, n, sd):
    return np.clip(0.7 + rng.normal(0, sd, n), 0, 1)


@pytest.mark.parametrize(("n_patients", "sd"), [(12, 0.15), (40, 0.15), (40, 0.0), (200, 0.15)])
def test_resampling_patients_covers_new_patients_where_episodes_alone_do_not(n_patients, sd):
    rng = np.random.default_rng(n_patients)
    truth, trials = truth_of(sd), 400
    rows, plain = [], 0
    for _ in range(trials):
        scores, *counts = of_patients(rng, abilities(rng, n_patients, sd))
        rows.append(([scores], [Answered("d", *counts)]))
        alone = estimate([scores])
        plain += alone.low <= truth <= alone.high
    found = estimates_by_group(rows, "patient")
    share = np.mean([e.low <= truth <= e.high for e in found])
    assert share >= 0.95 - error(0.95, trials) - 0.005
    if sd:
        # No wider than it need be, either.
        assert share <= 0.95 + error(0.95, trials) + 0.005
        assert n_patients > 40 or plain / trials < 0.8
    assert found[0].covers == "episodes and patients"


def test_patients_of_whom_some_have_most_images_are_covered():
    rng = np.random.default_rng(1)
    likely = 1 / np.arange(1, 41)
    likely /= likely.sum()
    truth, trials, rows = truth_of(0.15), 400, []
    for _ in range(trials):
        scores, *counts = of_patients(rng, abilities(rng, 40, 0.15), likely)
        rows.append(([scores], [Answered("d", *counts)]))
    found = estimates_by_group(rows, "patient")
    share = np.mean([e.low <= truth <= e.high for e in found])
    assert share >= 0.95 - error(0.95, trials) - 0.005


@pytest.mark.parametrize("same", [True, False])
def test_a_mean_over_targets_covers_whether_they_share_patients_or_not(same):
    rng = np.random.default_rng(2)
    truth, trials, rows = truth_of(0.15), 400, []
    for _ in range(trials):
        ability = abilities(rng, 30, 0.15)
        parts = []
        for target in range(2):
            own = ability if same else abilities(rng, 30, 0.15)
            scores, *counts = of_patients(rng, own)
            parts.append((scores, Answered("d" if same else f"d{target}", *counts)))
        rows.append(tuple(zip(*parts, strict=True)))
    found = estimates_by_group(rows, "patient")
    share = np.mean([e.low <= truth <= e.high for e in found])
    assert share == pytest.approx(0.95, abs=error(0.95, trials) + 0.005)


def test_seeds_episodes_and_patients_are_covered_together():
    rng = np.random.default_rng(3)
    trials, rows = 400, []
    for _ in range(trials):
        ability = 0.7 + rng.uniform(-0.2, 0.2, 40)
        scores, *counts = of_patients(rng, ability, n_seeds=3, seed_sd=0.02)
        rows.append(([scores], [Answered("d", *counts)]))
    found = estimates_by_group(rows, "patient")
    share = np.mean([e.low <= 0.7 <= e.high for e in found])
    assert share >= 0.95 - error(0.95, trials) - 0.005
    assert found[0].covers == "training seeds, episodes and patients"


def test_a_patients_row_is_the_same_alone_and_among_others_and_in_any_order():
    rng = np.random.default_rng(4)
    ability = abilities(rng, 15, 0.2)
    rows = []
    for _ in range(3):
        scores, group, right, answers = of_patients(rng, ability, n_seeds=2)
        turn = rng.permutation(len(group))
        counted = Answered("d", group[turn], right[turn], answers[turn])
        rows.append(([scores], [counted]))
    together = estimates_by_group(rows, "patient")
    assert together == [estimate_groups(*row, "patient") for row in rows]


def test_without_differences_between_patients_the_interval_is_that_of_answers():
    rng = np.random.default_rng(5)
    scores, *counts = of_patients(rng, np.full(500, 0.7), n_episodes=300)
    found = estimate_groups([scores], [Answered("d", *counts)], "image")
    half = 1.96 * np.sqrt(0.7 * 0.3 / 6000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)


def test_too_few_patients_are_refused():
    few = Answered("d", np.arange(9), np.ones(9), np.ones(9))
    with pytest.raises(ValueError, match="9 patients are too few"):
        estimate_groups([np.ones((1, 5))], [few], "patient")
