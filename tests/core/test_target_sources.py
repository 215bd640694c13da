"""What may be meta-trained on where targets are masks or boxes, and the tasks it gives."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medbench.api import (
    Boxes,
    Dataset,
    DatasetInfo,
    Detections,
    InputSpec,
    Support,
    Task,
    derive_seed,
)
from medbench.errors import ContractError, NonFinite, ProtocolError
from medbench.ingredients import Ingredients
from medbench.opened import Opened, default_place
from medbench.plugins import registry
from medbench.pools import groups
from medbench.protocols import Protocol
from medbench.settings import groups_of
from medbench.source import TaskSource
from medbench.tasks import resolve
from medbench.truth import shrunk
from medbench.validation import judged

CPU = torch.device("cpu")
SPEC = InputSpec(32, 3, (0.5,) * 3, (0.5,) * 3)


def protocol_of(kind: str = "segmentation", **changes) -> Protocol:
    labels = "masks" if kind == "segmentation" else "boxes"
    params = {"labels": labels, "size": 48, "images_per_class": 8}
    rules = {
        "name": "p",
        "version": 1,
        "summary": "s",
        "setting": "cross_domain",
        "task_kind": kind,
        "datasets": [{"name": f"synthetic:{d}", "params": params} for d in ("cells", "xray", "ct")],
        "targets": ["synthetic:xray"],
        "image_size": 32,
        "way": 1,
        "shots": [2],
        "queries": 3,
        "train": {"way": 2, "shot": 2, "query": 3},
    }
    return Protocol.model_validate(rules | changes)


@pytest.fixture(scope="module")
def masked():
    return resolve(registry(), protocol_of(), default_place()).targets


@pytest.fixture(scope="module")
def boxed():
    return resolve(registry(), protocol_of("detection"), default_place()).targets


# --- which images --------------------------------------------------------------------------------


def test_structures_of_other_domains_are_sources_and_one_structure_is_enough(masked):
    (target,) = masked
    assert target.opened.name == "synthetic:xray"
    assert [s.id for s in target.sources] == ["synthetic:cells", "synthetic:ct"]
    assert [s.train_shape.way for s in target.sources] == [1, 2]
    for one in target.sources:
        assert one.opened.dataset.info.domain != target.opened.dataset.info.domain
        dataset = one.opened.dataset
        assert (dataset.splits[one.train.images] == 0).all()
        # These data tell no validation images: whole patients are kept for it.
        asked = np.concatenate([one.val.members(1, i) for i in range(one.val.n_classes)])
        assert len(asked)
        assert not np.intersect1d(dataset.patients[asked], dataset.patients[one.train.images]).size


class Slices(Dataset):
    """Images of thirty patients, who show all structures, at two sites, some images two of them.

    Three patients of the first site come back at the second.
    """

    def __init__(self):
        n = 120
        self.info = DatasetInfo(
            name="slices",
            label_names=("a", "b", "c", "d"),
            image_shape=(16, 16, 1),
            domain="d",
            modality="m",
            licence="l",
            task_kind="segmentation",
            site_names=("one", "two"),
        )
        self.labels = np.zeros((n, 4), np.uint8)
        self.labels[np.arange(n), np.arange(n) % 4] = 1
        self.labels[::5, 3] = 1
        self.patients = np.arange(n) // 4
        self.sites = (np.arange(n) >= 60).astype(np.int64)
        self.patients[60:72] -= 15

    @property
    def digest(self):
        return "slices"

    def read(self, indices):
        return np.zeros((len(indices), 16, 16, 1), np.uint8)

    def read_masks(self, indices):
        return np.broadcast_to(self.labels[indices][..., None, None] > 0, (len(indices), 4, 16, 16))


def slices_of(**changes) -> tuple[Protocol, Opened]:
    rules = protocol_of(
        datasets=["slices"],
        targets=None,
        queries=1,
        shots=[1],
        train={"way": 1, "shot": 1, "query": 1},
        **changes,
    )
    entry = SimpleNamespace(spec=SimpleNamespace(version="1"))
    return rules, Opened(rules.datasets[0], entry, {}, Slices())


@pytest.mark.parametrize("seed", range(6))
def test_images_that_show_a_structure_of_the_test_are_not_trained_on(seed):
    split = {"train": 2, "val": 1, "test": 1, "seed": seed}
    rules, opened = slices_of(setting="within_dataset", class_split=split)
    opened.dataset.patients = None
    ((_, _, pool, (source,)),) = groups_of(rules, [opened])
    (tested,) = pool.classes
    labels = opened.dataset.labels
    trained = source.train.images
    assert not labels[trained][:, tested].any()
    # And all others are, each by the structure that tasks draw it by.
    others = np.flatnonzero(labels[:, tested] == 0)
    drawn_by = groups(opened.dataset)[others]
    assert set(trained.tolist()) == set(others[np.isin(drawn_by, source.train.classes)].tolist())
    assert not {*source.train.classes, *source.val.classes} & {int(tested)}


def test_a_patient_who_is_asked_about_at_one_site_is_not_trained_on_at_another():
    rules, opened = slices_of(setting="leave_one_site_out")
    dataset = opened.dataset
    found = groups_of(rules, [opened])
    assert [g[1] for g in found] == ["one", "two"]
    for _, _, pool, sources in found:
        asked = set(dataset.patients[pool.images])
        for source in sources:
            used = np.union1d(source.train.images, source.val.images if source.val else [])
            assert asked.isdisjoint(dataset.patients[used.astype(int)])
            assert len(used)


def test_a_target_all_of_whose_patients_are_asked_about_has_nothing_to_train_on():
    split = {"train": 2, "val": 1, "test": 1}
    rules, opened = slices_of(setting="within_dataset", class_split=split)
    with pytest.raises(ProtocolError, match="no class and no patient of the test"):
        groups_of(rules, [opened])


def test_a_training_knows_which_images_of_a_dataset_it_had(masked):
    rules, opened = slices_of(setting="leave_one_site_out")
    known = Ingredients(registry(), rules, SimpleNamespace())
    first, second = (g[3][0] for g in groups_of(rules, [opened]))
    told = [known._source(s)["images"] for s in (first, second)]
    assert told[0] != told[1]


# --- tasks ---------------------------------------------------------------------------------------


def drawn(source, target, t):
    """The indices and classes behind task `t`, and the source it came from."""
    which = derive_seed("source", 0, t) % len(target.sources)
    one = target.sources[which]
    block = one.train.draw(one.train_shape, f"train/0/{one.id}", t, 1)
    return one.opened.dataset, block


def test_tasks_have_the_masks_of_their_images_on_both_sides(masked):
    (target,) = masked
    source = TaskSource(target.sources, SPEC, CPU, 0, {})
    assert source.ways == (1, 2)
    for t in range(6):
        (task,) = source.tasks(t)
        dataset, block = drawn(source, target, t)
        for rows, masks, labels in (
            (block.support[0], task.support.masks, task.support.labels),
            (block.query[0], task.query_masks, task.query_labels),
        ):
            true = dataset.read_masks(rows)[:, block.classes[0]]
            assert torch.equal(masks, shrunk(true, (32, 32)))
            assert torch.equal(labels, masks.flatten(2).any(-1).long())
        assert task.support.size == (32, 32)
        assert task.support.boxes is None
        assert task.support.n_way == len(block.classes[0])
        again = TaskSource(target.sources, SPEC, CPU, 0, {}).tasks(t)[0]
        assert torch.equal(again.query, task.query)
        assert torch.equal(again.query_masks, task.query_masks)


def test_tasks_have_the_boxes_of_their_images_in_the_networks_pixels(boxed):
    (target,) = boxed
    source = TaskSource(target.sources, SPEC, CPU, 0, {"way": 1})
    for t in range(4):
        (task,) = source.tasks(t)
        assert task.support.n_way == 1
        for boxes in (*task.support.boxes, *task.query_boxes):
            assert len(boxes.labels) > 0
            assert set(boxes.labels.tolist()) == {0}
            assert (boxes.xyxy >= 0).all()
            assert (boxes.xyxy <= 32).all()
        assert len(task.query_boxes) == len(task.query) == 3
    (slices,) = (s for s in target.sources if s.id == "synthetic:ct")
    dataset = slices.opened.dataset
    (task,) = TaskSource([slices], SPEC, CPU, 0, {}).tasks(0)
    block = slices.train.draw(slices.train_shape, f"train/0/{slices.id}", 0, 1)
    for row, found in zip(block.query[0], task.query_boxes, strict=True):
        (true,) = dataset.read_boxes(np.array([row]))
        np.testing.assert_allclose(found.xyxy, true.xyxy * 32 / 48)
        assert (block.classes[0][found.labels] == true.labels).all()


def test_validation_tasks_of_one_structure_come_from_images_kept_apart(masked):
    (target,) = masked
    source = TaskSource(target.sources, SPEC, CPU, 0, {"way": 1})
    found = list(source.validation(6))
    assert len(found) == 6
    assert all(t.query_masks.flatten(1).any(1).all() for t in found)


# --- what validation goes by ---------------------------------------------------------------------


def task_with(**truth) -> Task:
    support = Support(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1), 1, (0,), (2, 2))
    return Task(support, torch.zeros(2, 1, 2, 2), torch.zeros(2, 1), **truth)


def test_masks_are_judged_by_the_dice_of_whatever_is_there_or_said_to_be():
    truth = torch.tensor([[[[1, 1], [0, 0]]], [[[0, 0], [0, 0]]]], dtype=torch.bool)
    half = torch.tensor([[[[1.0, -1], [-1, -1]]], [[[-1.0, -1], [-1, -1]]]])
    assert judged(task_with(query_masks=truth), half) == (pytest.approx(2 / 3), 1)
    false = half.clone()
    false[1, 0, 0, 0] = 1.0
    assert judged(task_with(query_masks=truth), false) == (pytest.approx(2 / 3), 2)
    with pytest.raises(NonFinite):
        judged(task_with(query_masks=truth), half / 0)
    with pytest.raises(ContractError, match=r"\(2, 1, 2, 2\) is needed"):
        judged(task_with(query_masks=truth), half[:, 0])


def test_boxes_are_judged_by_average_precision():
    one = Boxes(np.array([[0.0, 0, 2, 2]]), np.zeros(1, np.int64), np.zeros(1, bool))
    right = Detections(one.xyxy, one.labels, np.ones(1))
    none = Detections(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
    asked = task_with(query_boxes=(one, one))
    assert judged(asked, [right, right]) == (pytest.approx(1.0), 1)
    value, count = judged(asked, [right, none])
    assert count == 1
    assert value == pytest.approx(51 / 101)  # COCO reads precision at 101 recalls: half are found
    with pytest.raises(ContractError, match="list of Detections"):
        judged(asked, torch.zeros(2, 1))
