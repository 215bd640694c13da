"""The two lanes are compared, and rounding of features is told apart from a wrong batched form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medbench.backbones import build_backbone
from medbench.bench import Bench
from medbench.config import BackboneRef
from medbench.errors import ContractError
from medbench.lanes import Lanes
from medbench.opened import default_place
from medbench.plugins import load_factory, registry
from medbench.protocols import load_protocol
from medbench.tasks import alone


@pytest.fixture
def lanes(tmp_path):
    found = registry()
    protocol, _ = load_protocol(found, "synthetic-classes")
    target = alone(found, protocol, default_place(), "synthetic:cells", 5)
    reference = BackboneRef(name="conv4", params={"width": 8})
    backbone = build_backbone(found, reference, image_size=28, channels=3, seed=0).eval()
    entry = found.get("algorithms", "nearest-centroid")
    bench = Bench(found, target, backbone, entry, {}, torch.device("cpu"), 0)
    block = target.pool.draw(target.shape, target.episode_key, 0, 6)
    return Lanes(bench, load_factory(entry)(), block, tmp_path)


def test_lanes_of_a_sound_method_agree(lanes):
    _, slow = lanes.cost(3)
    fast = lanes.accuracy(lambda fraction, text: None)
    assert lanes.compare(fast, slow) == {"lanes_agree": 1.0}


def test_a_difference_that_the_features_make_is_told_and_is_no_fault(lanes):
    _, slow = lanes.cost(3)
    other = np.roll(slow, 1, axis=-1)  # as though the accuracy lane had seen other features
    found = lanes.compare(other, slow)
    assert found["lanes_agree"] < 0.98
    assert found["lanes_agree_on_same_features"] == 1.0


def test_a_batched_form_that_differs_on_the_same_features_is_a_fault(lanes):
    _, slow = lanes.cost(3)
    wrong = np.roll(slow, 1, axis=-1)  # as though the single form were another method
    fast = lanes.accuracy(lambda fraction, text: None)
    with pytest.raises(ContractError, match="batched form differs from its single form"):
        lanes.compare(fast, wrong)


def test_right_answers_are_counted_by_patient_and_else_by_image(lanes):
    found = lanes.accuracy(lambda fraction, text: None)
    dataset, block = lanes._bench.target.opened.dataset, lanes._block
    right = found.argmax(-1) == block.query_labels
    # Whatever identities are, records hold their places among them.
    places = np.unique(dataset.patients, return_inverse=True)[1]
    dataset.patients = 1_000_003 * dataset.patients
    for kind, groups in (("patient", places[block.query]), ("image", block.query)):
        told, counts = lanes.by_group(found)
        assert told == kind
        assert counts["group"].tolist() == sorted(set(groups.ravel().tolist()))
        for group, answers, hits in zip(*(counts[k] for k in ("group", "answers", "right")),
                                        strict=True):  # fmt: skip
            assert answers == (groups == group).sum()
            assert hits == right[groups == group].sum()
        dataset.patients = None
