"""Compressed backbones from suite to record: what is trained, read, tested, counted and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from medbench import plan as planning
from medbench.config import Suite
from medbench.embed import ImageStore
from medbench.errors import ProtocolError
from medbench.files import file_digest
from medbench.jobs import Folders, Manner
from medbench.opened import default_place
from medbench.plan import Plan, build_plan
from medbench.plugins import registry
from medbench.protocols import load_protocol
from medbench.tasks import resolve
from medbench.worker import execute

NETWORK = {"width": 8}
DISTILLED = {"width": 8, "student_width": 4, "images": 320}


def suite(
    backbones: list[Any], algorithms: list[Any], protocol: str = "synthetic-classes"
) -> Suite:
    asked = {"name": protocol, "shots": [1], "episodes": 4, "cost_episodes": 1}
    return Suite.model_validate(
        {
            "name": "s",
            "protocols": [asked],
            "backbones": backbones,
            "algorithms": algorithms,
            "budget": {"episodes": 2},
        }
    )


def planned(*asked: Any) -> Plan:
    return build_plan(suite(*asked), registry(), default_place())


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """The record of every backbone."""
    for job in (*plan.trainings, *plan.cells):
        execute(job, out, default_place(), Manner(threads=1), lambda fraction, text: None)
    return {
        job.request["backbone"]["name"]: json.loads(Folders(out).record(job).read_text())
        for job in plan.cells
    }


def test_records_count_the_network_that_was_tested(tmp_path):
    backbones = [
        {"name": "conv4", "params": NETWORK},
        {"name": "int8:conv4", "params": NETWORK},
        {"name": "pruned:conv4", "params": NETWORK},
        {"name": "distilled:conv4", "params": DISTILLED},
    ]
    records = run(planned(backbones, ["nearest-neighbour"]), tmp_path)
    assert {r["status"] for r in records.values()} == {"ok"}, records
    told = {name: r["backbone"] for name, r in records.items()}
    # Blocks of 8 channels over 3: weights, biases and BatchNorm's scales and shifts.
    weights, channels = 8 * 3 * 9 + 3 * 8 * 8 * 9, 4 * 8
    assert told["conv4"]["parameters"] == weights + 3 * channels
    # Besides, BatchNorm's statistics, and its counters of eight bytes.
    assert told["conv4"]["bytes"] == 4 * (weights + 5 * channels) + 4 * 8
    assert told["int8:conv4"]["parameters"] == weights + channels
    assert told["int8:conv4"]["bytes"] == weights + 8 * channels
    pruned, left = 4 * 3 * 9 + 2 * 4 * 4 * 9 + 8 * 4 * 9, 3 * 4 + 8
    assert told["pruned:conv4"]["parameters"] == pruned + 3 * left
    assert told["pruned:conv4"]["bytes"] == 4 * (pruned + 5 * left) + 4 * 8
    assert told["distilled:conv4"]["bytes"] < told["conv4"]["bytes"]
    assert len({b["weights_digest"] for b in told.values()}) == 4
    forms = {name: r["costs"]["network"] for name, r in records.items()}
    assert forms["conv4"] == "4 BatchNorms folded"
    assert forms["int8:conv4"].startswith("int8: 4 layers, ")
    assert forms["pruned:conv4"].startswith("pruned: 12 of 24 channels, ")
    assert forms["distilled:conv4"].startswith("distilled: ")
    training = records["distilled:conv4"]["training"]
    assert training["images_seen"] == 320
    assert "5 steps, 320 images" in training["notes"][-1]


def test_methods_that_change_weights_say_that_they_cannot(tmp_path):
    params = {"inner_steps": 1, "inner_steps_test": 1, "meta_batch": 1}
    plan = planned(
        [{"name": "int8:conv4", "params": NETWORK}], [{"name": "maml", "params": params}]
    )
    (job,) = plan.trainings
    execute(job, tmp_path, default_place(), Manner(threads=1), lambda fraction, text: None)
    record = json.loads((Folders(tmp_path).training(job) / "training.json").read_text())
    assert record["status"] == "unavailable"
    assert "Int8 is tested with others than were trained" in record["error"]


def test_a_student_sees_source_images_alone(tmp_path, monkeypatch):
    seen: set[int] = set()
    read = ImageStore.read

    def noted(store, indices, *, keep=True):
        seen.update(np.asarray(indices).ravel().tolist())
        return read(store, indices, keep=keep)

    # A method that trains nothing: all that is read is read for the student.
    plan = planned([{"name": "distilled:conv4", "params": DISTILLED}], ["nearest-neighbour"])
    protocol, _ = load_protocol(registry(), "synthetic-classes")
    (target,) = resolve(registry(), protocol, default_place(), shots=[1]).targets
    (job,) = plan.trainings
    with monkeypatch.context() as patch:
        patch.setattr(ImageStore, "read", noted)
        execute(job, tmp_path, default_place(), Manner(threads=1), lambda fraction, text: None)
    allowed = {i for source in target.sources for i in source.train.images.tolist()}
    assert len(seen) > 50
    assert seen <= allowed
    assert not seen & set(target.pool.images.tolist())
    learned = load_file(tmp_path / "trainings" / job.key / "learned.safetensors")
    assert any(name.startswith("backbone.student.") for name in learned)


def test_a_lesson_goes_on_where_it_was_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr("medbench.training.CHECKPOINT_EVERY_S", 0.0)
    plan = planned([{"name": "distilled:conv4", "params": DISTILLED}], ["protonet"])
    (job,) = plan.trainings

    def fails(fraction, text):
        if text.startswith("step 3/5"):
            raise RuntimeError("the power went")

    folders = [Folders(tmp_path / name) for name in ("broken", "whole")]
    for folder, told in zip(folders, (fails, lambda fraction, text: None), strict=True):
        execute(job, folder.out, default_place(), Manner(threads=1), told)
    first = json.loads((folders[0].training(job) / "training.json").read_text())
    assert "the power went" in json.dumps(first)
    assert (folders[0].training(job) / "lesson-checkpoint.safetensors").exists()
    execute(job, folders[0].out, default_place(), Manner(threads=1), lambda fraction, text: None)
    records = [json.loads((f.training(job) / "training.json").read_text()) for f in folders]
    assert records[0]["resumed_at"] == [2, 2]
    assert records[0]["steps"] == records[1]["steps"] == 7
    learned = [file_digest(f.training(job) / "learned.safetensors") for f in folders]
    assert learned[0] == learned[1]
    assert not list(folders[0].training(job).glob("*checkpoint*"))


def test_keys_tell_compressions_and_their_settings_apart():
    backbones = [
        "conv4",
        "int8:conv4",
        {"name": "int8:conv4", "label": "weights", "params": {"activations": False}},
        "pruned:conv4",
        {"name": "pruned:conv4", "label": "less", "params": {"share": 0.25}},
        "distilled:conv4",
        {"name": "distilled:conv4", "label": "longer", "params": {"images": 64_000}},
    ]
    plan = planned(backbones, ["protonet"])
    assert len({job.key for job in plan.cells}) == len(backbones)


def test_what_learns_from_sources_needs_some(monkeypatch):
    resolved = planning.resolve

    def bare(*given, **named):
        found = resolved(*given, **named)
        return replace(found, targets=tuple(replace(t, sources=()) for t in found.targets))

    monkeypatch.setattr(planning, "resolve", bare)
    with pytest.raises(ProtocolError, match="distilled:conv4 learns from source images"):
        planned(["distilled:conv4"], ["nearest-neighbour"])
