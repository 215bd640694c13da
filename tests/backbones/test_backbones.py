"""Backbones: their sizes, their features, and their errors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from medbench.api import Backbone, MedbenchError, Unavailable
from medbench.backbones import inference_copy
from medbench.embed import View, form_of, forward
from medbench_backbones import medbench_backbones, timm_family
from medbench_backbones.conv4 import Conv4
from medbench_backbones.resnet12 import ResNet12
from medbench_backbones.timm_family import create

VIEWS: tuple[View, ...] = ("features", "maps")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def n_parameters(network: Backbone) -> int:
    return sum(p.numel() for p in network.parameters())


def check(network: Backbone, channels: int, size: int) -> None:
    """The promises that every backbone makes."""
    network.eval()
    assert network.input.channels == channels
    assert network.input.size == size
    assert len(network.input.mean) == len(network.input.std) == channels
    images = torch.rand(2, channels, size, size)
    with torch.no_grad():
        features = network(images)
        assert features.shape == (2, network.n_features)
        assert torch.isfinite(features).all()
        fmap = network.feature_map(images)
        assert fmap.ndim == 4
        assert len(fmap) == 2
        torch.testing.assert_close(network(images[:1]), features[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "size", "n_features", "parameters"),
    # (9 c + 1) w + 2 w for the first block, and three times (9 w + 1) w + 2 w.
    [(1, 28, 64, 111_936), (3, 84, 1600, 113_088), (3, 16, 64, 113_088), (1, 64, 1024, 111_936)],
)
def test_conv4_is_the_fields(channels: int, size: int, n_features: int, parameters: int) -> None:
    network = Conv4(image_size=size, channels=channels)
    assert network.n_features == n_features
    assert n_parameters(network) == parameters
    assert network.input.mean == (0.0,) * channels
    assert network.input.std == (1.0,) * channels
    assert network.origin == "random"
    check(network, channels, size)


def test_conv4_features_are_the_flattened_map() -> None:
    network = Conv4(image_size=84, channels=3, width=8).eval()
    images = torch.rand(2, 3, 84, 84)
    assert network.feature_map(images).shape == (2, 8, 5, 5)
    assert torch.equal(network.feature_map(images).flatten(1), network(images))


@pytest.mark.parametrize(("channels", "parameters"), [(1, 12_423_040), (3, 12_424_320)])
def test_resnet12_is_metaoptnets(channels: int, parameters: int) -> None:
    network = ResNet12(image_size=28, channels=channels)
    assert n_parameters(network) == parameters
    assert network.n_features == 640
    check(network, channels, 28)


def test_resnet12_features_are_the_mean_of_the_map() -> None:
    network = ResNet12(image_size=84, channels=3, width_factor=0.1).eval()
    images = torch.rand(2, 3, 84, 84)
    fmap = network.feature_map(images)
    assert fmap.shape == (2, 64, 5, 5)
    torch.testing.assert_close(fmap.mean((2, 3)), network(images))


def test_resnet12_drops_only_while_training() -> None:
    network = ResNet12(image_size=16, channels=1, width_factor=0.1, drop_rate=0.5)
    images = torch.rand(4, 1, 16, 16)
    assert not torch.equal(network.train()(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize(
    ("make", "n_norms"),
    [
        (lambda: Conv4(image_size=28, channels=3), 4),
        (lambda: Conv4(image_size=28, channels=1, pools=2), 4),
        (lambda: ResNet12(image_size=28, channels=3, width_factor=0.1), 16),
        (lambda: create(argument="resnet18", image_size=32, channels=3), 20),
    ],
)
def test_the_faster_copy_folds_every_batchnorm_and_gives_the_same(
    make: Callable[[], Backbone], n_norms: int
) -> None:
    network = make()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(module.bias)
    found = inference_copy(network.eval())
    assert form_of(found) == f"{n_norms} BatchNorms folded"
    check(found, network.input.channels, network.input.size)
    images = torch.rand(3, network.input.channels, network.input.size, network.input.size)
    with torch.no_grad():
        for view in VIEWS:
            plain, folded = forward(network, images, view), forward(found, images, view)
            torch.testing.assert_close(
                folded, plain, rtol=0.0, atol=1e-5 * float(plain.abs().max())
            )


@pytest.mark.parametrize("make", [Conv4, ResNet12])
def test_images_too_small_for_four_poolings_are_refused(make: type[Any]) -> None:
    with pytest.raises(MedbenchError, match="16 pixels or more a side; got 15"):
        make(image_size=15, channels=1)


@pytest.mark.parametrize("make", [Conv4, ResNet12])
def test_weights_come_from_the_global_seed_alone(make: type[Any]) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(make(image_size=16, channels=1).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("make", [Conv4, ResNet12])
def test_networks_without_pretrained_weights_say_so(make: type[Any]) -> None:
    with pytest.raises(MedbenchError, match="without pretrained weights"):
        make(image_size=28, channels=1, pretrained=True)


def test_specs_name_the_parameters_that_the_factories_take() -> None:
    fixed = {"image_size", "channels", "pretrained", "argument", "inner"}
    for spec in medbench_backbones():
        module, _, name = spec.factory.partition(":")
        signature = inspect.signature(getattr(importlib.import_module(module), name))
        taken = {n: p.default for n, p in signature.parameters.items() if n not in fixed}
        assert {p.name: p.default for p in spec.parameters} == taken
        argument = "inner" if spec.wraps else "argument"
        assert bool(spec.takes_argument) == (argument in signature.parameters)


# --- timm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "channels", "asked", "size", "map_shape"),
    [
        ("test_resnet", 1, 28, 28, (96, 1, 1)),
        ("test_resnet.r160_in1k", 3, 64, 64, (96, 2, 2)),
        ("test_vit", 3, 32, 32, (64, 2, 2)),
        ("test_vit", 1, 28, 160, (64, 10, 10)),  # 28 is no multiple of its patches
        ("test_efficientnet", 3, 32, 32, (256, 1, 1)),
        ("test_convnext", 3, 28, 160, (64, 5, 5)),  # 28 is too small for its strides
    ],
)
def test_timm_models_of_many_kinds(
    model: str, channels: int, asked: int, size: int, map_shape: tuple[int, ...]
) -> None:
    network = create(argument=model, image_size=asked, channels=channels)
    check(network, channels, size)
    images = torch.rand(1, channels, size, size)
    assert network.feature_map(images).shape[1:] == map_shape
    assert network.origin == "random"


def test_channels_last_maps_are_turned() -> None:
    network = create(argument="swin_tiny_patch4_window7_224", image_size=56, channels=3)
    assert network.feature_map(torch.rand(1, 3, 56, 56)).shape == (1, 768, 2, 2)


def test_normalisation_is_the_models_own_and_averaged_for_one_channel() -> None:
    colour = create(argument="resnet10t", image_size=32, channels=3)
    grey = create(argument="resnet10t", image_size=32, channels=1)
    assert colour.input.mean == (0.485, 0.456, 0.406)
    assert colour.input.std == (0.229, 0.224, 0.225)
    assert colour.input.interpolation == "bicubic"
    assert grey.input.mean == pytest.approx((0.449,))
    assert grey.input.std == pytest.approx((0.226,))


def test_the_users_size_wins_over_the_protocols() -> None:
    network = create(argument="test_resnet", image_size=28, channels=3, input_size=48)
    assert network.input.size == 48


def test_unknown_models_get_near_matches() -> None:
    with pytest.raises(MedbenchError, match=r"no model 'resnet1O'.*'resnet18'"):
        create(argument="resnet1O", image_size=28, channels=3)


def test_unknown_tags_get_near_matches() -> None:
    with pytest.raises(MedbenchError, match=r"no weights 'a1' for 'resnet18'.*'a1_in1k'"):
        create(argument="resnet18.a1", image_size=28, channels=3)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("test_vit", 30, r"images of 30 pixels: 30 is no multiple.*size is 160.*multiples of 16"),
        ("test_convnext", 2, r"images of 2 pixels.*own size is 160.*set input_size"),
    ],
)
def test_refused_sizes_are_named_with_those_taken(model: str, size: int, message: str) -> None:
    with pytest.raises(MedbenchError, match=message):
        create(argument=model, image_size=28, channels=3, input_size=size)


def test_pretrained_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm_family.timm, "create_model", unreachable)
    with pytest.raises(Unavailable, match=r"test_resnet could not be fetched.*weights file"):
        create(argument="test_resnet", image_size=28, channels=3, pretrained=True)


def test_pretrained_models_keep_their_size_and_say_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = timm_family.timm.create_model
    monkeypatch.setattr(
        timm_family.timm, "create_model", lambda *a, **k: build(*a, **{**k, "pretrained": False})
    )
    network = create(argument="test_resnet", image_size=28, channels=3, pretrained=True)
    assert network.input.size == 160
    assert network.origin == "timm test_resnet.r160_in1k"


def test_models_without_pretrained_weights_say_so() -> None:
    bare = next(
        name
        for name in timm_family.timm.list_models("resnet*")
        if not timm_family.get_pretrained_cfg(name).has_weights
    )
    with pytest.raises(MedbenchError, match=f"timm:{bare} has no pretrained weights"):
        create(argument=bare, image_size=28, channels=3, pretrained=True)
