"""Which images serve which side: classes, domains, sites, splits and patients kept apart."""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medbench.api import Citation, ClassSplit, Dataset, DatasetInfo, DatasetSpec, Place
from medbench.episodes import Shape, digest
from medbench.errors import DataMissing, ProtocolError, UsageError
from medbench.plugins import Entry, Plugin, Registry
from medbench.protocols import Protocol
from medbench.tasks import alone, resolve


class Made(Dataset):
    def __init__(self, n_classes=4, per_class=40, splits=True, sites=0, patients=False, **info):
        n = n_classes * per_class
        self.labels = np.repeat(np.arange(n_classes), per_class)
        if info.get("task_kind") == "multilabel":
            self.labels = np.eye(n_classes, dtype=np.uint8)[self.labels]
        if splits:
            self.splits = np.tile(np.array([0, 0, 1, 2], np.uint8), n // 4)
        if sites:
            self.sites = np.tile(np.arange(sites), n // sites)
        if patients:
            self.patients = np.arange(n) // 2
        self.info = DatasetInfo(
            **{
                "name": "made",
                "label_names": tuple(f"c{i}" for i in range(n_classes)),
                "image_shape": (8, 8, 1),
                "domain": "d",
                "modality": "m",
                "licence": "CC0",
                "site_names": tuple(f"s{i}" for i in range(sites)),
            }
            | info
        )

    @property
    def digest(self):
        return "d"

    def read(self, indices):
        return np.zeros((len(indices), 8, 8, 1), np.uint8)


@pytest.fixture
def registered(monkeypatch):
    """A registry whose datasets are the given objects."""

    def make(**datasets):
        registry = Registry()
        plugin = Plugin("t", "1", "t", "t", (), 0.0)
        for name in datasets:
            spec = DatasetSpec(
                name=name, version="1", factory="t:t", summary="s", modality="m", domain="d",
                licence="l", citation=Citation(title="", authors="", venue="", year=2000),
            )  # fmt: skip
            registry.entries["datasets"][name] = Entry("datasets", spec, plugin)

        def factory(entry, path=None):
            found = datasets[entry.name]

            def open_it(place):
                if isinstance(found, Exception):
                    raise found
                return found

            return open_it

        monkeypatch.setattr("medbench.opened.load_factory", factory)
        return registry

    return make


PLACE = Place(None, None)


def protocol(**changes):
    base = {
        "name": "p", "version": 1, "summary": "s", "setting": "cross_domain",
        "datasets": ["a", "b", "c"], "shots": [1, 5], "queries": 5, "episodes": 30,
        "train": {"way": 5, "shot": 2, "query": 3},
    }  # fmt: skip
    return Protocol.model_validate(base | changes)


def test_cross_domain_keeps_datasets_of_the_targets_domain_out_of_its_sources(registered):
    registry = registered(
        a=Made(domain="abdomen"), b=Made(domain="abdomen", n_classes=3), c=Made(domain="fundus")
    )
    found = resolve(registry, protocol(), PLACE)
    sources = {t.dataset_id: {s.id for s in t.sources} for t in found.targets}
    assert sources == {"a": {"c"}, "b": {"c"}, "c": {"a", "b"}}
    assert [t.id for t in found.targets][:3] == ["a:4w1s", "a:4w5s", "b:3w1s"]


def test_test_support_is_train_images_and_queries_are_test_images(registered):
    a = Made(domain="x")
    found = resolve(registered(a=a, b=Made(domain="y"), c=Made(domain="z")), protocol(), PLACE)
    target = found.targets[0]
    block = target.pool.draw(target.shape, target.episode_key, 0, 50)
    assert (a.splits[block.support] == 0).all()
    assert (a.splits[block.query] == 2).all()
    for source in target.sources:
        splits = source.opened.dataset.splits
        assert (splits[source.train.images] == 0).all()
        drawn = source.val.draw(source.val.fit(Shape(4, 2, 3)), "v", 0, 20)
        assert (splits[drawn.support] == 0).all()
        assert (splits[drawn.query] == 1).all()


@pytest.mark.parametrize("setting", ["cross_domain", "within_dataset", "leave_one_site_out"])
def test_a_target_alone_has_the_episodes_it_has_among_all_and_opens_no_other_data(
    registered, setting
):
    split = {"d": ClassSplit((0, 1, 2), (3, 4), (5, 6))}
    sites = 2 * (setting == "leave_one_site_out")
    a = Made(n_classes=7, sites=sites, splits=not sites, class_splits=split, domain="x")
    one = {"datasets": ["a"], "setting": setting}
    rules = {
        "cross_domain": {},
        "within_dataset": {**one, "class_split": "d"},
        "leave_one_site_out": one,
    }[setting]
    rules = protocol(**rules)
    found = resolve(
        registered(a=a, b=Made(domain="y"), c=Made(domain="z")), rules, PLACE, targets=None
    )
    only = registered(a=a, b=DataMissing("not opened"), c=DataMissing("not opened"))
    for target in found.targets:
        if target.opened.name == "a":
            again = alone(only, rules, PLACE, target.dataset_id, target.shape.shot)
            assert again.id == target.id
            assert again.episode_key == target.episode_key
            want = target.pool.draw(target.shape, target.episode_key, 0, 20)
            assert digest(again.pool.draw(again.shape, again.episode_key, 0, 20)) == digest(want)


def test_within_a_dataset_classes_are_disjoint(registered):
    split = {"d": ClassSplit((0, 1, 2), (3, 4), (5, 6))}
    a = Made(n_classes=7, class_splits=split)
    rules = protocol(setting="within_dataset", class_split="d", datasets=["a"])
    (target, _) = resolve(registered(a=a), rules, PLACE).targets
    (source,) = target.sources
    assert set(a.labels[target.pool.images]) == {5, 6}
    assert set(a.labels[source.train.images]) == {0, 1, 2}
    assert set(a.labels[source.val.images]) == {3, 4}


def test_numbers_of_classes_are_split_by_a_hash_of_their_names(registered):
    rules = protocol(
        setting="within_dataset", class_split={"train": 3, "val": 2, "test": 2}, datasets=["a"]
    )
    first = resolve(registered(a=Made(n_classes=8)), rules, PLACE).targets[0]
    again = resolve(registered(a=Made(n_classes=8)), rules, PLACE).targets[0]
    assert list(first.pool.classes) == list(again.pool.classes)
    parts = [
        set(first.sources[0].train.classes),
        set(first.sources[0].val.classes),
        set(first.pool.classes),
    ]
    assert [len(p) for p in parts] == [3, 2, 2]
    assert len(set.union(*parts)) == 7


def test_leaving_one_site_out_trains_on_the_others_alone(registered):
    a = Made(sites=4, splits=False, per_class=80)
    rules = protocol(setting="leave_one_site_out", datasets=["a"])
    found = resolve(registered(a=a), rules, PLACE)
    assert {t.dataset_id for t in found.targets} == {"a@s0", "a@s1", "a@s2", "a@s3"}
    for target in found.targets:
        (own,) = set(a.sites[target.pool.images])
        assert a.info.site_names[own] == target.site
        for source in target.sources:
            assert own not in set(a.sites[source.train.images])
            # Validation images are held out of training.
            drawn = source.val.draw(source.val.fit(Shape(4, 2, 3)), "v", 0, 20)
            assert not set(drawn.query.ravel()) & set(source.train.images)


def test_no_patient_is_on_both_sides_of_validation_or_of_an_episode(registered):
    a = Made(splits=False, patients=True, per_class=60, domain="x")
    b = Made(splits=False, patients=True, per_class=60, domain="y")
    rules = protocol(datasets=["a", "b"])
    for target in resolve(registered(a=a, b=b), rules, PLACE).targets:
        patients = target.opened.dataset.patients
        block = target.pool.draw(target.shape, target.episode_key, 0, 100)
        for support, query in zip(block.support, block.query, strict=True):
            assert not set(patients[support]) & set(patients[query])
        for source in target.sources:
            known = source.opened.dataset.patients
            drawn = source.val.draw(source.val.fit(Shape(4, 2, 3)), "v", 0, 20)
            assert not set(known[drawn.query.ravel()]) & set(known[source.train.images])


@pytest.mark.parametrize(
    ("datasets", "changes", "words"),
    [
        ({"a": Made(domain="x")}, {"datasets": ["a", "missing"]}, "missing"),
        ({"a": Made(domain="x"), "b": Made(domain="x")}, {"datasets": ["a", "b"]}, "nothing is left to meta-train on"),
        ({"a": Made(domain="x", per_class=16), "b": Made(domain="y")}, {"datasets": ["a", "b"]}, "target a: 4-way 1-shot 5-query.*has 4"),
        ({"a": Made(domain="x"), "b": Made(domain="y")}, {"datasets": ["a", "b"], "way": 5}, "need 5 classes, and there are 4"),
        ({"a": Made(task_kind="multilabel")}, {"datasets": ["a", "b"]}, "is multilabel"),
        ({"a": Made(image_shape=(8, 8, 8, 1))}, {"datasets": ["a", "b"]}, "8x8x8x1"),
        ({"a": Made(non_commercial=True)}, {"datasets": ["a", "b"]}, "non_commercial: true"),
        ({"a": Made()}, {"setting": "leave_one_site_out", "datasets": ["a"]}, "names 0 sites"),
        ({"a": Made()}, {"setting": "within_dataset", "datasets": ["a"], "class_split": "v"}, "no class split 'v'"),
        ({"a": Made()}, {"setting": "within_dataset", "datasets": ["a"], "class_split": {"train": 9, "val": 1, "test": 2}}, "asks for 12 classes"),
    ],
)  # fmt: skip
def test_data_that_cannot_serve_the_protocol_are_explained_before_anything_trains(
    registered, datasets, changes, words
):
    missing = DataMissing("missing: not found")
    registry = registered(**({"b": Made(domain="y"), "missing": missing} | datasets))
    with pytest.raises((ProtocolError, DataMissing), match=words):
        resolve(registry, protocol(**changes), PLACE)


def test_optional_datasets_are_left_out_and_named(registered):
    registry = registered(
        a=Made(domain="x"),
        b=Made(domain="y"),
        c=DataMissing("no"),
        e=Made(non_commercial=True, domain="z"),
    )
    names = ["a", "b", {"name": "c", "optional": True}, {"name": "e", "optional": True}]
    found = resolve(registry, protocol(datasets=names), PLACE)
    assert len(found.left_out) == 2
    assert found.left_out[0] == "c (not found)"
    allowed = resolve(registry, protocol(datasets=names), PLACE, non_commercial=True)
    assert {t.dataset_id for t in allowed.targets} == {"a", "b", "e"}
    # What else is there changes the sources, and never the episodes.
    one, other = found.targets[0], allowed.targets[0]
    assert one.episode_key == other.episode_key


def test_shots_and_targets_can_be_selected(registered):
    registry = registered(a=Made(domain="x"), b=Made(domain="y"), c=Made(domain="z"))
    found = resolve(registry, protocol(), PLACE, shots=[5], targets=["b"])
    assert [t.id for t in found.targets] == ["b:4w5s"]
    with pytest.raises(UsageError, match="has no shot 3"):
        resolve(registry, protocol(), PLACE, shots=[3])
    with pytest.raises(UsageError, match="no target 'z'"):
        resolve(registry, protocol(), PLACE, targets=["z"])


def test_label_arrays_that_lie_are_refused(registered):
    bad = Made(domain="x")
    bad.info = replace(bad.info, label_names=("a", "b"))
    from medbench.errors import MedbenchError

    with pytest.raises(MedbenchError, match="labels run from 0 to 3, and there are 2"):
        resolve(registered(a=bad, b=Made(domain="y"), c=Made(domain="z")), protocol(), PLACE)
