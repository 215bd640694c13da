"""A student network: what it is made like, what it learns from, and how near it comes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from medbench.api import Backbone, Budget, InputSpec, MedbenchError
from medbench.backbones import build_backbone, deploy
from medbench.config import BackboneRef
from medbench.embed import form_of
from medbench.errors import ContractError, UsageError
from medbench.nesting import layers
from medbench.network import Backbone as Network
from medbench.opened import default_place
from medbench.plugins import registry
from medbench.protocols import Protocol
from medbench.source import TaskSource
from medbench.tasks import resolve
from medbench.training import Run
from medbench_backbones.distilled import Distilled

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str, size: int = 28, channels: int = 3, seed: int = 0, **params: Any) -> Backbone:
    ref = BackboneRef(name=name, params=params)
    return build_backbone(registry(), ref, image_size=size, channels=channels, seed=seed)


def settled(network: Backbone, source: TaskSource) -> Backbone:
    """With the statistics that a training would have left."""
    network.train()
    with torch.no_grad():
        for step in range(30):
            network(source.batch(step, 32)[0])
    return network.eval()


@pytest.fixture(scope="module")
def source() -> TaskSource:
    rules = {
        "name": "p", "version": 1, "summary": "s", "setting": "cross_domain", "shots": [1],
        "datasets": ["synthetic:cells", "synthetic:fundus", "synthetic:ct"], "way": 5,
        "train": {"way": 4, "shot": 2, "query": 3},
    }  # fmt: skip
    (target, *_) = resolve(registry(), Protocol.model_validate(rules), default_place()).targets
    return TaskSource(target.sources, InputSpec(28, 3, (0.0,) * 3, (1.0,) * 3), CPU, 0, {})


def taught(network: Backbone, source: TaskSource, images: int) -> Run:
    assert isinstance(network, Distilled)
    budget = Budget(images=images, episodes=1)
    run = Run(budget=budget, seed=0, device=CPU, source=source, validation_episodes=0)
    torch.manual_seed(0)
    network.learn(source, run)
    return run


def gap(found: Tensor, wanted: Tensor) -> float:
    """The mean squared error, relative to the variance: 1 for who always gives the mean."""
    return float((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def test_a_taught_student_gives_the_teachers_features_in_tasks_it_was_not_taught_by(
    source: TaskSource,
) -> None:
    params = {"width": 8, "student_width": 16, "images": 6_400, "batch_size": 32}
    network = build("distilled:conv4", **params)
    network.inner = settled(network.inner, source)
    teacher, untaught = copy.deepcopy(network.inner), copy.deepcopy(network)
    run = taught(network, source, 6_400)
    assert (run.images_seen, run.n_steps) == (6_400, 200)
    student = deploy(network)
    (task,) = source.tasks(10_000)
    unseen = torch.cat([task.support.inputs, task.query])
    with torch.no_grad():
        wanted, maps = teacher(unseen), teacher.feature_map(unseen)
        assert gap(student(unseen), wanted) < 0.9 < gap(deploy(untaught)(unseen), wanted)
        assert gap(student.feature_map(unseen), maps) < 0.9
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(network.inner.state_dict()[name], tensor), "the teacher learned"


def test_what_is_tested_is_the_student_alone() -> None:
    network = build("distilled:resnet12", 32, student_width=8)
    whole = sum(p.numel() for p in network.inner.parameters())
    student = deploy(network)
    assert not any(m is network.inner for m in student.modules())
    # Four blocks of 8 channels, a 1x1 convolution to the 640 of the teacher.
    convolutions = (3 * 9 + 1) * 8 + 3 * (8 * 9 + 1) * 8 + 4 * 2 * 8
    assert sum(p.numel() for p in student.parameters()) == convolutions + (8 + 1) * 640
    assert form_of(student) == f"distilled: {convolutions + 9 * 640} weights for {whole}"


@pytest.mark.parametrize(
    ("name", "size", "map_shape", "has_head"),
    [
        ("distilled:conv4", 28, (64, 1, 1), False),
        ("distilled:conv4", 84, (64, 5, 5), False),
        ("distilled:resnet12", 32, (640, 2, 2), False),
        ("distilled:timm:test_vit", 32, (64, 2, 2), True),
    ],
)
def test_a_student_gives_maps_and_features_of_the_teachers_shape(
    name: str, size: int, map_shape: tuple[int, ...], has_head: bool
) -> None:
    network = build(name, size, student_width=4)
    d = network.n_features
    student = deploy(network)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert student.feature_map(images).shape == (2, *map_shape)
        assert student(images).shape == (2, d)
    assert any(isinstance(m, torch.nn.Linear) for m in student.modules()) == has_head


def test_a_student_may_be_compressed_in_its_turn() -> None:
    both = deploy(build("int8:distilled:conv4"))
    assert "int8: 5 layers" in form_of(both)
    assert "distilled: " in form_of(both)


@pytest.mark.parametrize("name", ["distilled:int8:conv4", "distilled:distilled:conv4"])
def test_a_teacher_that_is_another_network_when_it_is_tested_is_refused(name: str) -> None:
    with pytest.raises(MedbenchError, match="int8:distilled:BACKBONE"):
        build(name)


def test_volumes_are_refused() -> None:
    with pytest.raises(UsageError, match="distilled wraps backbones that take images"):
        layers(registry(), "distilled:conv4-3d", {})


def test_a_network_that_nobody_would_teach_is_a_broken_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medbench_backbones.conv4.Conv4.lesson_images", 10)
    with pytest.raises(ContractError, match="says learns False"):
        build("conv4")


def test_a_lesson_without_a_teacher_is_a_broken_promise(source: TaskSource) -> None:
    class Silent(Network):
        def feature_map(self, images: Tensor) -> Tensor:
            return images

        def forward(self, images: Tensor) -> Tensor:
            return images

    run = Run(budget=Budget(images=1, episodes=1), seed=0, device=CPU, source=source,
              validation_episodes=0)  # fmt: skip
    with pytest.raises(ContractError, match="Silent has lesson_images, and no method learn"):
        Silent().learn(source, run)
