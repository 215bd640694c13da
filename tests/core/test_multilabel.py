"""Several labels an image: how such tasks are drawn, asked of two-class methods, and scored."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    roc_auc_score,
)

from medbench import opened
from medbench.api import Dataset, DatasetInfo, Place, Support
from medbench.errors import ContractError, ProtocolError
from medbench.metrics import ALL_METRICS, MULTILABEL_METRICS, ORDINAL_METRICS, multilabel, ordinal
from medbench.multilabel import BinaryRelevance
from medbench.plugins import registry
from medbench.pools import groups
from medbench.protocols import Protocol, load_protocol
from medbench.tasks import resolve
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe
from medbench_algorithms.metric.nearest_neighbour import NearestNeighbour
from medbench_datasets import medmnist_sets

# --- asking a two-class method -------------------------------------------------------------------


@pytest.fixture
def findings():
    """Three episodes of 12 support and 7 query images with features (5,) and four labels."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, 12, 5, generator=generator)
    labels = (torch.rand(3, 12, 4, generator=generator) < 0.4).long()
    labels[:, 0], labels[:, 1] = 1, 0  # every label has both kinds
    query = torch.randn(3, 7, 5, generator=generator)
    return Support(inputs, labels, 4, (1, 2, 3)), query


def test_every_label_gets_the_log_odds_of_a_classifier_of_its_own(findings):
    support, query = findings
    method = BinaryRelevance(LinearProbe(), batched=True, image_dims=1)
    predictor = method.adapt(support)
    scores = predictor.predict(query)
    assert scores.shape == (3, 7, 4)
    assert predictor.n_adapted == 4 * (2 * 5 + 2)
    for e in range(3):
        for label in range(4):
            own = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
            own.fit(support.inputs[e].double(), support.labels[e, :, label])
            np.testing.assert_allclose(
                scores[e, :, label], own.decision_function(query[e].double()), atol=1e-4
            )


def test_labels_asked_together_equal_labels_asked_one_by_one(findings):
    support, query = findings
    together = BinaryRelevance(LinearProbe(), batched=True, image_dims=1).adapt(support)
    single = BinaryRelevance(LinearProbe(), batched=False, image_dims=1)
    for e in range(3):
        one = Support(support.inputs[e], support.labels[e], 4, (support.seeds[e],))
        alone = single.adapt(one)
        torch.testing.assert_close(
            alone.predict(query[e]), together.predict(query)[e], rtol=1e-4, atol=1e-5
        )
        assert alone.n_adapted == together.n_adapted


def test_the_seed_of_a_label_depends_on_its_episode_and_number_alone(findings):
    seen = []

    class Watching(NearestNeighbour.__mro__[1]):  # an Algorithm
        def adapt(self, support):
            seen.append(support.seeds)
            return NearestNeighbour().adapt(support)

    support, _ = findings
    BinaryRelevance(Watching(), batched=True, image_dims=1).adapt(support)
    one = Support(support.inputs[1], support.labels[1], 4, (support.seeds[1],))
    BinaryRelevance(Watching(), batched=False, image_dims=1).adapt(one)
    assert len(set(seen[0])) == 12
    assert seen[0][4:8] == tuple(s for (s,) in seen[1:])


# --- drawing -------------------------------------------------------------------------------------


class Findings(Dataset):
    def __init__(self, labels):
        self.labels = np.asarray(labels, np.uint8)
        self.info = DatasetInfo(
            name="f", label_names=("often", "rare", "same"), image_shape=(8, 8, 1), domain="d",
            modality="m", licence="CC0", task_kind="multilabel",
        )  # fmt: skip

    @property
    def digest(self):
        return "d"

    def read(self, indices):
        return np.zeros((len(indices), 8, 8, 1), np.uint8)


def test_an_image_with_several_labels_joins_the_smallest_group_of_its_labels():
    labels = [[1, 0, 0]] * 4 + [[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    # One label each: 4, 0 and 1 images. Then rare (0), rare or same (1, 1: the first), same.
    assert groups(Findings(labels)).tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 2]


def protocol(**changes):
    return Protocol.model_validate(
        {
            "name": "p", "version": 1, "summary": "s", "setting": "cross_domain",
            "task_kind": "multilabel", "shots": [2], "queries": 3, "episodes": 30,
            "datasets": [
                {"name": "synthetic:xray", "params": {"labels": "findings"}}, "synthetic:cells",
            ],
            "train": {"way": 5, "shot": 2, "query": 3},
        } | changes
    )  # fmt: skip


@pytest.fixture
def place(tmp_path):
    return Place(None, tmp_path)


def test_tasks_have_every_label_its_shots_and_no_image_twice(place):
    (target,) = resolve(registry(), protocol(), place).targets
    assert target.id == "synthetic:xray:11w2s"
    assert target.n_way == 11
    assert [s.id for s in target.sources] == ["synthetic:cells"]
    block = target.pool.draw(target.shape, target.episode_key, 0, 30)
    support, query = target.support_labels(block), target.query_labels(block)
    assert support.shape == (30, 22, 11)
    assert query.shape == (30, 33, 11)
    assert (support.sum(1) >= 2).all()
    assert (query.sum(1) >= 3).all()
    assert (support.sum(2) == 2).all()  # a form and a pattern
    for e in range(30):
        images = [*block.support[e], *block.query[e]]
        assert len(set(images)) == len(images)
    labels = target.opened.dataset.labels
    np.testing.assert_array_equal(support[7, 3], labels[block.support[7, 3]])
    np.testing.assert_array_equal(query[7, 3], labels[block.query[7, 3]])


def test_chestmnist_is_tested_on_and_the_sets_of_one_label_are_trained_on(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    facts = {k: dict(v) for k, v in medmnist_sets.published().items()}
    (tmp_path / "medmnist").mkdir()
    for name, n_labels in (("chest", 14), ("breast", 0)):
        arrays = {}
        for part, n in (("train", 700), ("val", 100), ("test", 700)):
            arrays[f"{part}_images"] = rng.integers(0, 255, (n, 28, 28), np.uint8)
            labels = rng.random((n, 14)) < 0.15 if n_labels else rng.integers(0, 2, (n, 1))
            arrays[f"{part}_labels"] = labels.astype(np.uint8)
        file = tmp_path / "medmnist" / f"{name}mnist.npz"
        np.savez(file, **arrays)
        facts[f"{name}mnist"]["MD5"] = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(medmnist_sets, "published", lambda: facts)
    place = Place(tmp_path, tmp_path / "cache")
    rules, _ = load_protocol(registry(), "medmnist-findings")
    found = resolve(registry(), rules, place).targets
    assert [t.id for t in found] == [f"medmnist/chest:14w{k}s" for k in (1, 5, 10)]
    assert all([s.id for s in t.sources] == ["medmnist/breast"] for t in found)
    block = found[1].pool.draw(found[1].shape, "k", 0, 5)
    assert found[1].shape.way == 15  # and images without a finding
    assert (found[1].support_labels(block).sum(1) >= 5).all()
    assert (found[1].support_labels(block).sum(2) == 0).any()


def test_a_label_that_no_task_could_promise_is_named(place, monkeypatch):
    made = Findings([[1, 0, 0], [0, 0, 1]] * 20 + [[0, 0, 0]] * 20)
    real = opened.load_factory

    def factory(entry, path=None):
        if entry.name == "synthetic":
            return lambda place, argument, **params: (
                made if params["labels"] == "findings" else real(entry)(place, argument=argument)
            )
        return real(entry)

    monkeypatch.setattr("medbench.opened.load_factory", factory)
    with pytest.raises(ProtocolError, match="no images are left to draw 'rare' by"):
        resolve(registry(), protocol(), place)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"setting": "leave_one_site_out"}, "needs setting cross_domain"),
        ({"way": 5}, "way: all"),
    ],
)
def test_rules_that_several_labels_do_not_allow_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        protocol(**changes)


def test_labels_that_are_not_zero_and_one_are_refused(place, monkeypatch):
    made = Findings([[1, 2, 0]] * 40)
    monkeypatch.setattr(
        "medbench.opened.load_factory", lambda entry, path=None: lambda place, **kw: made
    )
    with pytest.raises(ContractError, match="of 0 and 1"):
        resolve(registry(), protocol(), place)


# --- scoring -------------------------------------------------------------------------------------


def test_every_metric_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 40, 5)).round(1)
    truth = rng.random((30, 40, 5)) < [0.5, 0.3, 0.2, 0.4, 0.1]
    found = multilabel(scores, truth)
    assert tuple(found) == MULTILABEL_METRICS
    for e in range(30):
        y, s = truth[e], scores[e]
        if not (y.any(0) & ~y.all(0)).all():
            continue
        p, guess = 1 / (1 + np.exp(-s)), s > 0
        each = [balanced_accuracy_score(y[:, j], guess[:, j]) for j in range(5)]
        assert found["accuracy"][e] == pytest.approx((guess == y).mean())
        assert found["balanced_accuracy"][e] == pytest.approx(np.mean(each))
        assert found["auroc"][e] == pytest.approx(roc_auc_score(y, s, average="macro"))
        assert found["average_precision"][e] == pytest.approx(
            average_precision_score(y, s, average="macro")
        )
        assert found["f1"][e] == pytest.approx(f1_score(y, guess, average="macro", zero_division=0))
        assert found["nll"][e] == pytest.approx(
            np.mean([log_loss(y[:, j], p[:, j], labels=[0, 1]) for j in range(5)])
        )


def test_labels_with_one_kind_of_query_do_not_enter_a_ranking():
    scores = np.array([[[2.0, 1.0], [1.0, -3.0]]])
    truth = np.array([[[1, 1], [0, 1]]])
    found = multilabel(scores, truth)
    assert found["auroc"][0] == 1.0
    assert found["average_precision"][0] == 1.0
    assert found["accuracy"][0] == 0.5
    assert np.isnan(multilabel(scores[..., 1:], truth[..., 1:])["auroc"][0])


def test_huge_log_odds_give_finite_likelihoods():
    found = multilabel(np.array([[[1e4, -1e4]]]), np.array([[[0, 0]]]))
    assert found["nll"][0] == pytest.approx(5e3)


def test_ordinal_metrics_equal_scikit_learn_whatever_the_order_of_classes():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(20, 40, 5)), rng.integers(0, 5, (20, 40))
    grades = np.stack([rng.permutation(5) for _ in range(20)])
    found = ordinal(scores, labels, grades)
    assert tuple(found) == ORDINAL_METRICS
    for e in range(20):
        guess, true = grades[e][scores[e].argmax(1)], grades[e][labels[e]]
        assert found["grade_error"][e] == pytest.approx(np.abs(guess - true).mean())
        assert found["kappa"][e] == pytest.approx(
            cohen_kappa_score(guess, true, weights="quadratic")
        )


def test_kappa_of_a_constant_is_not_a_number():
    found = ordinal(np.zeros((1, 3, 2)), np.zeros((1, 3), int), np.array([[4, 2]]))
    assert np.isnan(found["kappa"][0])
    assert found["grade_error"][0] == 0


def test_every_metric_can_be_asked_of_a_leaderboard():
    assert len(set(ALL_METRICS)) == len(ALL_METRICS) == 16
