"""Meta-training on striped toy images: it learns, repeats itself, and returns what it promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medbench.api import Algorithm
from medbench_algorithms.common.pretrain import Supervised, source_statistics
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.optimisation.anil import ANIL
from medbench_algorithms.optimisation.maml import MAML

from .conftest import FakeRun, SmallConv, StripesSource

TRAINERS: dict[str, tuple[type[Any], dict[str, Any], int]] = {
    "protonet": (ProtoNet, {"lr": 3e-3}, 40),
    "supervised": (Supervised, {"lr": 3e-3, "batch_size": 32}, 40),
    "maml": (MAML, {"inner_lr": 0.1, "inner_steps": 2, "meta_lr": 3e-3, "meta_batch": 2}, 40),
    "maml-support": (
        MAML,
        {
            "inner_lr": 0.1,
            "inner_steps": 2,
            "meta_lr": 3e-3,
            "meta_batch": 2,
            "batch_norm": "support",
            "head": "shared",
            "first_order": True,
        },
        40,
    ),
    "anil": (ANIL, {"inner_lr": 0.1, "inner_steps": 3, "meta_lr": 3e-3, "meta_batch": 2}, 40),
}


def train(name: str, n_steps: int | None = None) -> tuple[dict[str, Any], FakeRun, SmallConv]:
    make, params, default = TRAINERS[name]
    torch.manual_seed(5)
    source = StripesSource()
    run = FakeRun(source, default if n_steps is None else n_steps)
    backbone = SmallConv()
    return make(**params).meta_train(backbone, source, run), run, backbone


@pytest.mark.parametrize("name", TRAINERS)
def test_training_rises_well_above_chance(name: str) -> None:
    learned, run, _ = train(name)
    assert run.accuracies[-1] > 0.65  # chance is a third
    assert sum(run.losses[-8:]) < 0.9 * sum(run.losses[:8])
    assert len(run.losses) == run.n_steps
    assert all(key.startswith(("backbone.", "head.", "mean", "base_")) for key in learned)


@pytest.mark.parametrize("name", TRAINERS)
def test_training_twice_gives_the_same(name: str) -> None:
    first, run, _ = train(name, 3)
    again, rerun, _ = train(name, 3)
    assert run.losses == rerun.losses
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_images_a_step_are_counted() -> None:
    assert train("protonet", 1)[1].images_per_step == 18
    assert train("maml", 1)[1].images_per_step == 36
    assert train("supervised", 1)[1].images_per_step == 32


def test_learning_rate_of_protonet_halves_as_a_function_of_the_step() -> None:
    source = StripesSource()

    class Watching(FakeRun):
        rates: list[float]

        def log(self, loss: float) -> None:
            super().log(loss)
            self.rates.append(self.state["optimiser"].param_groups[0]["lr"])

    run = Watching(source, 5)
    run.rates = []
    ProtoNet(lr=0.8, lr_halve_every=2).meta_train(SmallConv(), source, run)
    assert run.rates == [0.8, 0.8, 0.4, 0.4, 0.2]


def test_supervised_returns_the_source_statistics_of_the_trained_network() -> None:
    learned, _, backbone = train("supervised", 4)
    assert not any(key.startswith("classifier") for key in learned)
    backbone.eval()
    with torch.no_grad():
        pairs = [(backbone(images), labels) for images, labels in StripesSource().sweep()]
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    torch.testing.assert_close(learned["mean"], features.mean(0))
    assert learned["base_covariances"].shape == (8, features.shape[1], features.shape[1])
    for c in range(8):
        own = features[labels == c]
        torch.testing.assert_close(learned["base_means"][c], own.mean(0))
        torch.testing.assert_close(
            learned["base_covariances"][c], own.double().mT.cov().float(), rtol=1e-4, atol=1e-6
        )


def test_supervised_none_leaves_the_backbone_alone() -> None:
    source, backbone = StripesSource(), SmallConv()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    run = FakeRun(source, 5)
    learned = Supervised(pretrain="none").meta_train(backbone, source, run)
    assert learned.keys() == {"mean", "base_means", "base_covariances"}
    assert run.losses == []
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    torch.testing.assert_close(learned, source_statistics(backbone, source))


def test_auto_heads_have_rows_only_where_all_tasks_have_one_number_of_classes() -> None:
    rows = {}
    for ways in ((3,), (2, 3)):
        source = StripesSource()
        source.ways = ways
        for head in ("auto", "per_class", "shared"):
            method = MAML(head=head, inner_steps=1, meta_batch=1)  # type: ignore[arg-type]
            learned = method.meta_train(SmallConv(), source, FakeRun(source, 1))
            rows[ways, head] = len(learned["head.bias"])
    assert rows == {
        ((3,), "auto"): 3,
        ((3,), "per_class"): 3,
        ((3,), "shared"): 1,
        ((2, 3), "auto"): 1,
        ((2, 3), "per_class"): 3,
        ((2, 3), "shared"): 1,
    }


@pytest.mark.parametrize("name", ["maml", "anil"])
def test_the_number_of_test_steps_does_not_change_what_is_learned(name: str) -> None:
    make, params, _ = TRAINERS[name]
    accuracies = []
    for steps in (1, 50):
        torch.manual_seed(5)
        source = StripesSource()
        run = FakeRun(source, 2)
        make(**params, inner_steps_test=steps).meta_train(SmallConv(), source, run)
        accuracies.append(run.accuracies)
    assert accuracies[0] == accuracies[1]


def test_training_leaves_a_network_that_prepare_accepts() -> None:
    learned, _, backbone = train("maml", 1)
    method: Algorithm = MAML()
    method.prepare(backbone.eval(), {k: v for k, v in learned.items() if k.startswith("head")})
    task = StripesSource().task("x")
    assert method.adapt(task.support).predict(task.query).shape == (12, 3)
