"""Tasks with boxes: what methods see of them, what is asked of their answers, and the scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medbench.answers import answers_for
from medbench.api import Algorithm, Boxes, Detections, Detector, Support
from medbench.backbones import build_backbone
from medbench.bench import Bench
from medbench.cli import main
from medbench.config import BackboneRef
from medbench.errors import ContractError, NonFinite
from medbench.lanes import Lanes
from medbench.leaderboard.audit import Auditor, ProtocolRule
from medbench.metrics import detection, mean_of_classes
from medbench.opened import default_place
from medbench.plugins import load_factory, registry, resolve_params
from medbench.protocols import Protocol
from medbench.tasks import resolve

RULES = {
    "name": "p",
    "version": 1,
    "summary": "s",
    "setting": "support_only",
    "task_kind": "detection",
    "datasets": [
        {"name": "synthetic:xray", "params": {"labels": "boxes", "size": 48, "images_per_class": 8}}
    ],
    "image_size": 32,
    "channels": 1,
    "way": 2,
    "shots": [2],
    "queries": 2,
    "episodes": 4,
    "cost_episodes": 2,
}


def bench_of(algorithm="template-matching", **changes):
    found = registry()
    (target,) = resolve(found, Protocol.model_validate(RULES | changes), default_place()).targets
    reference = BackboneRef(name="conv4", params={"width": 8, "pools": 1})
    backbone = build_backbone(found, reference, image_size=32, channels=1, seed=0).eval()
    entry = found.get("algorithms", algorithm)
    return Bench(found, target, backbone, entry, resolve_params(entry, {}), torch.device("cpu"), 0)


def block_of(bench, n=4):
    target = bench.target
    return target.pool.draw(target.shape, target.episode_key, 0, n)


def truth_of(bench, block, e, side="query"):
    """True boxes of an episode, labelled by the episode's numbers, straight from the dataset."""
    found = []
    for boxes in bench.target.opened.dataset.read_boxes(getattr(block, side)[e]):
        number = {int(c): i for i, c in enumerate(block.classes[e])}
        kept = [i for i, label in enumerate(boxes.labels.tolist()) if label in number]
        labels = np.array([number[int(boxes.labels[i])] for i in kept], np.int64)
        found.append(Boxes(boxes.xyxy[kept], labels, boxes.ignored[kept]))
    return found


class Says(Algorithm):
    """Remembers every support set, and answers with what it was told to, for each query."""

    def __init__(self, answer):
        self.answer, self.seen = answer, []

    def adapt(self, support):
        self.seen.append(support)
        return Told(self.answer)


class Told(Detector):
    def __init__(self, answer):
        self.answer = answer

    def predict(self, query):
        return [self.answer() for _ in query]


def one(xyxy=(0.0, 0.0, 8.0, 8.0), label=0, score=0.5):
    return Detections(np.array([xyxy]), np.array([label]), np.array([score]))


def test_a_method_sees_the_boxes_of_the_support_in_the_networks_pixels(tmp_path):
    bench = bench_of()
    block, says = block_of(bench), Says(one)
    Lanes(bench, says, block, tmp_path).cost(1)
    support: Support = says.seen[0]
    assert support.size == (32, 32)
    assert support.masks is None
    expected = truth_of(bench, block, 0, "support")
    assert len(support.boxes) == len(expected) == 4
    for seen, true in zip(support.boxes, expected, strict=True):
        np.testing.assert_allclose(seen.xyxy, true.xyxy * 32 / 48)
        np.testing.assert_array_equal(seen.labels, true.labels)
    # What a method does to them changes nothing for others.
    support.boxes[0].xyxy[:] = -1
    again = answers_for(bench, block).given(0, None)["boxes"]
    np.testing.assert_allclose(again[0].xyxy, expected[0].xyxy * 32 / 48)


def test_the_truth_itself_scores_one_and_nothing_scores_zero(tmp_path):
    bench = bench_of()
    block = block_of(bench)
    answers = answers_for(bench, block)
    truth = truth_of(bench, block, 0)
    query = torch.zeros(4, 1, 32, 32)
    right = [Detections(b.xyxy * 32 / 48, b.labels, np.ones(len(b.labels))) for b in truth]
    found = answers.reduced(0, answers.checked(right, query, 0), batched=False)
    assert {k: float(v[0]) for k, v in found.metrics.items()} == {
        "ap50": 1.0,
        "ap50_95": 1.0,
        "froc": 1.0,
    }
    none = Detections(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
    found = answers.reduced(0, answers.checked([none] * 4, query, 0), batched=False)
    assert {float(v[0]) for v in found.metrics.values()} == {0.0}


@pytest.mark.parametrize("algorithm", ["template-matching", "prototype-boxes"])
def test_lanes_agree_and_score_as_the_metrics_do_on_what_they_predict(tmp_path, algorithm):
    bench = bench_of(algorithm)
    block = block_of(bench)
    lanes = Lanes(bench, load_factory(bench.entry)(**bench.params), block, tmp_path)
    _, slow = lanes.cost(2)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow)["lanes_agree"] >= 0.98
    measured = lanes.measured(fast)
    assert len(measured["ap50"]) == 4
    for e in range(2):
        expected = detection(slow[e], truth_of(bench, block, e), 2)
        for name, values in expected.items():
            assert measured[name][e] == pytest.approx(mean_of_classes(values), abs=0.02)


def test_lanes_that_find_other_boxes_are_told_apart(tmp_path):
    bench = bench_of()
    lanes = Lanes(bench, Says(one), block_of(bench), tmp_path)
    _, slow = lanes.cost(2)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow) == {"lanes_agree": 1.0}
    moved = [[dataclasses.replace(d, xyxy=d.xyxy + 3.0) for d in found] for found in slow]
    with pytest.raises(ContractError, match=r"one by one agree on 0\.0 %"):
        lanes.compare(fast, moved)
    relabelled = [[dataclasses.replace(d, labels=d.labels + 1) for d in found] for found in slow]
    with pytest.raises(ContractError, match=r"one by one agree on 0\.0 %"):
        lanes.compare(fast, relabelled)


def test_a_detector_that_looks_at_other_queries_is_no_inductive_one(tmp_path):
    class Peeks(Told):
        def predict(self, query):
            return [one((0.0, 0.0, 4.0 + 4 * len(query), 8.0)) for _ in query]

    class Peeking(Says):
        def adapt(self, support):
            return Peeks(None)

    bench = bench_of()
    lanes = Lanes(bench, Peeking(None), block_of(bench), tmp_path)
    with pytest.raises(ContractError, match="declares itself inductive"):
        lanes.accuracy(lambda fraction, text: None)


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (torch.zeros(4, 2), ContractError, "a list of 4"),
        ([one()] * 3, ContractError, "3 of them"),
        ([None] * 4, ContractError, "NoneType is not"),
        ([one(label=2)] * 4, ContractError, "labels are int64 2...2"),
        ([one(score=np.nan)] * 4, NonFinite, "not finite"),
        ([one((8.0, 0.0, 0.0, 8.0))] * 4, ContractError, "wrong order"),
        ([Detections(np.zeros((2, 4)), np.zeros(1, int), np.zeros(1))] * 4, ContractError, "boxes"),
    ],
)
def test_answers_that_are_no_boxes_are_faults(found, error, words):
    bench = bench_of()
    answers = answers_for(bench, block_of(bench))
    with pytest.raises(error, match=words):
        answers.checked(found, torch.zeros(4, 1, 32, 32), 0)


def test_a_predictor_of_classes_and_a_batched_method_are_told_what_is_needed():
    bench = bench_of()
    block = block_of(bench)
    with pytest.raises(ContractError, match=r"medbench.api.Detector is needed"):
        answers_for(bench, block).adapted(3)
    spec = bench.entry.spec
    batched = dataclasses.replace(spec, traits=dataclasses.replace(spec.traits, batched=True))
    bench.entry = dataclasses.replace(bench.entry, spec=batched)
    with pytest.raises(ContractError, match="Set batched to False"):
        answers_for(bench, block)


def test_a_run_of_boxes_is_recorded_audited_and_ranked_by_ap50(tmp_path, capsys):
    suite = {
        "name": "s",
        "protocols": [{"name": "synthetic-detection", "episodes": 3, "cost_episodes": 1}],
        "backbones": [{"name": "conv4", "params": {"width": 4, "pools": 2}}],
        "algorithms": ["template-matching"],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    out = tmp_path / "out"

    def medbench(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        return ended.value.code, capsys.readouterr().out

    code, _ = medbench(
        "run", tmp_path / "suite.yaml", "--out", out, "--only", "synthetic:xray:1w1s"
    )
    assert code == 0
    path = next(p for p in Path(out / "records").glob("*1w1s*.json"))
    assert set(json.loads(path.read_text())["summary"]) == {"ap50", "ap50_95", "froc"}
    assert Auditor({"synthetic-detection": ProtocolRule(1)}).faults(path) == []
    code, shown = medbench("leaderboard", out)
    assert code == 0
    assert "AP50 [95 %]" in shown
