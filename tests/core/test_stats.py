"""Intervals cover what they claim to cover."""

from __future__ import annotations

import numpy as np
import pytest

from medbench.stats import REPLICATES, Spread, ends, estimate, means, percentiles, replicates


def test_one_seed_agrees_with_the_normal_interval_of_a_mean():
    scores = np.random.default_rng(0).beta(8, 4, 600)
    found = estimate([scores[None]])
    half = 1.96 * scores.std(ddof=1) / np.sqrt(600)
    assert found.mean == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    assert found.covers == "episodes"


def test_the_interval_of_a_mean_over_targets_counts_targets_as_fixed():
    rng = np.random.default_rng(1)
    arrays = [rng.normal(m, 0.1, (1, 400)) for m in (0.2, 0.9)]
    found = estimate(arrays)
    half = 1.96 * np.sqrt(2 * 0.1**2 / 400) / 2
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.parametrize(("n_seeds", "episode_sd", "seed_sd"), [(1, 0.1, 0.0), (8, 0.1, 0.03)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n_seeds, episode_sd, seed_sd):
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        episode = rng.normal(0, episode_sd, 200)
        seed = rng.normal(0, seed_sd, (n_seeds, 1))
        noise = rng.normal(0, 0.05, (n_seeds, 200))
        found = estimate([0.7 + seed + episode + noise])
        hits += found.low <= 0.7 <= found.high
    # A percentile bootstrap over eight seeds is somewhat narrow; far too narrow it must not be.
    assert hits >= (180 if n_seeds == 1 else 172)


def test_more_seeds_that_agree_do_not_hide_that_episodes_are_few():
    rng = np.random.default_rng(3)
    episode = rng.normal(0.7, 0.1, 100)
    one = estimate([episode[None]])
    many = estimate([np.repeat(episode[None], 10, axis=0)])
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)
    assert many.covers == "training seeds and episodes"


def test_missing_scores_are_left_out_and_the_result_is_reproducible():
    scores = np.array([[0.5, np.nan, 0.7, 0.6]])
    assert estimate([scores]).mean == pytest.approx(0.6)
    assert estimate([scores]) == estimate([scores])


def test_nothing_to_estimate_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
    with pytest.raises(ValueError, match="same seeds"):
        estimate([np.zeros((1, 3)), np.zeros((2, 3))])


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_row_has_the_same_digits_whatever_rows_are_computed_beside_it(n_seeds):
    scores = np.random.default_rng(4).gamma(2.0, 2.0, (40, n_seeds, 97))
    scores[3, 0, 5] = np.nan
    everything = replicates(scores, 1)
    assert everything.shape == (40, REPLICATES)
    for i in range(40):
        np.testing.assert_array_equal(replicates(scores[i : i + 1], 1)[0], everything[i])
    low, high = ends(means(scores), replicates(scores, 0), Spread.of(scores))
    for i in range(40):
        alone = estimate([scores[i]])
        assert (alone.mean, alone.low, alone.high) == (means(scores)[i], low[i], high[i])


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e-6, 0.0])
def test_replicates_are_the_means_of_what_is_drawn(scale):
    from medbench.stats import weights

    scores = scale * np.random.default_rng(5).normal(size=(2, 4, 60))
    by_seed, by_episode = weights(4, 0, -1).astype(float), weights(60, 0, 2).astype(float)
    for row, found in zip(scores, replicates(scores, 2), strict=True):
        exact = np.einsum("bs,be,se->b", by_seed, by_episode, row) / (4 * 60)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 * max(scale, 1e-3))


def test_an_end_half_way_between_two_printed_numbers_is_always_printed_alike():
    drawn = np.full((2, REPLICATES), 0.7325)
    drawn[1] += 1e-15
    low, high = percentiles(drawn)
    assert low[0] == low[1] == high[0] == 0.7325
