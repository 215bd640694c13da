"""Metrics agree with scikit-learn and with values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from medbench.metrics import ECE_BINS, METRICS, by_group, classification, multilabel
from medbench.metrics.classes import _tied_ranks


def test_every_metric_equals_scikit_learn_with_ties_and_unequal_classes():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 30, 4)).round(1)
    labels = rng.choice(4, (40, 30), p=[0.5, 0.2, 0.2, 0.1])
    found = classification(scores, labels)
    assert tuple(found) == METRICS
    for e in range(40):
        p, y = softmax(scores[e], axis=-1), labels[e]
        if len(set(y)) < 4:
            continue
        guess = scores[e].argmax(1)
        assert found["accuracy"][e] == pytest.approx((guess == y).mean())
        assert found["balanced_accuracy"][e] == pytest.approx(balanced_accuracy_score(y, guess))
        assert found["auroc"][e] == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
        assert found["f1"][e] == pytest.approx(f1_score(y, guess, average="macro"))
        assert found["nll"][e] == pytest.approx(log_loss(y, p))
        assert found["ece"][e] == pytest.approx(ece_by_hand(p, y))


def test_tied_ranks_are_scipys():
    x = np.random.default_rng(0).integers(0, 5, (6, 11, 3)).astype(float)
    x[0, 2, 0] = np.inf
    first, last = _tied_ranks(x)
    np.testing.assert_array_equal(first, rankdata(x, method="min", axis=1))
    np.testing.assert_array_equal(last, rankdata(x, method="max", axis=1))
    one, same = _tied_ranks(x[:, :1])
    assert one.tolist() == same.tolist() == np.ones((6, 1, 3)).tolist()


def ece_by_hand(p, y):
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for b in range(ECE_BINS):
        inside = (confidence > b / ECE_BINS) & (confidence <= (b + 1) / ECE_BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_a_class_without_queries_is_left_out_of_auroc_and_balanced_accuracy():
    scores = np.array([[[3.0, 0, 0], [0, 3, 0], [0, 3, 0]]])
    found = classification(scores, np.array([[0, 1, 0]]))
    assert found["balanced_accuracy"][0] == pytest.approx((0.5 + 1) / 2)
    # class 0: one positive above and one tied with the only negative; class 1 mirrors it.
    assert found["auroc"][0] == pytest.approx(0.75)


def test_one_class_alone_has_no_auroc():
    found = classification(np.zeros((1, 4, 2)), np.zeros((1, 4), int))
    assert np.isnan(found["auroc"][0])
    assert found["accuracy"][0] == 1.0


def test_large_logits_do_not_overflow():
    found = classification(np.array([[[1e4, -1e4], [-1e4, 1e4]]]), np.array([[0, 0]]))
    assert found["nll"][0] == pytest.approx(1e4)
    assert found["accuracy"][0] == 0.5


def test_answers_are_counted_by_patient():
    scores = np.zeros((2, 3, 2))
    scores[..., 1] = [[1, -1, 1], [1, 1, -1]]
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    found = by_group(scores, labels, np.array([[7, 7, 2], [2, 9, 9]]))
    assert found["group"].tolist() == [2, 7, 9]
    assert found["answers"].tolist() == [2, 2, 2]
    assert found["right"].tolist() == [0, 2, 2]
    accuracy = classification(scores, labels)["accuracy"].mean()
    assert found["right"].sum() / found["answers"].sum() == accuracy


def test_answers_about_several_labels_are_all_counted():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(4, 5, 3)), rng.integers(0, 2, (4, 5, 3))
    groups = rng.integers(0, 6, (4, 5))
    found = by_group(scores, truth, groups)
    assert found["answers"].tolist() == [3 * (groups == g).sum() for g in found["group"]]
    right = ((scores > 0) == truth.astype(bool)).sum(axis=-1)
    assert found["right"].tolist() == [right[groups == g].sum() for g in found["group"]]
    accuracy = multilabel(scores, truth)["accuracy"].mean()
    assert found["right"].sum() / 60 == pytest.approx(accuracy)
