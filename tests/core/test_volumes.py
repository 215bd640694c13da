"""Volumes through the core: opened, resized, embedded, meta-trained on and recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from medbench.api import ContractError, InputSpec, Support, Unavailable
from medbench.backbones import build_backbone
from medbench.config import BackboneRef, Suite
from medbench.embed import ImageStore, features_of, to_input
from medbench.errors import ProtocolError
from medbench.ingredients import Ingredients
from medbench.jobs import Folders, Manner
from medbench.opened import default_place, open_dataset
from medbench.plan import build_plan
from medbench.plugins import load_factory, registry
from medbench.protocols import DatasetRef, Protocol, load_protocol
from medbench.tasks import resolve
from medbench.worker import execute
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_datasets.synthetic.vessels import FORMS, TURNS, Vessels

CPU = torch.device("cpu")
RULES = {
    "name": "p", "version": 1, "summary": "s", "setting": "within_dataset",
    "class_split": "default", "datasets": ["synthetic-vessels"], "image_size": 16,
    "channels": 1, "n_dims": 3, "shots": [1], "queries": 3, "way": 4,
}  # fmt: skip


def spec(size, channels=1, interpolation="bilinear"):
    mean, std = (0.25,) * channels, (0.5,) * channels
    return InputSpec(size, channels, mean, std, interpolation, n_dims=3)


def test_volumes_of_their_own_size_are_normalised_voxel_by_voxel():
    volumes = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 6, 1), np.uint8)
    found = to_input(volumes, spec(6, 3), CPU)
    assert found.shape == (2, 3, 6, 6, 6)
    for channel in range(3):
        np.testing.assert_allclose(
            found[:, channel], (volumes[..., 0] / 255.0 - 0.25) / 0.5, atol=1e-6
        )


def test_resizing_a_volume_averages_over_all_three_axes():
    blocks = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4, 1), np.uint8)
    doubled = blocks.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    found = to_input(doubled, spec(4), CPU)[0, 0] * 0.5 + 0.25
    # A triangle as wide as two new voxels to either side, cut off and made whole at the borders.
    weights = np.zeros((4, 8))
    for i in range(4):
        at = np.clip(1 - np.abs((np.arange(8) + 0.5) / 2 - (i + 0.5)), 0, None)
        weights[i] = at / at.sum()
    wanted = doubled[0, ..., 0] / 255.0
    for axis in range(3):
        wanted = np.moveaxis(np.tensordot(weights, wanted, (1, axis)), 0, axis)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_images_do_not_reach_a_network_for_volumes():
    with pytest.raises(ContractError, match="3 dimensions"):
        to_input(np.zeros((2, 8, 8, 1), np.uint8), spec(8), CPU)


def test_slices_tell_the_cross_sections_of_synthetic_vessels_and_never_their_turns():
    data = Vessels(images_per_class=10)
    volumes = data.read(np.arange(len(data)))[..., 0]
    assert np.array_equal(volumes[[3, 77]], data.read(np.array([3, 77]))[..., 0])
    # With the noise gone, brightest places of the slices lie on a circle: their steps from slice
    # to slice have the sign and, for one strand, the size of the turns.
    half = (np.arange(16) + 0.5) / 16 - 0.5
    turns = np.array(TURNS)[data.labels // len(FORMS)]
    round_ones = data.labels % len(FORMS) == FORMS.index("round")
    bright = np.clip(volumes.astype(float) - volumes.mean(axis=(2, 3), keepdims=True) - 40, 0, None)
    total = bright.sum(axis=(2, 3))
    x = (bright * half).sum(axis=(2, 3)) / total
    y = (bright * half[:, None]).sum(axis=(2, 3)) / total
    place = (x - x.mean(1, keepdims=True)) + 1j * (y - y.mean(1, keepdims=True))
    steps = np.angle(place[:, 1:] / place[:, :-1]).mean(axis=1) * 16 / (2 * np.pi)
    np.testing.assert_allclose(steps[round_ones], turns[round_ones], atol=0.25)
    # What slices give in any order hardly differs between turns, much between cross-sections.
    spread = np.sort(volumes.std(axis=(2, 3)), axis=1).mean(axis=1)
    spread /= volumes.max(axis=(1, 2, 3)) - np.median(volumes, axis=(1, 2, 3))
    by_form = [spread[data.labels % len(FORMS) == f].mean() for f in range(len(FORMS))]
    by_turn = [spread[turns == t].mean() for t in TURNS]
    assert np.ptp(by_turn) < 0.2 * np.ptp(by_form)


def test_a_network_sees_features_of_its_own_parameters_alone(tmp_path):
    opened = open_dataset(
        registry(), DatasetRef(name="synthetic-vessels", params={"size": 12}), default_place()
    )
    store, rows = ImageStore(opened.dataset), np.arange(3)
    found = []
    for axis in (0, 1):
        ref = BackboneRef(name="slices:conv4", params={"width": 2, "axis": axis})
        network = build_backbone(registry(), ref, image_size=16, channels=1, seed=0)
        found.append(features_of(network, opened.dataset, store, rows, CPU, tmp_path))
    # The weights are the same, and so were names of cache files once.
    assert not torch.allclose(*found)


def test_images_and_volumes_do_not_share_a_protocol():
    for name, dims in [("synthetic-vessels", 2), ("synthetic:cells", 3)]:
        protocol = Protocol.model_validate({**RULES, "datasets": [name], "n_dims": dims})
        with pytest.raises(ProtocolError, match=f"n_dims in its file is {dims}"):
            resolve(registry(), protocol, default_place())


def test_keys_of_wrapped_backbones_hold_what_is_wrapped():
    found = registry()
    protocol, entry = load_protocol(found, "synthetic-volumes")
    parts = Ingredients(found, protocol, entry)

    def ingredient(name, seed=0, **params):
        kept.append(BackboneRef(name=name, params=params))  # known by identity
        return parts.backbone(kept[-1], seed).value

    kept = []
    one = ingredient("slices:conv4", width=8)
    assert one["n_dims"] == 3
    assert [w["name"] for w in one["wraps"]] == ["conv4"]
    assert one["wraps"][0]["params"] == {"width": 8, "pools": 4}
    others = [
        ingredient("slices:conv4", width=9),
        ingredient("slices:resnet12"),
        ingredient("slices:conv4", width=8, axis=1),
        ingredient("slices:conv4", seed=1, width=8),
    ]
    assert all(other != one for other in others)
    assert ingredient("slices:conv4", width=8) == one
    flat = Ingredients(found, *load_protocol(found, "synthetic-classes"))
    kept.append(BackboneRef(name="conv4"))
    # Keys of records from before there were volumes must stay what they are.
    assert set(flat.backbone(kept[-1], 0).value) == {
        "name", "version", "plugin", "params", "image_size", "channels", "weights"
    }  # fmt: skip


def test_statistics_of_a_batch_are_per_task_for_volumes_too():
    network = build_backbone(
        registry(), BackboneRef(name="conv4-3d", params={"width": 2}),
        image_size=16, channels=1, seed=0,
    )  # fmt: skip
    body = FunctionalBody(network)
    images = torch.rand(4, 1, 16, 16, 16)
    found = body.of_batch(body.parameters(), images)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    before = [m.running_mean.clone() for m in norms]
    network.train()
    wanted = network(images)
    network.eval()
    torch.testing.assert_close(found, wanted)
    assert not any(torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True))
    first = body.of_first(body.parameters(), images, 4)
    torch.testing.assert_close(first, wanted, rtol=1e-3, atol=1e-4)


def suite_of(backbones, algorithms):
    protocol = {"name": "synthetic-volumes", "shots": [1], "episodes": 4, "cost_episodes": 1}
    return Suite.model_validate(
        {
            "name": "s",
            "protocols": [protocol],
            "backbones": backbones,
            "algorithms": algorithms,
            "budget": {"episodes": 1},
        }
    )


def test_cells_of_volumes_end_well_and_those_of_networks_for_images_say_why(tmp_path):
    params = {"width": 2}
    suite = suite_of(
        [
            {"name": "conv4-3d", "params": params},
            {"name": "slices:conv4", "params": params},
            {"name": "conv4", "params": params},
        ],
        ["protonet", "linear-probe"],
    )
    plan = build_plan(suite, registry(), default_place())
    # Networks for images are trained on nothing.
    assert len(plan.trainings) == 4
    manner, folders = Manner(threads=1), Folders(tmp_path)
    records = {}
    for job in (*plan.trainings, *plan.cells):
        execute(job, tmp_path, default_place(), manner, lambda fraction, text: None)
    for job in plan.cells:
        record = json.loads(folders.record(job).read_text())
        records[job.request["backbone"]["name"], job.request["algorithm"]["name"]] = record
    assert {k: r["status"] for k, r in records.items()} == {
        (b, a): "unavailable" if b == "conv4" else "ok"
        for b in ("conv4-3d", "slices:conv4", "conv4")
        for a in ("protonet", "linear-probe")
    }
    said = json.dumps(records["conv4", "protonet"])
    assert "backbone conv4 takes images, and the protocol has volumes" in said
    assert records["slices:conv4", "protonet"]["n_episodes"] == 4


def test_a_target_without_sources_is_tested_by_methods_that_need_none(monkeypatch):
    rules = {
        **RULES, "setting": "cross_domain", "class_split": None, "way": "all", "queries": 1,
        "datasets": [
            "synthetic-vessels", {"name": "npz:not-here.npz", "optional": True},
        ],
    }  # fmt: skip
    with pytest.raises(ProtocolError, match="at least two datasets"):
        resolve(registry(), Protocol.model_validate(rules), default_place())
    protocol = Protocol.model_validate({**rules, "without_sources": True})
    found = resolve(registry(), protocol, default_place())
    assert [t.id for t in found.targets] == ["synthetic-vessels:16w1s"]
    assert found.targets[0].sources == ()
    assert found.left_out == ("npz:not-here.npz (not found)",)
    monkeypatch.setattr(
        "medbench.plan.load_protocol", lambda r, name: (protocol, load_protocol(r, name)[1])
    )
    plan = build_plan(suite_of(["conv4-3d"], ["linear-probe"]), registry(), default_place())
    assert (len(plan.trainings), len(plan.cells)) == (0, 1)
    probe = {"name": "linear-probe", "params": {"pretrain": "supervised"}}
    with pytest.raises(ProtocolError, match=r"With params {pretrain: none} it needs nothing"):
        build_plan(suite_of(["conv4-3d"], [probe]), registry(), default_place())
    with pytest.raises(ProtocolError, match="protonet meta-trains, and nothing is left"):
        build_plan(suite_of(["conv4-3d"], ["protonet"]), registry(), default_place())


@pytest.mark.parametrize("name", ["support-augmentation", "mixup-support"])
def test_methods_that_change_flat_images_refuse_volumes(name):
    entry = registry().get("algorithms", name)
    algorithm = load_factory(entry)()
    ref = BackboneRef(name="conv4-3d", params={"width": 2})
    algorithm.prepare(build_backbone(registry(), ref, image_size=16, channels=1, seed=0), {})
    support = Support(torch.rand(2, 1, 16, 16, 16), torch.tensor([0, 1]), 2, (0,))
    with pytest.raises(Unavailable, match="flat images, and these are volumes"):
        algorithm.adapt(support)


@pytest.mark.data
def test_adrenal_volumes_are_a_target_of_the_medmnist_protocol():
    protocol, _ = load_protocol(registry(), "medmnist3d-cross")
    found = resolve(registry(), protocol, default_place(), targets=["medmnist/adrenal3d"])
    target = next(t for t in found.targets if t.shape.shot == 10)
    assert target.id == "medmnist/adrenal3d:2w10s"
    assert target.opened.dataset.info.image_shape == (28, 28, 28, 1)
    block = target.pool.draw(target.shape, target.episode_key, 0, 3)
    splits = target.opened.dataset.splits
    assert set(splits[block.support].ravel().tolist()) == {0}
    assert set(splits[block.query].ravel().tolist()) == {2}
