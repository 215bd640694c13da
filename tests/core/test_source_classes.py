"""Methods that ask are told which source classes an episode has; nobody is told more than that."""

from __future__ import annotations

import dataclasses
import json
import operator

import numpy as np
import pytest
import torch
from torch import Tensor

from medbench import worker
from medbench.api import Algorithm, Predictor, Support
from medbench.config import load_suite
from medbench.jobs import Folders, Manner
from medbench.opened import default_place, open_dataset
from medbench.plan import build_plan
from medbench.plugins import registry
from medbench.protocols import load_protocol
from medbench.records import read_record
from medbench.tasks import Target

SUITE = """
name: asked
protocols: [{{name: {protocol}, shots: [1], episodes: 12, cost_episodes: 2{more}}}]
backbones: [{{name: conv4, params: {{width: 4}}}}]
algorithms: [{algorithms}]
seeds: [0]
budget: {{episodes: 4}}
"""


def planned(folder, protocol, *algorithms, more=""):
    folder.mkdir(exist_ok=True)
    text = SUITE.format(protocol=protocol, algorithms=", ".join(algorithms), more=more)
    (folder / "suite.yaml").write_text(text)
    suite, _ = load_suite(str(folder / "suite.yaml"), registry())
    return build_plan(suite, registry(), default_place())


def run(plan, folder):
    """Every job in this process; records by algorithm."""
    found = {}
    for job in (*plan.trainings, *plan.cells):
        worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
    for job in plan.cells:
        record = read_record(Folders(folder).record(job))
        found[record.cell["algorithm"]] = record
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    names = ("source-only", "zero-adaptation", "simpleshot")
    plan = planned(folder, "synthetic-sites", *names, more=", targets: [site B]")
    return plan, run(plan, folder), folder


def test_references_run_on_a_held_out_site_and_say_what_they_are(ran):
    plan, records, _ = ran
    assert all(r.ok for r in records.values()), [r.data.get("error") for r in records.values()]
    assert records["source-only"].data["traits"]["uses_support"] is False
    assert "uses_support" not in records["simpleshot"].data["traits"]
    assert records["zero-adaptation"].data["costs"]["parameters_adapted"] == 0
    # The network of zero adaptation is that of methods that do adapt.
    assert len(plan.trainings) == 2


def test_a_training_keeps_which_class_of_the_data_each_of_its_classes_is(ran):
    plan, _, folder = ran
    for job in plan.trainings:
        path = folder / "trainings" / job.key / "training.json"
        classes = json.loads(path.read_text())["classes"]
        assert sorted(c for _, c in classes) == list(range(30))
        assert {name for name, _ in classes} == {"synthetic:cells"}


def test_keys_of_methods_that_do_not_ask_hold_no_word_of_it(ran):
    plan, _, _ = ran
    for job in plan.cells:
        traits = job.ingredients["algorithm"]["traits"]
        asks = job.ingredients["algorithm"]["name"] != "simpleshot"
        assert ("knows_classes" in traits, "uses_support" in traits) == (asks, asks)


def test_elsewhere_their_cells_are_unavailable_and_nothing_is_trained_for_them(tmp_path):
    plan = planned(tmp_path, "synthetic-classes", "source-only")
    assert not plan.trainings
    (record,) = run(plan, tmp_path).values()
    assert record.data["status"] == "unavailable"
    assert "synthetic-classes (within_dataset) tests on others" in record.data["error"]


def test_a_class_that_no_source_has_is_named(ran):
    plan, _, folder = ran
    (job,) = [j for j in plan.cells if j.ingredients["algorithm"]["name"] == "source-only"]
    path = folder / "trainings" / str(job.training_key) / "training.json"
    kept = path.read_text()
    try:
        told = json.loads(kept)
        gone = next(i for i, (_, c) in enumerate(told["classes"]) if c == 3)
        told["classes"][gone] = ["other", 3]
        path.write_text(json.dumps(told))
        worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
        record = read_record(Folders(folder).record(job))
        assert record.data["status"] == "unavailable"
        assert (
            "none of these has (enough images of) 'two-lobed nucleus" in record.data["error"]
            or "'" in record.data["error"]
        )
        del told["classes"]
        path.write_text(json.dumps(told))
        worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
        record = read_record(Folders(folder).record(job))
        assert "of an earlier medbench" in record.data["error"]
    finally:
        path.write_text(kept)
        worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)


def class_names():
    protocol, _ = load_protocol(registry(), "synthetic-sites")
    return open_dataset(registry(), protocol.datasets[0], default_place()).dataset.info.label_names


class Spy(Algorithm):
    """Notes all that it is given, and looks for the answers in what it can reach of that."""

    seen: list[tuple[Support, Tensor]] = []

    def __init__(self, **params):
        del params

    def prepare(self, backbone, learned):
        self.learned = dict(learned)

    def adapt(self, support):
        outer = self

        class Answers(Predictor):
            def predict(self, query):
                outer.seen.append((support, query))
                return torch.zeros(*query.shape[:-1], support.n_way)

        return Answers()


def test_who_asks_is_told_the_classes_and_no_label_of_a_query(ran, monkeypatch):
    plan, _, folder = ran
    (job,) = [j for j in plan.cells if j.ingredients["algorithm"]["name"] == "source-only"]
    path = folder / "trainings" / str(job.training_key) / "training.json"
    numbers = {c: i for i, (_, c) in enumerate(json.loads(path.read_text())["classes"])}
    Spy.seen = []
    monkeypatch.setattr(worker, "make", lambda entry, params: Spy(**params))
    drawn = []
    kept = worker.Lanes

    def lanes(bench, algorithm, block, *rest, **more):
        drawn.append(block)
        return kept(bench, algorithm, block, *rest, **more)

    monkeypatch.setattr(worker, "Lanes", lanes)
    worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
    record = read_record(Folders(folder).record(job))
    assert record.ok, record.data.get("error")
    (block,) = drawn
    expected = np.vectorize(numbers.get)(block.classes)
    batches = [s for s, q in Spy.seen if s.inputs.ndim == 3 and len(s.inputs) == 12]
    assert batches
    for support in batches:
        assert support.classes.tolist() == expected.tolist()
    # What it is given does not depend on the answers: with others it is the same to the bit.
    first, Spy.seen = Spy.seen, []
    monkeypatch.setattr(Target, "query_labels", lambda self, block: block.query_labels[:, ::-1])
    worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
    assert len(Spy.seen) == len(first)
    for (one, asked), (other, again) in zip(first, Spy.seen, strict=True):
        assert torch.equal(asked, again)
        for field in dataclasses.fields(Support):
            values = [getattr(side, field.name) for side in (one, other)]
            alike = torch.equal if isinstance(values[0], Tensor) else operator.eq
            assert alike(*values), field.name
    monkeypatch.undo()
    worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)


def test_who_does_not_ask_is_told_nothing(ran, monkeypatch):
    plan, _, folder = ran
    (job,) = [j for j in plan.cells if j.ingredients["algorithm"]["name"] == "simpleshot"]
    Spy.seen = []
    monkeypatch.setattr(worker, "make", lambda entry, params: Spy(**params))
    worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
    assert Spy.seen
    assert all(support.classes is None for support, _ in Spy.seen)
    monkeypatch.undo()
    worker.execute(job, folder, default_place(), Manner(), lambda fraction, text: None)
