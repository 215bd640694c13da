"""What holds for every method on features, whatever it computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from medbench.api import Algorithm
from medbench_algorithms.fine_tuning.baseline import Baseline
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe
from medbench_algorithms.metric.nearest_neighbour import NearestNeighbour
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.metric.simpleshot import SimpleShot

from .conftest import SmallConv, feature_episodes, one_of

METHODS: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "protonet": (ProtoNet, {}),
    "protonet-cosine": (ProtoNet, {"distance": "cosine", "temperature": 0.1}),
    "simpleshot-none": (SimpleShot, {"normalize": "none"}),
    "simpleshot-l2": (SimpleShot, {"normalize": "l2"}),
    "simpleshot-cl2": (SimpleShot, {"normalize": "cl2"}),
    "1-nn": (NearestNeighbour, {}),
    "1-nn-cosine": (NearestNeighbour, {"metric": "cosine"}),
    "3-nn": (NearestNeighbour, {"k": 3}),
    "99-nn": (NearestNeighbour, {"k": 99}),
    "linear-probe": (LinearProbe, {}),
    "linear-probe-l2": (LinearProbe, {"normalize": "l2", "C": 10.0}),
    "baseline": (Baseline, {"head_epochs": 20}),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Algorithm:
    make, params = METHODS[request.param]
    algorithm = make(**params)
    backbone = SmallConv()
    learned = {"mean": torch.linspace(-1, 1, 7)}
    algorithm.prepare(backbone.eval(), learned)
    return algorithm


def test_a_batch_of_episodes_equals_one_by_one(method: Algorithm) -> None:
    support, query = feature_episodes()
    together = method.adapt(support)
    scores = together.predict(query)
    assert scores.shape == (6, 9, 4)
    for i in range(6):
        alone = method.adapt(one_of(support, i))
        torch.testing.assert_close(alone.predict(query[i]), scores[i], rtol=1e-5, atol=1e-5)
        assert alone.n_adapted == together.n_adapted


def test_two_leading_dimensions_are_a_batch_too(method: Algorithm) -> None:
    support, query = feature_episodes()
    scores = method.adapt(support).predict(query)
    folded = replace(
        support,
        inputs=support.inputs.unflatten(0, (2, 3)),
        labels=support.labels.unflatten(0, (2, 3)),
    )
    again = method.adapt(folded).predict(query.unflatten(0, (2, 3)))
    torch.testing.assert_close(again.flatten(0, 1), scores, rtol=1e-5, atol=1e-5)


def test_each_query_alone_gets_the_scores_it_gets_in_company(method: Algorithm) -> None:
    support, query = feature_episodes()
    predictor = method.adapt(one_of(support, 0))
    together = predictor.predict(query[0])
    alone = torch.cat([predictor.predict(q.unsqueeze(0)) for q in query[0]])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_predicting_and_adapting_twice_gives_the_same(method: Algorithm) -> None:
    support, query = feature_episodes()
    predictor = method.adapt(support)
    first = predictor.predict(query)
    torch.rand(3)  # torch's global state must not matter
    assert torch.equal(predictor.predict(query), first)
    assert torch.equal(method.adapt(support).predict(query), first)


def test_adapting_changes_neither_support_nor_the_global_random_state(method: Algorithm) -> None:
    support, query = feature_episodes()
    inputs, labels = support.inputs.clone(), support.labels.clone()
    state = torch.get_rng_state()
    asked = query.clone()
    method.adapt(support).predict(query)
    assert torch.equal(support.inputs, inputs)
    assert torch.equal(support.labels, labels)
    assert torch.equal(query, asked)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "baseline"])
def test_permuting_labels_permutes_scores(name: str) -> None:
    # Baseline starts from random rows, one a class: there the draw would have to be permuted too.
    make, params = METHODS[name]
    method = make(**params)
    method.prepare(SmallConv(), {"mean": torch.linspace(-1, 1, 7)})
    support, query = feature_episodes()
    renamed = torch.tensor([2, 0, 3, 1])
    scores = method.adapt(support).predict(query)
    permuted = method.adapt(replace(support, labels=renamed[support.labels])).predict(query)
    torch.testing.assert_close(permuted[..., renamed], scores, rtol=1e-5, atol=1e-5)


def test_permuting_the_support_set_changes_nothing() -> None:
    support, query = feature_episodes()
    order = torch.randperm(support.labels.shape[-1])
    for name, (make, params) in METHODS.items():
        if name == "baseline":  # its batches are drawn by position
            continue
        method = make(**params)
        method.prepare(SmallConv(), {"mean": torch.linspace(-1, 1, 7)})
        shuffled = replace(
            support, inputs=support.inputs[:, order], labels=support.labels[:, order]
        )
        torch.testing.assert_close(
            method.adapt(shuffled).predict(query),
            method.adapt(support).predict(query),
            rtol=1e-5,
            atol=1e-5,
        )


def test_half_precision_of_inputs_is_kept_in_the_scores(method: Algorithm) -> None:
    support, query = feature_episodes()
    wide = replace(support, inputs=support.inputs.double())
    assert method.adapt(wide).predict(query.double()).dtype == torch.float64


def test_methods_work_in_inference_mode(method: Algorithm) -> None:
    support, query = feature_episodes()
    expected = method.adapt(support).predict(query)
    with torch.inference_mode():
        inside = replace(support, inputs=support.inputs.clone(), labels=support.labels.clone())
        assert torch.equal(method.adapt(inside).predict(query.clone()), expected)


def test_instances_hold_nothing_of_an_episode(method: Algorithm) -> None:
    support, query = feature_episodes()
    before = copy.deepcopy(vars(method))
    method.adapt(support).predict(query)
    assert vars(method).keys() == before.keys()
