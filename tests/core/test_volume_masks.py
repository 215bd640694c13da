"""Masks of whole volumes through the core: read, made smaller, scored in mm, and recorded."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch

from medbench.answers import answers_for
from medbench.api import ContractError, Place, Predictor
from medbench.backbones import build_backbone
from medbench.bench import Bench
from medbench.config import BackboneRef, Suite
from medbench.jobs import Folders, Manner
from medbench.lanes import Lanes
from medbench.metrics import class_means, mean_of_classes, segmentation
from medbench.opened import default_place
from medbench.plan import build_plan
from medbench.plugins import load_factory, registry, resolve_params
from medbench.protocols import Protocol
from medbench.tasks import resolve
from medbench.truth import shrunk
from medbench.worker import execute
from medbench_datasets.synthetic.vessels import FORMS, Vessels

SHAPE = (10, 12, 18)
"""Depth, height and width of the volumes on disk."""
SPACING = (3.0, 2.0, 1.0)


def protocol_of(**changes) -> Protocol:
    rules = {
        "name": "p", "version": 1, "summary": "s", "setting": "support_only",
        "task_kind": "segmentation", "datasets": ["msd:Task1"], "image_size": 16, "channels": 1,
        "n_dims": 3, "way": 2, "shots": [1], "queries": 2, "episodes": 3, "cost_episodes": 2,
        "tolerance": 2.0,
    }  # fmt: skip
    return Protocol.model_validate(rules | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Eight volumes in the Decathlon's layout, each with a bright box and a brighter one."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    # On disk axes are right, forward, up; medbench has depth, height, width.
    affine = np.diag([*SPACING[::-1], 1.0])
    task = root / "Task1"
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    pairs = []
    for i in range(8):
        labels = np.zeros(SHAPE[::-1], np.uint8)
        x, y, z = (int(rng.integers(0, n // 2 - 3)) for n in labels.shape)
        labels[x : x + 5, y : y + 5, z : z + 4] = 1
        labels[x + 8 : x + 12, y + 5 : y + 8, z + 3 : z + 6] = 2
        voxels = 100 * labels + rng.integers(0, 20, labels.shape)
        for folder, values in (("imagesTr", voxels.astype(np.int16)), ("labelsTr", labels)):
            nibabel.save(nibabel.Nifti1Image(values, affine), task / folder / f"{i}.nii.gz")
        pairs.append({"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"})
    names = {"0": "background", "1": "organ", "2": "lesion"}
    about = {"modality": {"0": "CT"}, "labels": names, "training": pairs}
    (task / "dataset.json").write_text(json.dumps(about))
    return Place(root, tmp_path_factory.mktemp("cache"))


def bench_of(place, algorithm="masked-prototypes", **params):
    found = registry()
    (target,) = resolve(found, protocol_of(), place).targets
    reference = BackboneRef(name="conv4-3d", params={"width": 4, "pools": 1})
    backbone = build_backbone(found, reference, image_size=16, channels=1, seed=0).eval()
    entry = found.get("algorithms", algorithm)
    params = resolve_params(entry, params)
    return Bench(found, target, backbone, entry, params, torch.device("cpu"), 0)


def block_of(bench, n=3):
    target = bench.target
    return target.pool.draw(target.shape, target.episode_key, 0, n)


# --- masks in the network's size -----------------------------------------------------------------


def test_a_voxel_belongs_to_what_covers_half_of_it_and_nothing_vanishes():
    masks = np.zeros((1, 3, 8, 8, 8), bool)
    masks[0, 0, :4, :4, :4] = True
    masks[0, 1, 5, 5, 3] = True  # an eighth of a voxel
    found = shrunk(masks, (4, 4, 4)).numpy()[0]
    assert found[0].sum() == 8
    assert found[0, :2, :2, :2].all()
    assert np.argwhere(found[1]).tolist() == [[2, 2, 1]]
    assert not found[2].any()


def test_masks_of_equal_slices_shrink_as_the_slice_does():
    flat = np.random.default_rng(0).random((2, 1, 12, 18)) < 0.5
    tall = np.repeat(flat[:, :, None], 10, axis=2)
    found, wanted = shrunk(tall, (5, 8, 8)), shrunk(flat, (8, 8))
    assert found.shape == (2, 1, 5, 8, 8)
    assert bool((found == wanted[:, :, None]).all())


def test_masks_as_large_as_the_input_are_left_alone():
    masks = np.random.default_rng(0).random((2, 1, 4, 4, 4)) < 0.5
    assert (shrunk(masks, (4, 4, 4)).numpy() == masks).all()


# --- what methods see, and how answers are scored ------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "params"),
    [("masked-prototypes", {}), ("local-prototypes", {"window": 2}), ("nearest-places", {}),
     ("unet-scratch", {"steps": 2, "width": 2})],
)  # fmt: skip
def test_lanes_agree_and_score_in_mm_on_the_true_grid(place, tmp_path, algorithm, params):
    bench = bench_of(place, algorithm, **params)
    block = block_of(bench)
    lanes = Lanes(bench, load_factory(bench.entry)(**bench.params), block, tmp_path)
    costs, slow = lanes.cost(2)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow)["lanes_agree"] >= 0.98
    assert slow.shape == (2, 4, 2, *SHAPE)
    assert costs["n_episodes"] == 2
    measured = lanes.measured(fast)
    dataset = bench.target.opened.dataset
    assert dataset.spacings[0].tolist() == list(SPACING)
    for e in range(2):
        truth = dataset.read_masks(block.query[e])[:, block.classes[e]]
        expected = segmentation(fast.masks[e], truth, spacing=SPACING, tolerance=2.0)
        for name, values in expected.items():
            assert measured[name][e] == pytest.approx(mean_of_classes(class_means(values)))


def test_support_masks_come_at_the_size_of_the_networks_input(place):
    bench = bench_of(place)
    block = block_of(bench)
    given = answers_for(bench, block).given(1, None)
    true = bench.target.opened.dataset.read_masks(block.support[1])[:, block.classes[1]]
    assert given["size"] == (16, 16, 16)
    assert given["masks"].shape == (2, 2, 16, 16, 16)
    np.testing.assert_array_equal(given["masks"].numpy(), shrunk(true, (16, 16, 16)).numpy())


def test_scores_are_brought_to_the_true_size_before_they_are_cut(place):
    bench = bench_of(place)
    answers = answers_for(bench, block_of(bench))
    ramp = torch.linspace(-1, 1, 16)[:, None, None].expand(4, 2, 16, 16, 16).contiguous()
    found = answers.checked(ramp, torch.zeros(4, 4, 64, 8), 0)
    assert found.shape == (4, 2, *SHAPE)
    assert (found.sum(dim=2) == SHAPE[0] // 2).all()


def test_who_knows_the_masks_gets_them_back_but_for_the_resizing(place, tmp_path):
    class Knows(Predictor):
        def __init__(self, support):
            self.masks = support.masks

        def predict(self, query):
            return self.masks.float() - 0.5

    bench = bench_of(place)
    block = block_of(bench)
    answers = answers_for(bench, block)
    support = answers.support(torch.zeros(2, 4, 64, 8), 0, None, **answers.given(0, None))
    found = answers.checked(Knows(support).predict(None), torch.zeros(2, 4, 64, 8), 0)
    truth = bench.target.opened.dataset.read_masks(block.support[0])[:, block.classes[0]]
    assert segmentation(found.numpy(), truth)["dice"][truth.any(axis=(2, 3, 4))].min() > 0.8


# --- cells ---------------------------------------------------------------------------------------


def suite_of(backbones, algorithms) -> Suite:
    protocol = {
        "name": "synthetic-volume-masks", "shots": [1], "episodes": 2, "cost_episodes": 1,
    }  # fmt: skip
    return Suite.model_validate(
        {
            "name": "s",
            "protocols": [protocol],
            "backbones": backbones,
            "algorithms": algorithms,
            "budget": {"episodes": 1},
        }
    )


def test_cells_of_volumes_with_masks_end_well_or_say_why(tmp_path):
    deep = {"name": "conv4-3d", "params": {"width": 2, "pools": 2}}
    slices = {"name": "slices:conv4", "params": {"width": 2, "pools": 2}}
    across = {"name": "slices:conv4", "label": "across", "params": {"width": 2, "axis": 2}}
    quick = {"name": "unet-scratch", "params": {"steps": 1, "width": 2}}
    suite = suite_of([deep, slices, across], ["panet", "universeg", quick])
    plan = build_plan(suite, registry(), default_place())
    # What takes images alone is not trained.
    assert {job.request["algorithm"]["name"] for job in plan.trainings} == {"panet"}
    manner, folders = Manner(threads=1), Folders(tmp_path)
    for job in (*plan.trainings, *plan.cells):
        execute(job, tmp_path, default_place(), manner, lambda fraction, text: None)
    records = {}
    for job in plan.cells:
        record = json.loads(folders.record(job).read_text())
        name = job.request["backbone"].get("label") or job.request["backbone"]["name"]
        records[name, job.request["algorithm"]["name"]] = record
    for backbone in ("conv4-3d", "slices:conv4"):
        for algorithm in ("panet", "unet-scratch"):
            record = records[backbone, algorithm]
            assert record["status"] == "ok", record
            assert record["picture"]["file"].endswith(".webp")
    said = json.dumps(records["conv4-3d", "universeg"])
    assert "universeg takes images (n_dims 2), and protocol synthetic-volume-masks" in said
    wrong = records["across", "panet"]
    assert wrong["status"] == "unavailable"
    assert "not in the order of the volume's places" in json.dumps(wrong)
    # It sees the volumes themselves, and their places with them.
    assert records["across", "unet-scratch"]["status"] == "ok"


def test_boxes_of_volumes_are_refused():
    with pytest.raises(ValueError, match="whose boxes have four edges"):
        protocol_of(task_kind="detection")


# --- the synthetic set ---------------------------------------------------------------------------


def test_masks_of_vessels_hold_what_is_bright_and_belong_to_the_volumes_class():
    flat, marked = Vessels(images_per_class=10), Vessels(images_per_class=10, labels="masks")
    rows = np.arange(0, 160, 3)
    volumes, masks = marked.read(rows)[..., 0], marked.read_masks(rows)
    assert (volumes == flat.read(rows)[..., 0]).all()
    assert marked.digest != flat.digest
    assert (marked.labels.argmax(1) == flat.labels).all()
    assert (masks.any(axis=(2, 3, 4)) == marked.labels[rows].astype(bool)).all()
    own = masks.any(axis=1)
    for volume, mask in zip(volumes, own, strict=True):
        assert mask.any(axis=(1, 2)).all(), "a vessel is in every slice"
        assert volume[mask].mean() > volume[~mask].mean() + 50
    kinds = flat.labels[rows] % len(FORMS)
    shares = [own[kinds == k].mean() for k in range(len(FORMS))]
    assert shares[FORMS.index("double")] > 1.7 * shares[FORMS.index("round")], "two are more"
    with pytest.raises(ContractError, match="read_masks"):
        flat.read_masks(rows)
