"""Aligned modalities through the core: declared, chosen, missing from tests, and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medbench.api import Dataset, DatasetInfo, Modality
from medbench.backbones import build_backbone
from medbench.bench import Bench
from medbench.config import BackboneRef, Suite
from medbench.embed import ImageStore, features_of, to_input
from medbench.episodes import digest as episodes_digest
from medbench.errors import ConfigError, ContractError, ProtocolError, UsageError
from medbench.explain import explain
from medbench.ingredients import Ingredients
from medbench.jobs import Folders, Manner
from medbench.lanes import Lanes
from medbench.leaderboard.audit import Auditor, ProtocolRule
from medbench.modalities import Chosen, Images, lacking, missing_in, shown_of, wrongly_declared
from medbench.opened import Opened, _check_dataset, default_place
from medbench.plan import build_plan
from medbench.plugins import load_factory, registry
from medbench.protocols import Inputs, Protocol, load_protocol
from medbench.records import read_record
from medbench.rerun import plan_again
from medbench.tasks import alone, resolve
from medbench.worker import execute
from medbench.yamlfile import Document
from medbench_datasets.synthetic.scans import OUTLINES, TEXTURES, Scans

CPU = torch.device("cpu")
INFO = DatasetInfo(
    name="d", label_names=("a", "b"), image_shape=(8, 8, 4), domain="d", modality="m",
    licence="CC0-1.0", modalities=(Modality("ct"), Modality("mri", 3)),
)  # fmt: skip


class Four(Dataset):
    """Images of four channels, whose pixels tell the image and the channel."""

    def __init__(self, info=INFO, n=40):
        self.info = info
        self.labels = np.arange(n) % 2
        self.patients = np.arange(n)

    digest = "f" * 32

    def read(self, indices):
        found = np.zeros((len(indices), *self.info.image_shape), np.uint8)
        found += (4 * indices[:, None, None, None] + np.arange(found.shape[-1])).astype(np.uint8)
        return found


def rules(**changes):
    given = {
        "name": "p", "version": 1, "summary": "s", "setting": "within_dataset", "channels": 1,
        "class_split": "default", "datasets": ["synthetic-scans"], "image_size": 16, "way": 4,
        "shots": [1], "queries": 3, **changes,
    }  # fmt: skip
    return Protocol.model_validate(given)


# --- declared and chosen -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modalities", "said"),
    [
        ([("ct", 1), ("mri", 1)], r"ct \(1\), mri \(1\) .* 2 together, .* has 4"),
        ([("ct", 2), ("mri", 2)], r"ct \(2\), mri \(2\) \(channels\); each has 1 or 3"),
        ([("ct", 1), ("ct", 3)], "with different names"),
        ([("all", 1), ("mri", 3)], "called 'all'"),
        ([("a CT", 1), ("mri", 3)], "called 'a CT'"),
    ],
)
def test_wrong_declarations_are_told(modalities, said):
    info = replace(INFO, modalities=tuple(Modality(*m) for m in modalities))
    with pytest.raises(ContractError, match=said):
        _check_dataset(Four(info))


def test_right_declarations_are_fine():
    assert wrongly_declared(INFO) is None
    assert wrongly_declared(replace(INFO, modalities=())) is None
    _check_dataset(Four())


def test_chosen_modalities_are_their_channels_and_nothing_else_changes():
    whole = Four()
    mri = Chosen(whole, ["mri"])
    rows = np.array([3, 1])
    assert mri.info.image_shape == (8, 8, 3)
    assert mri.info.modalities == (Modality("mri", 3),)
    np.testing.assert_array_equal(mri.read(rows), whole.read(rows)[..., 1:])
    np.testing.assert_array_equal(Chosen(whole, ["ct"]).read(rows), whole.read(rows)[..., :1])
    assert mri.labels is whole.labels
    assert mri.patients is whole.patients
    assert len({mri.digest, whole.digest, Chosen(whole, ["ct"]).digest}) == 3


def opened(info=INFO, name="d"):
    ref = SimpleNamespace(name=name)
    return Opened(ref, SimpleNamespace(), {}, Four(info))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"modalities": ["pet"]}, "dataset d has ct, mri, and modality 'pet' is asked for"),
        ({"missing": {"pet": 0.5}}, "missing names 'pet', and the images have ct, mri"),
        ({"missing_support": {"ct": 1, "mri": 1}}, "takes every modality from every image"),
    ],
)
def test_inputs_that_the_data_cannot_serve_are_refused(inputs, said):
    with pytest.raises(ProtocolError, match=said):
        shown_of(rules(), Inputs.model_validate(inputs), [opened()])


def test_datasets_of_different_modalities_do_not_share_a_network():
    plain = replace(INFO, image_shape=(8, 8, 1), modalities=())
    both = [opened(name="one"), opened(plain, "two")]
    with pytest.raises(ProtocolError, match="one: ct, mri; two: one alone"):
        shown_of(rules(), Inputs(), both)
    with pytest.raises(ProtocolError, match="dataset two declares none, and modality 'ct'"):
        shown_of(rules(), Inputs(modalities=("ct",)), both)
    assert shown_of(rules(), Inputs(), both[:1]) == both[:1]


MINIMAL = """\
name: p
version: 1
summary: s
setting: within_dataset
class_split: default
datasets: [synthetic-scans]
"""


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("[{modalities: [ct, ct]}]", "names one twice"),
        ("[{modalities: [ct], missing: {mri: 0.5}}]", "'mri', which is not among the modalities"),
        ("[{missing: {mri: 1.5}}]", "less than or equal to 1"),
        ("[{missing: {mri: 0}}]", "greater than 0"),
        ("[{}, {}]", "'all' is given twice"),
        ("[]", "at least one"),
        ("[{shown: [ct]}]", "shown"),
    ],
)
def test_wrong_inputs_in_a_protocol_are_told(inputs, said):
    with pytest.raises(ConfigError, match=said):
        Document(f"{MINIMAL}inputs: {inputs}\n", "p.yaml").validate(Protocol)


# --- missing from tests --------------------------------------------------------------------------


GOLDEN = [[2, 2, 0, 2, 2, 0, 2, 2, 2, 2, 2, 0], [2, 0, 0, 2, 2, 2, 2, 2, 0, 2, 0, 2]]


def block_of(n, n_support=4, n_query=12, first=0):
    return SimpleNamespace(
        first=first, support=np.zeros((n, n_support)), query=np.zeros((n, n_query))
    )


def test_what_is_missing_is_a_function_of_key_episode_and_place():
    inputs = Inputs(missing={"mri": 0.5}, missing_support={"ct": 0.3})
    names = ("ct", "mri")
    support, query = missing_in(inputs, names, "key", block_of(40))
    assert set(np.unique(support)) == {0, 1}
    assert set(np.unique(query)) == {0, 2}
    some = missing_in(inputs, names, "key", block_of(5, first=10))
    np.testing.assert_array_equal(some[0], support[10:15])
    np.testing.assert_array_equal(some[1], query[10:15])
    fewer = missing_in(inputs, names, "key", block_of(40, n_query=5))
    np.testing.assert_array_equal(fewer[1], query[:, :5])
    assert not np.array_equal(missing_in(inputs, names, "other", block_of(40))[1], query)
    # Frozen: whatever changes these changes every record of a missing modality.
    assert query[:2].tolist() == GOLDEN


def test_shares_are_met_and_smaller_ones_are_parts_of_larger_ones():
    n = 2000
    drawn = {}
    for share in (0.2, 0.5, 1.0):
        inputs = Inputs(missing={"mri": share})
        query = missing_in(inputs, ("ct", "mri"), "key", block_of(n))[1] == 2
        # Five standard deviations of a share of 24,000 images.
        assert abs(query.mean() - share) <= 5 * np.sqrt(share * (1 - share) / query.size)
        drawn[share] = query
    assert not (drawn[0.2] & ~drawn[0.5]).any()
    assert drawn[1.0].all()


def test_no_image_loses_everything():
    names = ("a", "b", "c")
    equal = Inputs(missing=dict.fromkeys(names, 0.9))
    lacks = lacking(missing_in(equal, names, "key", block_of(2000))[1], 3)
    assert not lacks.all(axis=-1).any()
    shares = lacks.reshape(-1, 3).mean(axis=0)
    # All three of 0.9 ** 3 of the images would go, and each is spared in a third of these.
    np.testing.assert_allclose(shares, 0.9 - 0.9**3 / 3, atol=0.015)
    unequal = Inputs(missing={"a": 1.0, "b": 0.5, "c": 1.0})
    lacks = lacking(missing_in(unequal, names, "key", block_of(50))[1], 3)
    assert lacks[..., [0, 2]].all()
    assert not lacks[..., 1].any()


# --- targets and keys ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    protocol, entry = load_protocol(registry(), "synthetic-modalities")
    found = resolve(registry(), protocol, default_place(), shots=[5])
    return protocol, entry, {t.inputs.label: t for t in found.targets}


def test_targets_say_what_is_shown_and_share_their_episodes(bundled):
    targets = bundled[2]
    assert {k: t.id for k, t in targets.items()} == {
        "all": "synthetic-scans:4w5s",
        "ct": "synthetic-scans[ct]:4w5s",
        "mri": "synthetic-scans[mri]:4w5s",
        "50% without mri": "synthetic-scans[50% without mri]:4w5s",
        "100% without mri": "synthetic-scans[100% without mri]:4w5s",
    }
    digests = {episodes_digest(t.pool.draw(t.shape, t.episode_key, 0, 5)) for t in targets.values()}
    assert len(digests) == 1
    assert targets["all"].modalities == ("ct", "mri")
    assert targets["ct"].modalities == ()
    assert targets["ct"].opened.dataset.info.image_shape == (28, 28, 1)


def test_a_suite_chooses_among_inputs_by_name(bundled):
    protocol = bundled[0]

    def labels(*targets):
        found = resolve(registry(), protocol, default_place(), shots=[1], targets=targets)
        return [t.inputs.label for t in found.targets]

    assert labels("synthetic-scans[ct]", "synthetic-scans[all]") == ["all", "ct"]
    assert len(labels("synthetic-scans")) == 5
    with pytest.raises(UsageError, match=r"no target 'synthetic-scans\[pet\]'.*\[50% without mri"):
        labels("synthetic-scans[pet]")


def test_content_keys_tell_what_is_shown_and_those_of_other_protocols_stay(bundled):
    protocol, entry, targets = bundled
    counts = {"episodes": 3, "cost_episodes": 1}
    parts = Ingredients(registry(), protocol, entry)
    made = {label: parts.target(target, counts) for label, target in targets.items()}
    assert "inputs" not in made["all"]
    assert made["ct"]["inputs"]["modalities"] == ["ct"]
    assert made["50% without mri"]["inputs"]["modalities"] == ["ct", "mri"]
    assert len({json.dumps(m, sort_keys=True) for m in made.values()}) == 5
    assert len({m["dataset"]["digest"] for m in made.values()}) == 1
    ref = BackboneRef(name="late:conv4")
    assert parts.backbone(ref, 0, 2).value == {**parts.backbone(ref, 0).value, "modalities": 2}
    other, other_entry = load_protocol(registry(), "synthetic-classes")
    target = resolve(registry(), other, default_place(), shots=[1]).targets[0]
    plain = Ingredients(registry(), other, other_entry)
    assert set(plain.target(target, counts)) == {
        "protocol", "protocol_plugin", "dataset", "id", "episodes", "n_episodes", "cost_episodes"
    }  # fmt: skip
    (source,) = plain.sources(target).value
    assert set(source) == {"dataset", "site", "classes", "n_images"}
    assert "modalities" in parts.sources(targets["ct"]).value[0]
    assert "modalities" not in parts.sources(targets["all"]).value[0]


# --- made-up scans -------------------------------------------------------------------------------


def test_neither_modality_of_made_up_scans_holds_the_other_half_of_the_class():
    data, rows = Scans(images_per_class=10), np.arange(0, 160, 7)
    images = data.read(rows)
    outlines, textures = np.divmod(data.labels, len(TEXTURES))
    swapped = Scans(images_per_class=10)
    swapped.labels = outlines * len(TEXTURES) + (textures + 1) % len(TEXTURES)
    found = swapped.read(rows)
    np.testing.assert_array_equal(found[..., 0], images[..., 0])
    assert (found[..., 1] != images[..., 1]).any(axis=(1, 2)).all()
    swapped.labels = (outlines + 1) % len(OUTLINES) * len(TEXTURES) + textures
    found = swapped.read(rows)
    np.testing.assert_array_equal(found[..., 1], images[..., 1])
    assert (found[..., 0] != images[..., 0]).any(axis=(1, 2)).all()
    split = data.info.class_splits["default"]
    # Two outlines with two textures: whoever knows one half is left with two classes.
    assert {(c // 4, c % 4) for c in split.test} == {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert sorted([*split.train, *split.val, *split.test]) == list(range(16))


# --- features and lanes --------------------------------------------------------------------------


def network_of(name="late:conv4", names=("ct", "mri"), size=16, **params):
    ref = BackboneRef(name=name, params={"width": 4, **params})
    given = {"image_size": size, "channels": 1, "seed": 0}
    return build_backbone(registry(), ref, modalities=names, **given).eval()


def test_features_of_an_image_and_what_it_lacks_are_kept_apart_in_the_cache(tmp_path):
    dataset, network = Scans(images_per_class=10), network_of()
    store, n = ImageStore(dataset), len(dataset)
    rows = np.array([3, 8, 3 + 2 * n, 8 + n])
    found = [features_of(network, dataset, store, np.sort(rows), CPU, tmp_path) for _ in range(2)]
    torch.testing.assert_close(*found)
    pixels = dataset.read(np.array([3, 8]))
    for number, lacks in enumerate([[False, False], [False, False], [True, False], [False, True]]):
        # Sorted: 3, 8, 8 without CT, 3 without MRI.
        image = pixels[[0, 1, 1, 0][number]][None]
        x = to_input(Images(image, (1, 1), np.array([lacks])), network.input, CPU)
        with torch.no_grad():
            torch.testing.assert_close(found[0][number], network(x)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0][0], found[0][3], rtol=1e-2)


@pytest.mark.parametrize("algorithm", ["nearest-centroid", "support-augmentation"])
def test_both_lanes_see_the_same_modalities_missing(tmp_path, bundled, algorithm):
    target = alone(registry(), bundled[0], default_place(), "synthetic-scans", 5, "50% without mri")
    network = network_of(size=28)
    entry = registry().get("algorithms", algorithm)
    bench = Bench(registry(), target, network, entry, {}, CPU, 0)
    block = target.pool.draw(target.shape, target.episode_key, 0, 4)
    method = load_factory(entry)()
    method.prepare(network, {})
    lanes = Lanes(bench, method, block, tmp_path)
    costs, slow = lanes.cost(3)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow)["lanes_agree"] == 1.0
    assert costs["n_episodes"] == 3
    # By hand: the network's features of the images, with NaN for what is drawn as missing.
    if algorithm == "nearest-centroid":
        lacks = lacking(target.missing(block)[1][0], 2)
        images = target.opened.dataset.read(block.query[0])
        support = target.opened.dataset.read(block.support[0])
        with torch.no_grad():
            q = network(to_input(Images(images, (1, 1), lacks), network.input, CPU))
            s = network(to_input(Images(support, (1, 1)), network.input, CPU))
        centres = s.view(4, 5, -1).mean(dim=1)
        wanted = torch.cdist(q, centres).argmin(dim=1)
        assert np.mean(fast[0].argmax(-1) == wanted.numpy()) > 0.95


# --- runs ----------------------------------------------------------------------------------------


def suite_of(backbones, algorithms, targets=None):
    protocol = {
        "name": "synthetic-modalities", "shots": [1], "episodes": 3, "cost_episodes": 1,
        "targets": targets,
    }  # fmt: skip
    return Suite.model_validate(
        {
            "name": "s",
            "protocols": [protocol],
            "backbones": [{"name": b, "params": {"width": 2}} for b in backbones],
            "algorithms": algorithms,
            "budget": {"episodes": 1},
        }
    )


MAML = {"name": "maml", "params": {"inner_steps": 1, "inner_steps_test": 1, "meta_batch": 1}}


def test_cells_of_every_wrapper_and_input_end_well_and_tell_what_was_missing(tmp_path):
    suite = suite_of(
        ["stacked:conv4", "late:conv4", "gated:conv4"],
        ["protonet", MAML],
        ["synthetic-scans[all]", "synthetic-scans[ct]", "synthetic-scans[50% without mri]"],
    )
    plan = build_plan(suite, registry(), default_place())
    # With one missing in tests alone, trainings are those of both: for all, and for CT.
    assert len(plan.trainings) == 2 * 3 * 2
    assert len(plan.cells) == 3 * 3 * 2
    manner, folders = Manner(threads=1), Folders(tmp_path)
    for job in (*plan.trainings, *plan.cells):
        execute(job, tmp_path, default_place(), manner, lambda fraction, text: None)
    records = [read_record(folders.record(job)) for job in plan.cells]
    assert [r.data.get("error") for r in records if not r.ok] == []
    by_label: dict[str, set[str]] = {}
    for record in records:
        by_label.setdefault(record.cell["inputs"], set()).add(json.dumps(record.data["inputs"]))
    # The same for all methods and networks.
    assert all(len(told) == 1 for told in by_label.values())
    told = {label: json.loads(*texts) for label, texts in by_label.items()}
    assert told["ct"]["modalities"] == ["ct"]
    assert told["all"]["missing_of_query"] == {}
    assert 0.3 < told["50% without mri"]["missing_of_query"]["mri"] < 0.7
    one = next(r for r in records if r.cell["inputs"] == "50% without mri")
    assert one.cell["target"] == "synthetic-scans[50% without mri]:4w1s"
    assert "ct and mri are shown. " in explain(one)
    assert "of the images asked about lack mri." in explain(one)
    rule = ProtocolRule(1, 3, (1,), ("synthetic-scans[50% without mri]",))
    auditor = Auditor({"synthetic-modalities": rule})
    assert [f for f in auditor.faults(one.path) if "target" in f or "data" in f] == []
    other = next(r for r in records if r.cell["inputs"] == "ct")
    assert "its target is synthetic-scans" in " ".join(auditor.faults(other.path))
    assert Auditor({"synthetic-modalities": replace(rule, targets=None)}).faults(other.path) == []
    # Each record names the one cell that it is of.
    for record in (one, other, next(r for r in records if r.cell["inputs"] == "all")):
        again, changed = plan_again(record, registry(), default_place(), device="cpu", weights=None)
        assert [job.key for job in again.cells] == [record.key]
        assert changed == []


def test_what_is_chosen_or_missing_changes_what_a_cell_measures(bundled, tmp_path):
    scores = {}
    for label in ("all", "ct", "mri", "100% without mri"):
        target = alone(registry(), bundled[0], default_place(), "synthetic-scans", 5, label)
        network = network_of("late:conv4", target.modalities, 28)
        entry = registry().get("algorithms", "nearest-centroid")
        bench = Bench(registry(), target, network, entry, {}, CPU, 0)
        block = target.pool.draw(target.shape, target.episode_key, 0, 3)
        lanes = Lanes(bench, load_factory(entry)(), block, tmp_path)
        scores[label] = lanes.accuracy(lambda fraction, text: None)
    different = [a for a in scores for b in scores if a < b and np.allclose(scores[a], scores[b])]
    assert different == []
