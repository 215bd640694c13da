"""Tasks with masks: their episodes, what methods see of them, and what their answers score."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import medbench.plan
from medbench.answers import answers_for
from medbench.api import Algorithm, Boxes, Predictor, Support
from medbench.backbones import build_backbone
from medbench.bench import Bench
from medbench.cli import main
from medbench.config import BackboneRef, load_suite
from medbench.errors import ContractError, ProtocolError
from medbench.lanes import Lanes
from medbench.leaderboard.audit import Auditor, ProtocolRule
from medbench.metrics import ALL_METRICS, class_means, mean_of_classes, segmentation
from medbench.metrics.boxes import FALSE_POSITIVES
from medbench.opened import default_place
from medbench.plan import build_plan
from medbench.plugins import load_factory, registry, resolve_params
from medbench.protocols import FALSE_POSITIVES as PROTOCOLS_OWN
from medbench.protocols import MAIN_METRIC, Protocol, load_protocol
from medbench.tasks import resolve
from medbench.truth import MaskStore, shrunk
from medbench_algorithms.dense.masked_prototypes import MaskedPrototypes

DATA = "synthetic:xray"


def protocol_of(**changes) -> Protocol:
    rules = {
        "name": "p",
        "version": 1,
        "summary": "s",
        "setting": "support_only",
        "task_kind": "segmentation",
        "datasets": [
            {"name": DATA, "params": {"labels": "masks", "size": 48, "images_per_class": 8}}
        ],
        "image_size": 32,
        "channels": 1,
        "way": 2,
        "shots": [2],
        "queries": 3,
        "episodes": 6,
        "cost_episodes": 3,
    }
    return Protocol.model_validate(rules | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return default_place()


def bench_of(protocol, place, algorithm="masked-prototypes", **params):
    found = registry()
    (target,) = resolve(found, protocol, place).targets
    reference = BackboneRef(name="conv4", params={"width": 8, "pools": 1})
    backbone = build_backbone(found, reference, image_size=32, channels=1, seed=0).eval()
    entry = found.get("algorithms", algorithm)
    params = resolve_params(entry, params)
    return Bench(found, target, backbone, entry, params, torch.device("cpu"), 0)


def block_of(bench, n=6):
    target = bench.target
    return target.pool.draw(target.shape, target.episode_key, 0, n)


class Sees(Algorithm):
    """Remembers every support set, and answers that nothing is anywhere."""

    def __init__(self):
        self.seen: list[Support] = []

    def adapt(self, support):
        self.seen.append(support)
        return Nothing(support)


class Nothing(Predictor):
    def __init__(self, support):
        self.support = support

    def predict(self, query):
        lead = query.shape[:-3]
        return torch.full((*lead, self.support.n_way, *self.support.size), -1.0)


# --- episodes ------------------------------------------------------------------------------------


def test_every_query_and_support_image_shows_its_structure_and_none_is_there_twice(place):
    bench = bench_of(protocol_of(), place)
    block = block_of(bench, 40)
    labels = bench.target.opened.dataset.labels
    for classes, support, query in zip(block.classes, block.support, block.query, strict=True):
        assert labels[support].reshape(2, 2, -1)[0, :, classes[0]].all()
        assert labels[support].reshape(2, 2, -1)[1, :, classes[1]].all()
        assert labels[query][:, classes].any(axis=1).all()
        assert len({*support.tolist(), *query.tolist()}) == len(support) + len(query)
    assert len(np.unique(block.classes)) == 6


def test_support_labels_tell_which_structures_of_the_episode_an_image_shows(place):
    bench = bench_of(protocol_of(), place)
    block = block_of(bench)
    found = bench.target.support_labels(block)
    np.testing.assert_array_equal(
        found, np.broadcast_to([[1, 0], [1, 0], [0, 1], [0, 1]], found.shape)
    )


def test_sites_kept_apart_are_targets_of_their_own(place):
    data = [{"name": DATA, "params": {"labels": "masks", "size": 16, "images_per_class": 30}}]
    rules = protocol_of(sites_apart=True, datasets=data, queries=1)
    found = resolve(registry(), rules, place).targets
    assert [t.site for t in found] == ["site A", "site B", "site C", "site D"]
    for i, target in enumerate(found):
        assert set(target.opened.dataset.sites[target.pool.images]) == {i}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_kind": "classification"}, "do not go together"),
        ({"tolerance": -1}, "tolerance"),
        ({"min_iou": 0}, "min_iou"),
    ],
)
def test_rules_that_masks_do_not_allow_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        protocol_of(**changes)


def test_data_without_masks_are_refused(place):
    with pytest.raises(ProtocolError, match=r"is for segmentation, and dataset .* classification"):
        resolve(registry(), protocol_of(datasets=[DATA]), place)


def test_what_needs_meta_training_is_told_that_there_is_nothing_to_train_on(
    tmp_path, place, monkeypatch
):
    def without_sources(*asked):
        protocol, entry = load_protocol(*asked)
        return protocol.model_copy(update={"setting": "support_only"}), entry

    monkeypatch.setattr(medbench.plan, "load_protocol", without_sources)
    suite = load_suite_of(tmp_path, "synthetic-segmentation", ["panet"])
    found = registry()
    with pytest.raises(ProtocolError, match="nothing is left to train on"):
        build_plan(suite, found, place)


def load_suite_of(tmp_path, protocols, algorithms):
    path = tmp_path / "suite.yaml"
    names = protocols if isinstance(protocols, list) else [protocols]
    path.write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "protocols": [{"name": n, "episodes": 3, "cost_episodes": 1} for n in names],
                "backbones": [{"name": "conv4", "params": {"width": 4, "pools": 2}}],
                "algorithms": algorithms,
            }
        )
    )
    return load_suite(str(path), registry())[0]


def test_a_suite_of_two_task_kinds_is_refused_before_anything_runs(tmp_path, place):
    suite = load_suite_of(tmp_path, ["synthetic-segmentation", "synthetic-classes"], ["protonet"])
    with pytest.raises(ProtocolError, match="ranked by different metrics"):
        build_plan(suite, registry(), place)


def test_the_rules_of_scoring_are_the_same_in_protocols_and_metrics():
    assert PROTOCOLS_OWN == FALSE_POSITIVES
    assert set(MAIN_METRIC.values()) <= set(ALL_METRICS)


# --- what methods see ----------------------------------------------------------------------------


def test_a_method_sees_the_masks_of_the_support_and_of_nothing_else(place, tmp_path):
    bench = bench_of(protocol_of(), place)
    block, sees = block_of(bench), Sees()
    lanes = Lanes(bench, sees, block, tmp_path)
    lanes.cost(1)
    support = sees.seen[0]
    dataset = bench.target.opened.dataset
    true = dataset.read_masks(block.support[0])[:, block.classes[0]]
    np.testing.assert_array_equal(support.masks.numpy(), shrunk(true, (32, 32)).numpy())
    assert support.size == (32, 32)
    assert support.boxes is None
    # What else hangs on a support set is numbers that masks of queries cannot hide in.
    assert {k for k, v in vars(support).items() if isinstance(v, torch.Tensor)} == {
        "inputs",
        "labels",
        "masks",
    }
    assert len(support.masks) == len(block.support[0])


@pytest.mark.parametrize("algorithm", ["masked-prototypes", "local-prototypes", "nearest-places"])
def test_lanes_agree_and_score_as_the_metrics_do_on_what_they_predict(place, tmp_path, algorithm):
    bench = bench_of(protocol_of(), place, algorithm)
    block = block_of(bench)
    lanes = Lanes(bench, load_factory(bench.entry)(**bench.params), block, tmp_path)
    costs, slow = lanes.cost(3)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow)["lanes_agree"] >= 0.98
    assert slow.shape == (3, 6, 2, 48, 48)  # the true size
    assert costs["n_episodes"] == 3
    measured = lanes.measured(fast)
    dataset = bench.target.opened.dataset
    for e in range(3):
        truth = dataset.read_masks(block.query[e])[:, block.classes[e]]
        expected = segmentation(fast.masks[e], truth)
        for name, values in expected.items():
            assert measured[name][e] == pytest.approx(
                mean_of_classes(class_means(values)), nan_ok=True
            )


def test_lanes_that_draw_other_masks_are_told_apart(place, tmp_path):
    bench = bench_of(protocol_of(), place)
    lanes = Lanes(bench, MaskedPrototypes(), block_of(bench), tmp_path)
    _, slow = lanes.cost(3)
    fast = lanes.accuracy(lambda fraction, text: None)
    wrong = np.roll(slow, 5, axis=-1)
    with pytest.raises(ContractError, match="batched form differs"):
        lanes.compare(fast, wrong)


def test_to_find_nothing_scores_zero_and_the_diagonal_and_where_nothing_is_not_at_all(
    place, tmp_path
):
    bench = bench_of(protocol_of(), place)
    lanes = Lanes(bench, Sees(), block_of(bench), tmp_path)
    measured = lanes.measured(lanes.accuracy(lambda fraction, text: None))
    # Of two structures each query shows one; the other says nothing.
    assert (measured["dice"] == 0).all()
    assert measured["hd95"] == pytest.approx(47 * 2**0.5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q: torch.zeros(*q.shape[:-3], 2, 16, 16), "is needed"),
        (lambda q: torch.zeros(*q.shape[:-3], 2), "is needed"),
        (lambda q: torch.zeros(*q.shape[:-3], 2, 32, 32, dtype=torch.int64), "scores are floats"),
        (lambda q: torch.full((*q.shape[:-3], 2, 32, 32), torch.nan), "not finite"),
    ],
)
def test_answers_of_another_shape_or_kind_are_faults(place, answer, words):
    bench = bench_of(protocol_of(), place)
    answers = answers_for(bench, block_of(bench))
    query = torch.zeros(6, 8, 16, 16)
    with pytest.raises(Exception, match=words):
        answers.checked(answer(query), query, 0)


def test_scores_are_brought_to_the_true_size_before_they_are_cut(place):
    bench = bench_of(protocol_of(), place)
    answers = answers_for(bench, block_of(bench))
    ramp = torch.linspace(-1, 1, 32).expand(6, 2, 32, 32).contiguous()
    found = answers.checked(ramp, torch.zeros(6, 8, 16, 16), 0)
    assert found.shape == (6, 2, 48, 48)
    assert (found.sum(-1) == 24).all()


# --- masks in the network's size -----------------------------------------------------------------


def test_a_pixel_belongs_to_what_covers_half_of_it_and_nothing_vanishes():
    masks = np.zeros((1, 3, 8, 8), bool)
    masks[0, 0, :4, :4] = True
    masks[0, 1, 5, 5] = True  # a quarter of a pixel
    found = shrunk(masks, (4, 4)).numpy()[0]
    assert found[0].sum() == 4
    assert found[0, :2, :2].all()
    assert found[1].sum() == 1
    assert found[1, 2, 2]
    assert not found[2].any()


def test_masks_are_read_once_and_held_to_their_shape():
    class Some:
        info = SimpleNamespace(name="some", image_shape=(4, 4, 1))
        labels = np.ones((5, 2), np.uint8)
        read: list[int] = []

        def read_masks(self, rows):
            self.read += rows.tolist()
            return np.ones((len(rows), 2, *self.shape), bool)

    data = Some()
    data.shape = (4, 4)
    store = MaskStore(data, (2, 2))
    rows = np.array([3, 1, 3])
    assert store.true(rows).shape == (3, 2, 4, 4)
    assert store.small(rows).shape == (3, 2, 2, 2)
    assert sorted(data.read) == [1, 3]
    uncached = MaskStore(data, (2, 2), limit_bytes=0)
    np.testing.assert_array_equal(uncached.small(rows), store.small(rows))
    data.shape = (4, 5)
    with pytest.raises(ContractError, match="read_masks returned"):
        store.true(np.array([0]))


# --- the synthetic set ---------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["cells", "xray"])
def test_synthetic_masks_and_boxes_are_those_of_the_painted_objects(place, domain):
    def opened(labels):
        params = {"labels": labels, "size": 48, "images_per_class": 8}
        kind = "segmentation" if labels == "masks" else "detection"
        name = f"synthetic:{domain}"
        if kind == "segmentation":
            rules = protocol_of(datasets=[{"name": name, "params": params}], way=1)
            return resolve(registry(), rules, place).targets[0].opened.dataset
        entry = registry().get("datasets", name)
        return load_factory(entry)(place, argument=domain, **params)

    masked, boxed = opened("masks"), opened("boxes")
    rows = np.array([5, 100, 7])
    masks, boxes = masked.read_masks(rows), boxed.read_boxes(rows)
    np.testing.assert_array_equal(masks.any(axis=(2, 3)), masked.labels[rows])
    for mask, found in zip(masks, boxes, strict=True):
        assert isinstance(found, Boxes)
        (structure,) = set(found.labels.tolist())
        ys, xs = np.nonzero(mask[structure])
        union = [*found.xyxy[:, :2].min(axis=0), *found.xyxy[:, 2:].max(axis=0)]
        assert union == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert masked.digest != boxed.digest
    with pytest.raises(ContractError, match="no boxes"):
        masked.read_boxes(rows)


# --- a whole run ---------------------------------------------------------------------------------


def test_a_run_of_masks_is_recorded_audited_and_ranked_by_dice(tmp_path, capsys):
    trained = {"name": "panet", "budget": {"episodes": 3}}
    load_suite_of(tmp_path, "synthetic-segmentation", ["masked-prototypes", "protonet", trained])
    out = tmp_path / "out"

    def medbench(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        return ended.value.code, capsys.readouterr().out

    code, _ = medbench(
        "run", tmp_path / "suite.yaml", "--out", out, "--only", "synthetic:cells:1w1s"
    )
    assert code == 1  # ProtoNet cannot
    records = [json.loads(p.read_text()) for p in (out / "records").glob("*1w1s*.json")]
    states = {r["cell"]["algorithm"]: r for r in records}
    assert states["protonet"]["status"] == "unavailable"
    assert "asks for segmentation" in states["protonet"]["error"]
    good = states["masked-prototypes"]
    assert set(good["summary"]) == {"dice", "iou", "hd95", "nsd"}
    assert good["costs"]["lanes_agree"] >= 0.98
    # A mask is more or less right, so nothing is counted.
    assert "groups" not in good
    assert not list((out / "records").glob("*.groups.parquet"))
    assert medbench("leaderboard", out, "--interval", "groups")[0] == 2
    with Image.open(out / "records" / good["picture"]["file"]) as picture:
        assert picture.size == (4 * 144 + 3 * 4, 144)
    page = ("leaderboard", out, "--format", "html")
    assert "src: pictureOf" in medbench(*page)[1]
    assert "src: pictureOf" not in medbench(*page, "--no-pictures")[1]
    learned = states["panet"]
    assert learned["status"] == "ok"
    assert learned["training"]["images_seen"] == 3 * 10
    told = json.loads(next((out / "trainings").glob("*/training.json")).read_text())
    assert told["val_metric"] == "dice"
    assert 0 < told["val_accuracy"] < 1
    assert told["sources"] == ["synthetic:fundus", "synthetic:ct", "synthetic:xray"]
    code, shown = medbench("leaderboard", out)
    assert code == 0
    assert "Dice [95 %]" in shown
    code, shown = medbench("leaderboard", out, "--metric", "hd95", "--format", "json")
    assert json.loads(shown)
    path = next(Path(out / "records").glob("*masked-prototypes*.json"))
    assert Auditor({"synthetic-segmentation": ProtocolRule(1)}).faults(path) == []
