"""A training's budget, validation, checkpoints and what goes wrong in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medbench.api import Budget, InputSpec
from medbench.errors import ContractError, NonFinite, ProtocolError
from medbench.opened import default_place
from medbench.protocols import Protocol
from medbench.source import TaskSource
from medbench.tasks import resolve
from medbench.training import Run

CPU = torch.device("cpu")
SPEC = InputSpec(28, 3, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def sources():
    from medbench.plugins import registry

    rules = {
        "name": "p", "version": 1, "summary": "s", "setting": "cross_domain", "shots": [1],
        "datasets": ["synthetic:cells", "synthetic:fundus", "synthetic:ct"], "way": 5,
        "train": {"way": 4, "shot": 2, "query": 3},
    }  # fmt: skip
    protocol = Protocol.model_validate(rules)
    return resolve(registry(), protocol, default_place()).targets[0].sources


def source(sources, seed=0, **shape) -> TaskSource:
    return TaskSource(sources, SPEC, CPU, seed, shape)


def test_tasks_depend_on_seed_and_step_alone(sources):
    one, two = source(sources), source(sources)
    two.tasks(3)
    (a,), (b,) = one.tasks(7), two.tasks(7)
    assert torch.equal(a.query, b.query)
    assert torch.equal(a.support.inputs, b.support.inputs)
    (other,) = source(sources, seed=1).tasks(7)
    assert not torch.equal(a.query, other.query)
    assert [len(t.query) for t in one.tasks(0, 3)] == [12, 12, 12]


def test_tasks_come_from_every_source_and_labels_fit_images(sources):
    found = source(sources)
    means = {round(float(t.query[:, 0].mean()), 1) for t in found.tasks(0, 30)}
    assert len(means) > 3
    (task,) = found.tasks(0)
    assert task.support.labels.bincount().tolist() == [2] * 4
    assert task.query_labels.bincount().tolist() == [3] * 4


def test_an_algorithm_may_ask_for_other_shapes(sources):
    found = source(sources, way=10, shot=1, query=5)
    (task,) = found.tasks(0)
    assert (task.support.n_way, len(task.support.inputs), len(task.query)) == (10, 10, 50)
    assert found.images_per_task == 60
    (validation,) = found.validation(1)
    assert validation.support.n_way == 10
    with pytest.raises(ProtocolError, match="No source can serve"):
        source(sources, shot=50)


def test_batches_are_reproducible_and_cover_the_label_space(sources):
    found = source(sources)
    images, _ = found.batch(5, 64)
    again, _ = source(sources).batch(5, 64)
    assert torch.equal(images, again)
    assert images.shape == (64, 3, 28, 28)
    seen = torch.cat([found.batch(i, 64)[1] for i in range(30)])
    assert set(seen.tolist()) == set(range(found.n_classes))
    half = found.n_classes // 2
    assert 0.4 < float((seen < half).float().mean()) < 0.6  # datasets weigh alike


def test_a_sweep_sees_every_training_image_once(sources):
    found = source(sources)
    n = sum(len(x) for x, _ in found.sweep(500))
    assert n == sum(len(s.train.images) for s in sources)
    counts = torch.bincount(torch.cat([labels for _, labels in found.sweep(500)]))
    assert counts.tolist() == [
        len(s.train.members(0, i)) for s in sources for i in range(s.train.n_classes)
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("count", torch.zeros(()))


def run_steps(sources, path, *, stop=None, budget=240, validate=True, net=None, log=None):
    """Train a toy; returns the run, the learned state (None when stopped) and the loss curve."""
    torch.manual_seed(0)
    net = net or Net()
    free = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([*net.parameters(), free], lr=0.05)
    run = Run(
        budget=Budget(images=budget, episodes=budget // 20), seed=3, device=CPU,
        source=source(sources), validation_episodes=4, checkpoint=path,
    )  # fmt: skip

    def score(support, query):
        return net.layer(query.mean((2, 3)))

    state = {"net": net, "free": free, "optimiser": optimiser}
    for step in run.steps(state, images_per_step=20, validate=score if validate else None):
        if step == stop:  # as a kill would: the last checkpoint is of the step before
            return run, None
        (task,) = run._source.tasks(step)
        noise = torch.rand(())
        loss = nn.functional.cross_entropy(net.layer(task.query.mean((2, 3))), task.query_labels)
        loss = loss + noise * net.layer.weight.sum() + (free - step).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        net.count += 1
        run.log(float("nan") if log == step else float(loss.detach()))
    return run, run.best()


def test_the_budget_of_images_is_kept(sources):
    run, learned = run_steps(sources, None, budget=250)
    assert run.n_steps == 13  # 13 x 20 is the first that reaches 250
    assert run.images_seen == 260
    assert set(learned) == {"net.layer.weight", "net.layer.bias", "net.count", "free"}
    assert run.curve[-1]["images"] == 260
    assert run.best_accuracy is not None


def test_the_best_validated_state_is_kept(sources):
    run, learned = run_steps(sources, None)
    assert float(learned["net.count"]) == run.best_step
    accuracies = [p["val_accuracy"] for p in run.curve if p["val_accuracy"] is not None]
    assert run.best_accuracy == max(accuracies)
    run, learned = run_steps(sources, None, validate=False)
    assert float(learned["net.count"]) == run.n_steps


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr("medbench.training.CHECKPOINT_EVERY_S", -1.0)


@pytest.mark.parametrize("stop", [1, 3, 10])
@pytest.mark.usefixtures("often")
def test_a_resumed_training_equals_an_undisturbed_one(sources, tmp_path, stop):
    calm, expected = run_steps(sources, None)
    path = tmp_path / "c.safetensors"
    run_steps(sources, path, stop=stop)
    run, learned = run_steps(sources, path)
    assert run.resumed_at == [stop]
    assert [(p["step"], p["loss"], p["val_accuracy"]) for p in run.curve] == [
        (p["step"], p["loss"], p["val_accuracy"]) for p in calm.curve
    ]
    for name, tensor in expected.items():
        assert torch.equal(tensor, learned[name]), name


@pytest.mark.usefixtures("often")
def test_a_checkpoint_of_another_network_is_not_used(sources, tmp_path):
    path = tmp_path / "c.safetensors"
    run_steps(sources, path, stop=3)
    other = Net()
    other.more = nn.Linear(2, 2)
    run, _ = run_steps(sources, path, net=other)
    assert not run.resumed_at
    assert "could not be read" in run.notes[0]


def test_a_loss_that_is_not_finite_names_the_step(sources):
    with pytest.raises(NonFinite, match="training loss is nan at step 4"):
        run_steps(sources, None, log=4)


def test_a_step_without_a_logged_loss_is_an_error(sources):
    run = Run(
        budget=Budget(images=9, episodes=3), seed=0, device=CPU, source=source(sources),
        validation_episodes=1,
    )  # fmt: skip
    with pytest.raises(ContractError, match=r"without run\.log"):
        for _ in run.steps({"net": Net()}, images_per_step=3):
            pass
    with pytest.raises(ContractError, match=r"best\(\) was called before"):
        run.best()
    with pytest.raises(ContractError, match="state 'x' is a int"):
        run._state = {"x": 3}
        run._tensors()


def test_the_image_store_and_the_source_agree(sources):
    found = source(sources)
    (task,) = found.tasks(0)
    assert np.isfinite(task.query.numpy()).all()
    assert task.query.dtype == torch.float32
