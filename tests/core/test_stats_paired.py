"""Paired tests agree with independent ones, and err as often as they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medbench.stats import compare, holm, p_values, sign_flip, wilcoxon
from medbench.stats import paired as module
from medbench.stats.saddlepoint import _distinct, saddlepoint


def enumerated(differences) -> float:
    """All signs, one by one."""
    far = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(s >= far - 1e-12 for s in sums) / len(sums)


@pytest.mark.parametrize("grid", [None, 15, 1])
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_few_differences_are_enumerated(n, grid):
    rng = np.random.default_rng(n)
    for _ in range(5):
        d = rng.normal(0.4, 1, n)
        d = d if grid is None else np.round(d * grid) / grid
        assert sign_flip(d[None])[0] == pytest.approx(enumerated(d.tolist()), abs=1e-12)


def test_it_is_scipys_permutation_test_of_paired_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, (2, 12))
    theirs = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip((a - b)[None])[0] == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("n", [25, 60, 100])
def test_on_a_grid_the_law_of_the_sum_is_exact(n):
    # Of n signs with equal weight: twice a binomial tail.
    d = np.full(n, 0.2)
    d[: n // 3] *= -1
    p = stats.binomtest(n // 3, n).pvalue
    assert sign_flip(d[None])[0] == pytest.approx(p, rel=1e-9)


def test_seeds_that_cancel_out_leave_no_difference_behind():
    # Two seeds, and episodes in which one seed's gain is the other's loss but for rounding.
    gain = np.array([0.3, 0.1, 0.2, 0.6, 0.0, 0.4])
    even = np.stack([gain + 0.1, -gain - 0.1 + 1e-17])[None]
    even[0, 1] += np.array([0, 1, -1, 1, 0, -1]) * 2.0**-54
    rising = np.concatenate([even, np.full((1, 2, 3), 0.2)], axis=2)
    p = sign_flip(np.array([[0.0] * 6 + [0.2] * 3]))[0]
    assert p == 0.25
    assert module.tested([even])[0][0] == 1.0
    assert module.tested([rising])[0][0] == p


def test_a_difference_far_below_the_others_is_still_one():
    d = np.array([1e-16, 0.5, 0.25, 0.25])
    assert sign_flip(d[None])[0] == pytest.approx(enumerated(d.tolist()))


@pytest.mark.parametrize("shift", [0.05, 0.1, 0.2, 0.4])
def test_the_saddlepoint_is_near_the_exact_tail_however_far_out(shift):
    rng = np.random.default_rng(int(100 * shift))
    whole = np.rint(rng.normal(15 * shift, 15, 400))
    whole = whole[whole != 0]
    exact = module._convolved(np.abs(whole).astype(int), abs(whole.sum()))
    found = saddlepoint(np.abs(whole)[None], np.abs(whole.sum())[None])[0]
    # What is left is that sums lie on a grid.
    assert found == pytest.approx(exact, rel=0.03)


def in_long_doubles(values, total) -> float:
    """The same formula with every difference on its own, by the definitions of its parts."""
    v, x = np.asarray(values, np.longdouble), np.longdouble(total)
    t = x / (v**2).sum()
    for _ in range(100):
        slope = np.tanh(t * v)
        t += (x - (v * slope).sum()) / (v**2 * (1 - slope**2)).sum()
    curve = (v**2 / np.cosh(t * v) ** 2).sum()
    w = np.sqrt(2 * (t * x - np.log(np.cosh(t * v)).sum()))
    density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.longdouble(np.pi))
    tail = stats.norm.sf(float(w)) + density * (1 / (t * np.sqrt(curve)) - 1 / w)
    return float(2 * tail)


@pytest.mark.parametrize("shift", [0.0005, 0.002, 0.01, 0.1, 0.4])
@pytest.mark.parametrize("grid", [True, False])
def test_the_saddlepoint_has_all_its_digits_whether_differences_recur_or_not(shift, grid):
    rng = np.random.default_rng(int(1e4 * shift))
    d = rng.normal(0, 0.1, 300)
    d += shift - d.mean()
    if grid:
        # Of three seeds with 75 queries each, so that equal ones differ by rounding.
        d = np.rint(d[None] * 75 + rng.normal(0, 1, (3, 300))).mean(axis=0) / 75
    values, total = np.abs(d)[None], np.abs(d.sum())[None]
    assert (_distinct(values)[0].shape[1] <= 150) == grid
    assert saddlepoint(values, total)[0] == pytest.approx(
        in_long_doubles(values[0], total[0]), rel=1e-9
    )


def test_the_saddlepoint_agrees_with_drawn_signs():
    rng = np.random.default_rng(5)
    d = rng.exponential(1, 200) - 0.87
    signs = rng.choice([-1.0, 1.0], (40_000, 200))
    drawn = (np.abs(signs @ d) >= abs(d.sum())).mean()
    found = sign_flip(d[None])[0]
    assert found == pytest.approx(drawn, abs=4 * np.sqrt(drawn * (1 - drawn) / 40_000))


def test_extremes_have_the_p_they_must_have():
    one_way = np.random.default_rng(0).random(50) + 0.1
    assert sign_flip(one_way[None])[0] == pytest.approx(2.0**-49)
    assert sign_flip(np.zeros((2, 7))).tolist() == [1.0, 1.0]
    d = np.random.default_rng(1).normal(size=101)
    assert sign_flip((d - d.mean())[None])[0] == pytest.approx(1.0, abs=1e-6)
    huge = np.random.default_rng(2).normal(8, 1, 5000)
    assert 0 <= sign_flip(huge[None])[0] < 1e-300


def test_a_row_has_the_same_p_whatever_rows_are_computed_beside_it():
    d = np.random.default_rng(6).normal(0.1, 1, (600, 150))
    together = sign_flip(d)
    alone = [sign_flip(d[i : i + 1])[0] for i in range(0, 600, 97)]
    np.testing.assert_allclose(together[::97], alone, rtol=1e-9)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "episode_sd", "n", "exact"),
    [
        (1, 0.0, 1.0, 10, True),
        (1, 0.0, 1.0, 150, True),
        (2, 1.0, 0.3, 60, True),
        (3, 1.0, 0.3, 60, True),
        (3, 0.0, 1.0, 60, False),
        (5, 0.1, 1.0, 60, False),
    ],
)
def test_the_test_keeps_its_level(seeds, seed_sd, episode_sd, n, exact):
    rng = np.random.default_rng(seeds * n)
    trials = 2000
    d = rng.normal(0, seed_sd, (trials, seeds, 1)) + rng.normal(0, episode_sd, (trials, 1, n))
    d += rng.normal(0, 0.5, (trials, seeds, n))
    rejected = (p_values([d]) < 0.05).mean()
    error = 3 * np.sqrt(0.05 * 0.95 / trials)
    assert rejected <= 0.05 + error
    # Where one source of chance rules the test is not wasteful either.
    assert rejected >= (0.05 - error if exact else 0.005)


@pytest.mark.parametrize(
    ("seeds", "sds"),
    [
        (3, [0.03] * 6),
        (3, [0.0] * 6),
        (3, [0.005, 0.01, 0.01, 0.02, 0.04, 0.06]),
        (2, [0.005, 0.01, 0.02, 0.02, 0.04]),
        (3, [0.01] * 6 + [0.08]),
    ],
)
def test_pairs_that_learn_from_one_another_keep_the_error_of_the_family(seeds, sds):
    rng = np.random.default_rng(len(sds) * seeds)
    pairs = list(itertools.combinations(range(len(sds)), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    wrong, trials = 0, 200
    for _ in range(trials):
        scores = rng.normal(0, 0.1, 80) + rng.normal(0, 0.1, (len(sds), seeds, 80))
        scores += rng.normal(0, 1, (len(sds), seeds, 1)) * np.array(sds)[:, None, None]
        p = p_values([scores[first] - scores[second]], n_rows=len(sds))
        wrong += (holm(p) < 0.05).any()
    assert wrong / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_pairs_that_learn_from_one_another_find_what_each_alone_cannot():
    rng = np.random.default_rng(13)
    pairs = list(itertools.combinations(range(7), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    alone, together = 0, 0
    for _ in range(50):
        scores = 0.04 * np.arange(7)[:, None, None] + rng.normal(0, 0.01, (7, 3, 1))
        scores = scores + rng.normal(0, 0.1, (7, 3, 100))
        d = [scores[first] - scores[second]]
        alone += (holm(p_values(d)) < 0.05).sum()
        together += (holm(p_values(d, n_rows=7)) < 0.05).sum()
    assert together > 2 * alone


def test_it_finds_a_difference_that_is_there():
    rng = np.random.default_rng(7)
    d = rng.normal(0.2, 1, (500, 1, 200))
    assert (p_values([d]) < 0.05).mean() > 0.7


def test_targets_weigh_alike_however_many_episodes_they_have():
    rng = np.random.default_rng(8)
    many, few = rng.normal(0.3, 1, (1, 400)), rng.normal(-0.3, 1, (1, 50))
    zero = [np.zeros((1, 400)), np.zeros((1, 50))]
    found = compare([many, few], zero)
    assert found.mean == pytest.approx((many.mean() + few.mean()) / 2)
    weighted = np.concatenate([many[0] / 800, few[0] / 100])
    signs = rng.choice([-1.0, 1.0], (40_000, 450))
    drawn = (np.abs(signs @ weighted) >= abs(weighted.sum())).mean()
    assert found.p == pytest.approx(drawn, abs=0.01)
    assert found.n_targets == 2


def test_pairing_pays_where_episodes_are_hard_for_both():
    rng = np.random.default_rng(9)
    hard = rng.normal(0.6, 0.2, 300)
    a, b = (hard + rng.normal(m, 0.03, 300) for m in (0.01, 0.0))
    found = compare([a[None]], [b[None]])
    assert found.low > 0
    assert found.p < 0.001
    assert found.high - found.low < 0.02
    back = compare([b[None]], [a[None]])
    assert (back.mean, back.p) == (pytest.approx(-found.mean), pytest.approx(found.p))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_interval_and_test_of_a_difference_cover_and_agree(seeds):
    rng = np.random.default_rng(10 + seeds)
    covered, agree = 0, 0
    for _ in range(200):
        a = 0.1 + rng.normal(0, 0.05, (seeds, 1)) * (seeds > 1) + rng.normal(0, 0.2, (seeds, 120))
        found = compare([a], [np.zeros((seeds, 120))])
        covered += found.low <= 0.1 <= found.high
        agree += (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert covered >= 200 * 0.95 - 3 * np.sqrt(200 * 0.95 * 0.05)
    assert agree >= 190


def test_missing_scores_are_left_out_on_both_sides():
    a = np.array([[0.5, np.nan, 0.9, 0.7]])
    b = np.array([[0.4, 0.1, np.nan, 0.6]])
    found = compare([a], [b])
    assert found.mean == pytest.approx(0.1)
    assert found.n_episodes == 2
    assert found.p == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([np.zeros((1, 3))], [np.zeros((1, 4))], "same targets, seeds and episodes"),
        ([np.zeros((1, 3))], [np.zeros((2, 3))], "same targets, seeds and episodes"),
        ([np.zeros((1, 3))], [], "at least one target"),
        ([np.full((1, 3), np.nan)], [np.zeros((1, 3))], "no episode with a score of both"),
    ],
)
def test_what_cannot_be_paired_is_an_error(a, b, words):
    with pytest.raises(ValueError, match=words):
        compare(a, b)


def test_a_verdict_needs_significance_and_says_when_it_hardly_matters():
    def found(mean, sd, n=400):
        d = np.random.default_rng(0).normal(0, sd, n)
        return compare([(d - d.mean() + mean)[None]], [np.zeros((1, n))])

    assert found(0.05, 0.1).verdict(0.01) == "better"
    assert found(-0.05, 0.1).verdict(0.01) == "worse"
    assert found(0.004, 0.02).verdict(0.01) == "better, slightly"
    assert found(0.001, 0.02).verdict(0.01) == "equal in practice"
    assert found(0.004, 0.2).verdict(0.01) == "not told apart"
    assert found(0.05, 0.1).verdict(0.01, p=0.2) == "not told apart"


def test_holm_is_statsmodels_holm():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    for seed in range(20):
        p = np.random.default_rng(seed).random(12) ** 3
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_holm_with_part_of_a_family_is_no_smaller_than_with_all_of_it():
    for seed in range(20):
        p = np.random.default_rng(seed).random(30) ** 4
        assert (holm(p[:7], family=30) >= holm(p)[:7] - 1e-15).all()


def test_holm_keeps_the_error_of_the_family():
    rng = np.random.default_rng(11)
    wrong = sum((holm(rng.random(45)) < 0.05).any() for _ in range(2000))
    assert wrong / 2000 == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))


@pytest.mark.parametrize("n", [5, 8, 20, 40])
def test_wilcoxon_is_scipys_exact_test(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-9)


def test_wilcoxon_with_ties_and_zeros_is_the_enumeration_of_signed_ranks():
    d = np.array([0.1, 0.1, -0.1, 0.3, 0.0, 0.2, 0.2, 0.4])
    ranks = [2, 2, -2, 6, 4.5, 4.5, 7]
    assert wilcoxon(d) == pytest.approx(enumerated(ranks))
    assert wilcoxon(np.zeros(4)) == 1.0
