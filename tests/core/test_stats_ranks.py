"""Ranks, ties, data sets and posteriors agree with independent implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medbench.stats import (
    across_datasets,
    better_than,
    friedman,
    holm,
    joined,
    midranks,
    p_best,
    p_values,
    rank_bounds,
    replicates,
    signed_rank,
    tie_groups,
)


def test_midranks_are_scipys():
    for seed in range(10):
        x = np.random.default_rng(seed).integers(0, 5, (4, 9)).astype(float)
        np.testing.assert_array_equal(midranks(x), stats.rankdata(x, axis=1))


def judged(scores):
    """Which rows of ``(n_rows, n_episodes)`` are significantly better than which."""
    pairs = list(itertools.combinations(range(len(scores)), 2))
    p = p_values([np.stack([scores[i] - scores[j] for i, j in pairs])[:, None]])
    return better_than(scores.mean(axis=1), holm(p), pairs)


def test_all_rank_intervals_hold_together_as_often_as_they_say():
    truth = np.array([0.70, 0.70, 0.69, 0.66, 0.66, 0.60])
    # Equal methods may have any of the ranks they share.
    best = np.array([1 + (truth > t).sum() for t in truth])
    worst = np.array([(truth >= t).sum() for t in truth])
    rng = np.random.default_rng(0)
    held, trials = 0, 400
    for _ in range(trials):
        episodes = rng.normal(0, 0.1, 200)
        scores = truth[:, None] + episodes + rng.normal(0, 0.05, (6, 200))
        low, high = rank_bounds(judged(scores))
        held += bool(((low <= best) & (worst <= high)).all())
    assert held / trials >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


def test_equal_methods_are_tied_as_often_as_they_should_be():
    rng = np.random.default_rng(1)
    apart = 0
    for _ in range(400):
        scores = rng.normal(0, 0.1, 150) + rng.normal(0, 0.05, (5, 150))
        better = judged(scores)
        order = np.argsort(-scores.mean(axis=1))
        letters = tie_groups((better | better.T)[np.ix_(order, order)])
        apart += letters != ["a"] * 5
    assert apart / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_groups_are_the_longest_runs_without_a_difference():
    different = np.zeros((5, 5), dtype=bool)
    for i, j in [(0, 2), (0, 3), (0, 4), (1, 4), (2, 4)]:
        different[i, j] = different[j, i] = True
    assert tie_groups(different) == ["a", "ab", "b", "bc", "c"]
    assert tie_groups(np.zeros((3, 3), bool)) == ["a", "a", "a"]
    assert tie_groups(~np.eye(3, dtype=bool)) == ["a", "b", "c"]


def test_the_best_of_many_groups_alone_has_the_letter_a():
    letters = tie_groups(~np.eye(120, dtype=bool))
    assert len(set(letters)) == 120
    assert [("a" in x) for x in letters].count(True) == 3  # a, a1 and a2
    assert letters[0] == "a"


def test_p_best_is_the_probability_that_the_bootstrap_law_gives():
    rng = np.random.default_rng(2)
    x = rng.normal([[0.52], [0.5], [0.45]], 0.2, (3, 300))
    found = p_best(replicates(x[:, None], 0))
    # Means of independent rows are nearly normal.
    drawn = rng.normal(x.mean(axis=1), x.std(axis=1) / np.sqrt(300), (100_000, 3))
    expected = np.bincount(drawn.argmax(axis=1), minlength=3) / 100_000
    # All rows meet the same draws of episodes, which matters where episodes are shared, not here.
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert found.sum() == pytest.approx(1)


def test_rows_that_tie_for_best_share_it():
    assert p_best(np.array([[1.0, 2.0], [1.0, 1.0], [0.0, 2.0]])).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("ties", [False, True])
def test_friedman_is_scipys(ties):
    for seed in range(5):
        x = np.random.default_rng(seed).random((9, 4))
        x = x.round(1) if ties else x
        theirs = stats.friedmanchisquare(*x.T)
        assert friedman(x) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert friedman(np.ones((7, 3))) == (0.0, 1.0)


def test_nemenyi_is_scikit_posthocs():
    posthocs = pytest.importorskip("scikit_posthocs")
    x = np.random.default_rng(3).random((12, 5)) + 0.3 * np.arange(5)
    found = across_datasets(x)
    theirs = posthocs.posthoc_nemenyi_friedman(x).to_numpy()
    for (i, j), p in zip(found.pairs, found.nemenyi, strict=True):
        assert p == pytest.approx(theirs[i, j], abs=2e-3)


def test_ranks_and_the_critical_difference_are_autoranks():
    autorank = pytest.importorskip("autorank")
    x = np.random.default_rng(4).exponential(1, (15, 4)) + 0.5 * np.arange(4)
    found = across_datasets(x)
    theirs = autorank.autorank(pd.DataFrame(x, columns=list("abcd")), force_mode="nonparametric")
    assert theirs.cd == pytest.approx(found.critical_difference, rel=1e-3)
    assert theirs.omnibus == "friedman"
    assert theirs.pvalue == pytest.approx(found.p)
    ranks = theirs.rankdf["meanrank"].loc[list("abcd")].to_numpy()
    np.testing.assert_allclose(ranks, found.mean_ranks)


@pytest.mark.parametrize(
    ("ranks", "sets"),
    [
        ((1.0, 2.0, 3.0), []),
        ((1.0, 1.9, 2.8), [(0, 1), (1, 2)]),
        ((2.8, 1.0, 1.9), [(1, 2), (2, 0)]),
        ((1.0, 1.4, 1.9, 2.3, 5.0), [(0, 1, 2), (1, 2, 3)]),
        # No set within another: the last two are in the second.
        ((1.0, 1.5, 1.95, 2.45, 2.45), [(0, 1, 2), (1, 2, 3, 4)]),
        ((2.0, 2.0, 2.0), [(0, 1, 2)]),
        # As far apart as the critical difference is apart.
        ((1.0, 2.0, 2.5, 3.5), [(1, 2)]),
        ((1.0, 4.0, 7.0, 7.5), [(2, 3)]),
    ],
)
def test_bars_are_the_largest_sets_within_the_critical_difference(ranks, sets):
    assert joined(ranks, 1.0) == sets


def test_bars_of_demsars_example():
    # Mean ranks of C4.5, and of it with m, cf, or both tuned, on 14 data sets (his section 3.2.2);
    # his table 5a has q of 0.05 and 0.10 for 4 classifiers.
    ranks, off = (3.143, 2.000, 2.893, 1.964), np.sqrt(4 * 5 / (6 * 14))
    assert joined(ranks, 2.569 * off) == [(3, 1, 2, 0)]
    # Plain C4.5 is worse than that with m or both, and with cf alone nothing can be said.
    assert joined(ranks, 2.291 * off) == [(3, 1, 2), (2, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_bars_are_every_largest_set_that_nemenyis_test_leaves_together(seed):
    x = np.random.default_rng(seed).random((12, 8)) + 0.15 * np.arange(8)
    found = across_datasets(x)
    apart = {p for p, v in zip(found.pairs, found.nemenyi, strict=True) if v < 0.05}
    together = [
        set(some)
        for n in range(2, 9)
        for some in itertools.combinations(range(8), n)
        if not apart & set(itertools.combinations(some, 2))
    ]
    largest = [s for s in together if not any(s < other for other in together)]
    bars = joined(found.mean_ranks, found.critical_difference)
    assert sorted(map(sorted, bars)) == sorted(map(sorted, largest))
    assert len(bars) > 1


@pytest.mark.parametrize("seed", range(3))
def test_bars_are_those_that_scikit_posthocs_draws(seed):
    posthocs = pytest.importorskip("scikit_posthocs")
    from matplotlib.figure import Figure

    x = np.random.default_rng(20 + seed).random((12, 9)) + 0.12 * np.arange(9)
    found = across_datasets(x)
    theirs = posthocs.critical_difference_diagram(
        dict(enumerate(found.mean_ranks)),
        posthocs.posthoc_nemenyi_friedman(x),
        ax=Figure().add_subplot(),
    )
    drawn = sorted(sorted(line.get_xdata()) for (line,) in theirs["crossbars"])
    bars = joined(found.mean_ranks, found.critical_difference)
    assert sorted([found.mean_ranks[i] for i in bar] for bar in bars) == drawn
    assert len(bars) > 1


def test_the_critical_difference_is_demsars():
    # His table 5a: q of 0.05 for 5 classifiers is 2.728.
    x = np.random.default_rng(5).random((10, 5))
    assert across_datasets(x).critical_difference == pytest.approx(
        2.728 * np.sqrt(5 * 6 / (6 * 10)), abs=1e-3
    )


def test_wilcoxon_holm_is_each_pairs_test_corrected():
    x = np.random.default_rng(6).random((20, 4)) + 0.25 * np.arange(4)
    found = across_datasets(x)
    each = [stats.wilcoxon(x[:, i] - x[:, j], method="exact").pvalue for i, j in found.pairs]
    np.testing.assert_allclose(found.wilcoxon_holm, holm(np.array(each)))
    assert found.groups[3].startswith("a")
    assert "a" not in found.groups[0]


def test_few_data_sets_are_refused():
    with pytest.raises(ValueError, match="6 data sets and 2 methods, and there are 5 and 3"):
        across_datasets(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="a score of every method"):
        across_datasets(np.full((7, 3), np.nan))


@pytest.mark.parametrize(("mean", "rope"), [(0.02, 0.01), (0.0, 0.01), (-0.03, 0.01), (0.01, 0.0)])
def test_the_posterior_is_baycomps(mean, rope):
    baycomp = pytest.importorskip("baycomp")
    d = np.random.default_rng(7).normal(mean, 0.02, 14)
    ours = signed_rank(d, rope, draws=20_000)
    theirs = baycomp.SignedRankTest.probs(d, np.zeros(14), rope, nsamples=20_000, random_state=1)
    # baycomp's left is where the first one's scores are larger.
    left, middle, right = theirs if rope else (theirs[0], 0.0, theirs[1])
    assert (ours.first, ours.second) == pytest.approx((left, right), abs=0.015)
    assert ours.neither == pytest.approx(middle, abs=0.015)


def test_a_posterior_of_clear_cases_is_clear():
    assert signed_rank(np.full(8, 0.1), 0.01).first > 0.99
    assert signed_rank(np.full(8, -0.1), 0.01).second > 0.99
    assert signed_rank(np.full(8, 0.001), 0.01).neither > 0.99
    assert signed_rank(np.full(8, 0.1), 0.01) == signed_rank(np.full(8, 0.1), 0.01)
    for wrong, rope in ((np.array([]), 0.01), (np.array([np.nan]), 0.01), (np.ones(3), -1.0)):
        with pytest.raises(ValueError, match="finite differences and a region"):
            signed_rank(wrong, rope)
