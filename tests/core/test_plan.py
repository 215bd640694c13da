"""Content keys are for ever: a record is found again only under the key it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from medbench.api import Place
from medbench.config import load_suite
from medbench.files import canonical, content_key
from medbench.plan import build_plan
from medbench.plugins import registry
from medbench.records import find_records

# The digest of a plugin's code is part of every key, so this text stays as it is.
SOURCE = """\
import numpy as np
from medbench.api import *

C = Citation(title="t", authors="a", venue="v", year=2020)
COMMON = dict(version="1", summary="s", citation=C, licence="MIT")

class Images(Dataset):
    def __init__(self, name, digest):
        self.labels = np.repeat(np.arange(6), 20)
        self.sites = np.tile(np.arange(2), 60)
        self._digest = digest
        self.info = DatasetInfo(
            name=name, label_names=tuple(f"c{i}" for i in range(6)), image_shape=(8, 8, 1),
            domain=name, modality="none", licence="CC0", site_names=("north", "süd"),
            class_splits={"d": ClassSplit((0, 1, 2), (), (3, 4, 5))})

    @property
    def digest(self):
        return self._digest

    def read(self, indices):
        return np.zeros((len(indices), 8, 8, 1), np.uint8)

def open_one(place, noise):
    return Images("one", f"one-{noise}")

def open_two(place):
    return Images("two", "two")

@hookimpl
def medbench_datasets():
    kind = dict(COMMON, modality="none")
    return [
        DatasetSpec(name="g/one", factory="golden_medbench:open_one", domain="one",
                    parameters=(Parameter("noise", 0.5, "any", "float"),), **kind),
        DatasetSpec(name="g/two", factory="golden_medbench:open_two", domain="two", **kind)]

@hookimpl
def medbench_backbones():
    return [BackboneSpec(name="g/net", factory="golden_medbench:Net", pretrained_on="photographs",
                         parameters=(Parameter("width", 64, "any", "int"),), **COMMON)]

@hookimpl
def medbench_protocols():
    return [ProtocolSpec(name=f"g/{n}", version=v, summary="s", resource=f"golden_files:{n}.yaml")
            for n, v in (("classes", 1), ("cross", 2), ("sites", 1))]

@hookimpl
def medbench_algorithms():
    rate = Parameter("rate", 1, "any", "float")
    own = Parameter("train_shot", None, "any", "int", optional=True, stage="train")
    steps = Parameter("steps", 10, "any", "int", stage="adapt")
    kind = Parameter("kind", "a", "any", "str", choices=("a", "b"), stage="adapt")
    def one(name, parameters=(), trainer=None, **traits):
        return AlgorithmSpec(
            name="g/" + name, factory="golden_medbench:" + name.title(), parameters=parameters,
            trainer=trainer, traits=Traits(works_on="features", adapts="nothing", **traits),
            **COMMON)
    return [
        one("plain", (kind,), transductive={"kind": ("b",)}, batched=True),
        one("meta", (rate, own, steps), meta_trains=True, task_kinds=("classification", "multilabel")),
        one("left", (rate, steps), "golden_medbench:Trainer", meta_trains=True),
        one("right", (rate, kind), "golden_medbench:Trainer", meta_trains=True)]
"""  # noqa: E501

PROTOCOLS = {
    "classes": (1, "datasets: [g/one]\nsetting: within_dataset\nclass_split: d"),
    "cross": (2, "datasets: [{name: g/one, params: {noise: 2}}, g/two]\nsetting: cross_domain"),
    "sites": (1, "datasets: [g/two]\nsetting: leave_one_site_out"),
}

SUITE = """\
name: golden
protocols:
  - g/classes
  - {name: g/cross, episodes: 30, shots: [2]}
  - {name: g/sites, cost_episodes: 3, targets: [süd]}
backbones:
  - g/net
  - {name: g/net, label: "narrow, é", params: {width: 8}, weights: pretrained}
algorithms:
  - g/plain
  - {name: g/plain, label: b, params: {kind: b}}
  - {name: g/meta, params: {rate: 3, train_shot: 2}, budget: {images: 1234}}
  - {name: g/meta, label: later, params: {rate: 3, train_shot: 2, steps: 4}, budget: {images: 1234}}
  - {name: g/left, params: {rate: 1e-3}}
  - {name: g/right, params: {rate: 1e-3, kind: b}}
seeds: [0, 7, 12]
budget: {episodes: 50}
"""


@pytest.fixture
def plan(distribute, tmp_path, monkeypatch):
    """A plan whose every ingredient is fixed in this file."""
    monkeypatch.setenv("MEDBENCH_PLUGINS", "golden")
    site: Path = distribute("golden", SOURCE)
    files = site / "golden_files"
    files.mkdir()
    (files / "__init__.py").write_text("")
    for name, (version, rules) in PROTOCOLS.items():
        (files / f"{name}.yaml").write_text(
            f"name: g/{name}\nversion: {version}\nsummary: s\n{rules}\nimage_size: 8\nchannels: 1\n"
            "way: 3\nshots: [1, 2]\nqueries: 3\nepisodes: 40\ncost_episodes: 4\n"
            "validation_episodes: 5\ntrain: {way: 3, shot: 1, query: 3, episodes: 30}\n"
        )
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite, _ = load_suite(str(tmp_path / "suite.yaml"), registry())
    return build_plan(suite, registry(), Place(data=None, cache=tmp_path))


def test_keys_of_a_plan_are_those_of_the_first_version(plan):
    assert (len(plan.trainings), len(plan.cells)) == (48, 216)
    assert [j.key for j in plan.trainings[:2]] == [
        "cf1ecbd092a5e832067dbae3e321a8cc",
        "231b6f2ddd4c981fdec6bc968621c09a",
    ]
    assert [j.key for j in plan.cells[:2]] == [
        "5517aa96be41bcbcca5cc9d0b2e49b16",
        "3242641c8be92f328d7c433f2b2da46b",
    ]
    # What is kept of every job, in order: titles and file names too.
    everything = [
        [j.kind, j.key, j.title, j.slug, j.ingredients, j.training_key]
        for j in (*plan.trainings, *plan.cells)
    ]
    digest = hashlib.blake2b(json.dumps(everything).encode(), digest_size=16).hexdigest()
    assert digest == "f19a4f6830f108d22e5425bae6b78c0b"


def test_a_key_is_the_hash_of_its_ingredients(plan):
    for job in (*plan.trainings, *plan.cells):
        assert job.key == content_key(job.ingredients), job.title
        assert json.loads(canonical(job.ingredients)) == job.ingredients


def test_what_a_cell_needs_is_planned_before_it(plan):
    keys = {job.key for job in plan.trainings}
    assert {c.training_key for c in plan.cells if c.training_key} == keys
    assert len({c.key for c in plan.cells}) == len(plan.cells)
    # Both take the one trainer with the same parameters; the first that asks names it.
    one, other = (
        next(c for c in plan.cells if c.request["algorithm"]["name"] == name)
        for name in ("g/left", "g/right")
    )
    assert one.training_key == other.training_key
    titles = {t.key: t.title for t in plan.trainings}
    assert titles[str(other.training_key)].startswith("Trainer for g/left / ")


def test_keys_of_committed_records_are_the_hashes_of_what_they_hold():
    boards = Path(__file__).parents[2] / "leaderboards"
    for record in find_records(sorted(p.parent for p in boards.glob("*/suite.yaml"))):
        assert content_key(record.data["ingredients"]) == record.data["key"], record.path
