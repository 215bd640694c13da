"""Personalised protocols: who is tested is not trained on, and one's own images are worth more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.neighbors import NearestCentroid
from test_tasks import Made, registered  # noqa: F401

from medbench.episodes import Shape
from medbench.errors import ContractError, ProtocolError
from medbench.explain import explain
from medbench.ingredients import Ingredients
from medbench.opened import _check_dataset, default_place
from medbench.plugins import registry
from medbench.protocols import Protocol, load_protocol
from medbench.records import Record
from medbench.stats import compare
from medbench.tasks import alone, resolve

N = 240


def made(images=3, patients=20, classes=3, **more):
    """Every patient has `images` images of every class."""
    data = Made(n_classes=classes, per_class=patients * images, splits=False, **more)
    data.patients = np.tile(np.repeat(np.arange(patients), images), classes)
    return data


def protocol(**more):
    return Protocol(
        **{
            "name": "p",
            "version": 1,
            "summary": "s",
            "setting": "personalised",
            "datasets": ["d"],
            "shots": [1],
            "queries": 1,
            "cost_episodes": 2,
            "train": {"way": 2, "shot": 1, "query": 1},
        }
        | more
    )


@pytest.fixture
def resolved(registered):  # noqa: F811
    def make(data, **more):
        return resolve(registered(d=data), protocol(**more), default_place())

    return make


def people_of(data, *pools):
    return [set(data.patients[pool.images].tolist()) for pool in pools]


def test_no_patient_is_in_two_of_training_validation_and_test(resolved):
    data = made()
    (target,) = resolved(data).targets
    (source,) = target.sources
    sides = people_of(data, source.train, source.val, target.pool)
    assert sum(map(len, sides)) == len(set().union(*sides)) == 20
    assert all(sides)


def test_splits_that_keep_patients_apart_say_who_is_tested(resolved):
    data = made()
    data.splits = np.where(data.patients < 5, 2, 0).astype(np.uint8)
    (target,) = resolved(data).targets
    sides = people_of(data, target.sources[0].train, target.pool)
    assert sides[1] == set(range(5))
    assert not sides[0] & sides[1]
    # A split of images that parts patients is no split of patients.
    data.splits = np.tile(np.array([0, 0, 2], np.uint8), 60)
    (target,) = resolved(data).targets
    assert people_of(data, target.pool)[0] != set(range(5))


def test_tasks_of_meta_training_and_validation_are_of_one_patient_each_too(resolved):
    data = made()
    (target,) = resolved(data).targets
    (source,) = target.sources
    for pool in (source.train, source.val):
        block = pool.draw(source.train_shape, "t", 0, 60)
        people = data.patients[np.concatenate([block.support, block.query], axis=1)]
        assert (people == people[:, :1]).all()


def test_the_patients_that_are_left_out_are_counted(resolved):
    data = made()
    data.patients = data.patients.copy()
    (before,) = resolved(data).targets
    tested = sorted(people_of(data, before.pool)[0])
    # One of the tested patients keeps a single image of every class.
    rows = np.flatnonzero(data.patients == tested[0])
    alike = rows[np.arange(len(rows)) % 3 > 0]
    others = [p for p in range(20) if p not in tested]
    data.patients[alike] = others[0]
    found = resolved(data)
    n = len(tested)
    words = f"1 of the {n} patients of d at 1 shot (too few images or classes)"
    assert found.left_out == (words,)


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        (lambda: made(images=2), {"queries": 2}, "none has them: the best has 0 such classes"),
        (lambda: made(), {"train": {"way": 2, "shot": 2, "query": 2}}, "of one patient each, too"),
        (lambda: Made(splits=False), {}, "does not say which patient an image is of"),
    ],
)
def test_data_that_cannot_serve_are_one_error_with_the_counts_seen(resolved, data, more, words):
    with pytest.raises(ProtocolError, match=words):
        resolved(data(), **more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"setting": "support_only", "task_kind": "detection", "support_from": "others"},
         "support_from is for personalised"),
        ({"task_kind": "segmentation", "way": 2}, "way: 1, not 2"),
        ({"task_kind": "multilabel"}, "needs setting cross_domain"),
    ],
)  # fmt: skip
def test_rules_that_do_not_go_together_are_refused(more, words):
    with pytest.raises(ValidationError, match=words):
        protocol(**more)


def test_a_cell_draws_what_the_plan_drew(registered):  # noqa: F811
    known = registered(d=made())
    (target,) = resolve(known, protocol(), default_place()).targets
    again = alone(known, protocol(), default_place(), "d", 1)
    for one in (target, again):
        assert one.id == "d:3w1s"
    first, second = (t.pool.draw(t.shape, t.episode_key, 0, 50) for t in (target, again))
    assert (first.support == second.support).all()
    assert (first.query == second.query).all()


def test_masks_are_asked_about_one_class_at_a_time_of_any_image_that_shows_it(resolved):
    data = made(task_kind="classification")
    kinds = np.eye(3, dtype=np.uint8)[data.labels]
    kinds[:, 0] = 1  # every image shows the first class as well
    data.labels, data.info = kinds, replace(data.info, task_kind="segmentation")
    train = {"way": 1, "shot": 1, "query": 1}
    (target,) = resolved(data, task_kind="segmentation", way=1, train=train).targets
    block = target.pool.draw(Shape(1, 1, 1), "k", 0, 100)
    assert set(block.classes.ravel().tolist()) == {0, 1, 2}
    for side in (block.support, block.query):
        assert (data.labels[side[:, 0], block.classes[:, 0]] == 1).all()
    assert (data.patients[block.support] == data.patients[block.query]).all()


@pytest.mark.parametrize("times", [np.full(9, np.inf), np.zeros(9)])
def test_times_need_patients_and_must_be_numbers(times):
    data = made(images=1, patients=3)
    data.times = times
    if np.isfinite(times).all():
        data.patients = None
    with pytest.raises(ContractError, match=r"times"):
        _check_dataset(data)


def test_ones_own_images_beat_those_of_others_on_the_made_up_patients():
    """Nearest class mean on plain pixels, without any training: the support alone differs."""
    found = {}
    for name in ("synthetic-patients", "synthetic-patients-others"):
        rules, _ = load_protocol(registry(), name)
        target = alone(registry(), rules, default_place(), "synthetic-patients", 3)
        block = target.pool.draw(target.shape, "same", 0, N)
        data = target.opened.dataset
        pixels = data.read(np.arange(len(data))).reshape(len(data), -1).astype(float)
        right = []
        for e in range(N):
            judge = NearestCentroid().fit(pixels[block.support[e]], block.support_labels)
            right.append((judge.predict(pixels[block.query[e]]) == block.query_labels[e]).mean())
        found[name] = np.array([right])
        assert (data.times[block.support].max(1) < data.times[block.query].min(1)).all() == (
            name == "synthetic-patients"
        )
    gap = compare([found["synthetic-patients"]], [found["synthetic-patients-others"]])
    assert gap.low > 0.05
    assert gap.p < 1e-6


def test_patients_of_the_made_up_set_have_every_class_at_every_visit():
    (rules, _) = load_protocol(registry(), "synthetic-patients")
    data = alone(registry(), rules, default_place(), "synthetic-patients", 1).opened.dataset
    for patient in (0, 59):
        own = data.patients == patient
        for visit in np.unique(data.times[own]):
            assert sorted(data.labels[own & (data.times == visit)]) == [0, 1, 2, 3, 4]
    assert len(data) == 60 * 5 * 6
    first, again = data.read(np.array([7, 1400])), data.read(np.array([1400]))
    assert (first[1] == again[0]).all()


def test_masks_of_the_made_up_patients_fit_their_images():
    from medbench.api import Place
    from medbench_datasets.synthetic.patients import open_patients

    place = default_place()
    assert isinstance(place, Place)
    data = open_patients(place, labels="masks", size=32)
    masks = data.read_masks(np.arange(12))
    assert masks.shape == (12, 1, 32, 32)
    share = masks.mean(axis=(1, 2, 3))
    assert ((share > 0.1) & (share < 0.9)).all()
    plain = open_patients(place, size=32)
    assert (data.read(np.arange(12)) == plain.read(np.arange(12))).all()
    assert data.digest != plain.digest


def test_keys_tell_whose_images_were_trained_on(registered):  # noqa: F811
    known = registered(d=made())
    digests = set()
    for source in ("same", "others"):
        rules = protocol(support_from=source)
        (target,) = resolve(known, rules, default_place()).targets
        entry = known.get("datasets", "d")
        (told,) = Ingredients(known, rules, entry).sources(target).value
        assert told["support_from"] == source
        digests.add(told["images"])
    assert len(digests) == 1


@pytest.mark.parametrize(("source", "words"), [("same", "come before"), ("others", "of other")])
def test_a_personalised_cell_is_explained_in_words(source, words, tmp_path):
    cell = {
        "protocol": "p", "protocol_version": 1, "target": "d:3w1s", "way": 3, "shot": 1,
        "backbone": "conv4", "algorithm": "a", "seed": 0, "sources": ["d"],
    }  # fmt: skip
    data = {
        "key": "k", "status": "crash", "cell": cell, "request": {"support_from": source},
    }  # fmt: skip
    told = explain(Record(data, tmp_path / "r.json"))
    assert "Each task is of one patient, whom nothing was meta-trained on" in told
    assert words in told
