"""Wrappers that join aligned modalities: against single networks, and formulas in numpy."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from medbench.api import Backbone, InputSpec, MedbenchError
from medbench.backbones import build_backbone, inference_copy
from medbench.config import BackboneRef
from medbench.embed import Folded, to_input
from medbench.errors import ContractError, DataError
from medbench.modalities import Images
from medbench.plugins import load_factory, registry
from medbench_backbones.fusion import Gated, Late

CPU = torch.device("cpu")
NAN = math.nan


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(
    name: str,
    n: int = 2,
    channels: int = 1,
    size: int = 16,
    weights: str = "random",
    **params: Any,
) -> Backbone:
    ref = BackboneRef(name=name, params=params, weights=weights)
    names = tuple(f"m{k}" for k in range(n)) if n > 1 else ()
    return build_backbone(
        registry(), ref, image_size=size, channels=channels, seed=0, modalities=names
    )


def lively(network: Backbone) -> Backbone:
    """With statistics of BatchNorm that are not all 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.rand(module.num_features) - 0.5
            module.running_var = torch.rand(module.num_features) + 0.5
    return network


def features(network: nn.Module, images: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        found: NDArray[np.float64] = network(images).double().numpy()
    return found


# --- late fusion ---------------------------------------------------------------------------------


def test_late_fusion_is_the_mean_of_the_features_of_two_networks() -> None:
    late = lively(build("late:conv4", width=4))
    images = torch.rand(5, 2, 16, 16)
    alone = [build("conv4", n=1, width=4) for _ in range(2)]
    for k, network in enumerate(alone):
        state = {
            name.removeprefix(f"networks.{k}."): value
            for name, value in late.state_dict().items()
            if name.startswith(f"networks.{k}.")
        }
        network.load_state_dict(state)
    by_hand = (features(alone[0], images[:, :1]) + features(alone[1], images[:, 1:])) / 2
    np.testing.assert_allclose(features(late, images), by_hand, atol=1e-6)
    side_by_side = build("late:conv4", width=4, fusion="concat")
    side_by_side.load_state_dict(late.state_dict())
    np.testing.assert_allclose(
        features(side_by_side, images),
        np.concatenate(
            [features(alone[0], images[:, :1]), features(alone[1], images[:, 1:])], axis=1
        ),
        atol=1e-6,
    )
    assert side_by_side.n_features == 2 * late.n_features


def test_networks_of_modalities_start_apart_and_the_first_as_it_would_alone() -> None:
    late = build("late:conv4", width=4)
    first, second = late.get_submodule("networks.0"), late.get_submodule("networks.1")
    plain = build("conv4", n=1, width=4).state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in first.state_dict().items())
    weights = (first.get_parameter("blocks.0.0.weight"), second.get_parameter("blocks.0.0.weight"))
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", ["late:conv4", "gated:conv4"])
def test_a_missing_modality_changes_the_images_that_lack_it_and_no_others(name: str) -> None:
    network = lively(build(name, width=4))
    images = torch.rand(6, 2, 16, 16)
    whole = features(network, images)
    some = images.clone()
    some[[1, 4], 1] = NAN
    some[3, 0] = NAN
    found = features(network, some)
    kept = [0, 2, 5]
    np.testing.assert_allclose(found[kept], whole[kept], atol=1e-6)
    assert np.abs(found[[1, 3, 4]] - whole[[1, 3, 4]]).min(axis=1).max() > 1e-3
    first, second = network.get_submodule("networks.0"), network.get_submodule("networks.1")
    if isinstance(network, Late):
        np.testing.assert_allclose(found[[1, 4]], features(first, images[[1, 4], :1]), atol=1e-6)
        np.testing.assert_allclose(found[[3]], features(second, images[[3], 1:]), atol=1e-6)
    # All of a batch may lack the same one.
    some[:, 1] = NAN
    some[3, 0] = images[3, 0]
    alone = features(network, some)
    np.testing.assert_allclose(alone[[1, 4]], found[[1, 4]], atol=1e-6)


def test_side_by_side_a_missing_modality_is_zeros() -> None:
    network = build("late:conv4", width=4, fusion="concat")
    images = torch.rand(3, 2, 16, 16)
    whole = features(network, images)
    images[1, 0] = NAN
    found, d = features(network, images), network.n_features // 2
    assert not found[1, :d].any()
    np.testing.assert_allclose(found[1, d:], whole[1, d:], atol=1e-6)


def test_images_that_lack_a_modality_move_no_statistics_of_its_network() -> None:
    late = build("late:conv4", width=4).train()
    alone = copy.deepcopy(late.get_submodule("networks.1"))
    images = torch.rand(8, 2, 16, 16)
    images[5:, 1] = NAN
    late(images).sum().backward()
    alone(images[:5, 1:])
    own = late.get_submodule("networks.1").state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(own[name], value)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in late.parameters())


def test_maps_are_fused_as_features_are() -> None:
    late = build("late:conv4", width=4, pools=2)
    images = torch.rand(3, 2, 16, 16)
    images[2, 0] = NAN
    first, second = late.networks[0], late.networks[1]  # type: ignore[index, union-attr]
    with torch.no_grad():
        found = late.feature_map(images)
        assert found.shape == (3, 4, 4, 4)
        one, two = first.feature_map(images[:2, :1]), second.feature_map(images[:, 1:])
    torch.testing.assert_close(found[:2], (one + two[:2]) / 2)
    torch.testing.assert_close(found[2], two[2])


# --- gates ---------------------------------------------------------------------------------------


def unit(network: Gated, found: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Arevalo et al. 2017, the bimodal case: h = z * tanh(V1 x1) + (1 - z) * tanh(V2 x2)."""
    first, second = (v.weight.detach().double().numpy() for v in network.values)  # type: ignore[union-attr, operator]
    gate = network.gates.weight.detach().double().numpy()
    z = 1 / (1 + np.exp(-np.concatenate(found, axis=1) @ gate.T))
    mixed: NDArray[np.float64] = z * np.tanh(found[0] @ first.T) + (1 - z) * np.tanh(
        found[1] @ second.T
    )
    return mixed


@pytest.mark.parametrize("hidden", [None, 7])
def test_gates_are_the_papers_unit(hidden: int | None) -> None:
    network = lively(build("gated:conv4", width=4, hidden=hidden))
    assert isinstance(network, Gated)
    assert network.n_features == (hidden or 4)
    images = torch.rand(5, 2, 16, 16)
    parts = [features(n, images[:, k : k + 1]) for k, n in enumerate(network.networks)]
    np.testing.assert_allclose(features(network, images), unit(network, parts), atol=1e-6)
    with torch.no_grad():
        # Maps of one place are features.
        torch.testing.assert_close(network.feature_map(images).flatten(1), network(images))
    # Of one modality there is nothing to weigh.
    images[:, 1] = NAN
    value = network.values[0].weight.detach().double().numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(features(network, images), np.tanh(parts[0] @ value.T), atol=1e-6)


def test_gates_of_three_modalities_are_a_softmax_over_those_present() -> None:
    network = lively(build("gated:conv4", n=3, width=4))
    assert isinstance(network, Gated)
    images = torch.rand(4, 3, 16, 16)
    lacks = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
    parts = [features(n, images[:, k : k + 1]) for k, n in enumerate(network.networks)]
    images[torch.from_numpy(lacks)] = NAN
    for k, part in enumerate(parts):
        part[lacks[:, k]] = 0
    gates = network.gates.weight.detach().double().numpy()
    logits = np.concatenate([np.concatenate(parts, axis=1) @ gates.T, np.zeros((4, 4))], axis=1)
    shares = np.exp(logits.reshape(4, 3, 4)) * ~lacks[:, :, None]
    shares /= shares.sum(axis=1, keepdims=True)
    values = [
        np.tanh(part @ v.weight.detach().double().numpy().T)  # type: ignore[union-attr, operator]
        for part, v in zip(parts, network.values, strict=True)
    ]
    wanted = sum(shares[:, k] * values[k] for k in range(3))
    np.testing.assert_allclose(features(network, images), wanted, atol=1e-6)


def test_gates_of_a_flattened_map_are_those_of_its_places() -> None:
    network = lively(build("gated:conv4", width=4, pools=2))
    images = torch.rand(3, 2, 16, 16)
    images[1, 0] = NAN
    with torch.no_grad():
        found = network.feature_map(images)
        assert found.shape == (3, 4, 4, 4)
        torch.testing.assert_close(found.flatten(1), network(images))


def test_gates_that_do_not_fit_maps_say_so() -> None:
    network = build("gated:conv4", width=4, pools=2, hidden=7)
    with pytest.raises(MedbenchError, match=r"64 features and maps of \(4, 4, 4\).*late:BACKBONE"):
        network.feature_map(torch.rand(2, 2, 16, 16))


def test_an_image_without_any_modality_is_refused() -> None:
    with pytest.raises(MedbenchError, match="has any modality"):
        build("late:conv4", width=4)(torch.full((2, 2, 16, 16), NAN))


# --- stacking ------------------------------------------------------------------------------------


def test_stacked_channels_are_the_plain_network_on_them() -> None:
    stacked, images = build("stacked:conv4", width=4), torch.rand(3, 2, 16, 16)
    plain = build("conv4", width=4)
    assert plain.get_parameter("blocks.0.0.weight").shape == (4, 2, 3, 3)
    np.testing.assert_array_equal(features(stacked, images), features(plain, images))
    with torch.no_grad():
        assert torch.equal(stacked.feature_map(images), plain.feature_map(images))
    assert plain.input.modalities == stacked.input.modalities == ("m0", "m1")


def test_wrappers_of_one_modality_are_the_network_alone() -> None:
    images = torch.rand(3, 1, 16, 16)
    plain = features(build("conv4", n=1, width=4), images)
    for name in ("stacked:conv4", "late:conv4"):
        np.testing.assert_array_equal(features(build(name, n=1, width=4), images), plain)
    gated = build("gated:conv4", n=1, width=4)
    value = gated.get_parameter("values.0.weight").detach().double().numpy()
    np.testing.assert_allclose(features(gated, images), np.tanh(plain @ value.T), atol=1e-6)


# --- what reaches them ---------------------------------------------------------------------------


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_each_modality_is_made_grey_or_coloured_by_itself() -> None:
    images = pixels(2, 8, 8, 4)
    for each in (1, 3):
        one = InputSpec(6, each, (0.25,) * each, (0.5,) * each)
        both = InputSpec(6, 2 * each, (0.25,) * 2 * each, (0.5,) * 2 * each, modalities=("a", "b"))
        found = to_input(Images(images, (1, 3)), both, CPU)
        wanted = [to_input(images[..., :1], one, CPU), to_input(images[..., 1:], one, CPU)]
        torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_a_missing_modality_has_one_value_everywhere() -> None:
    images, lacks = pixels(3, 8, 8, 2), np.array([[0, 0], [0, 1], [1, 0]], bool)
    wants = InputSpec(8, 2, (0.25, 0.5), (0.5, 0.5), modalities=("a", "b"))
    whole = to_input(Images(images, (1, 1)), wants, CPU)
    for value in (0.0, 1.0, NAN):
        spec = InputSpec(8, 2, (0.25, 0.5), (0.5, 0.5), modalities=("a", "b"), missing=value)
        found = to_input(Images(images, (1, 1), lacks), spec, CPU)
        gone = torch.from_numpy(lacks)
        assert torch.equal(found[~gone], whole[~gone])
        for at, mean in (((1, 1), 0.5), ((2, 0), 0.25)):
            np.testing.assert_allclose(found[at], (value - mean) / 0.5)
    assert build("conv4", width=4).input.missing == 0.0
    assert build("stacked:conv4", width=4, fill=0.5).input.missing == 0.5
    assert math.isnan(build("late:conv4", width=4).input.missing)


def test_images_of_another_number_of_modalities_are_refused() -> None:
    wants = build("late:conv4", width=4).input
    with pytest.raises(ContractError, match="of 1 modalities were given to a network built for 2"):
        to_input(pixels(2, 16, 16, 2), wants, CPU)


def test_modalities_are_normalised_as_the_network_normalises_one() -> None:
    one = build("timm:resnet10t", n=1, channels=3, size=32)
    assert len(set(one.input.mean)) == 3
    for name in ("timm:resnet10t", "stacked:timm:resnet10t", "late:timm:resnet10t"):
        network = build(name, channels=3, size=32)
        assert network.input.mean == one.input.mean * 2
        assert network.input.std == one.input.std * 2
        assert network(torch.rand(2, 6, 32, 32)).shape == (2, network.n_features)


def test_a_weights_file_fills_the_network_of_every_modality(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    given = {k: torch.rand(v.shape) if v.is_floating_point() else v
             for k, v in build("conv4", n=1, width=4).state_dict().items()}  # fmt: skip
    save_file(given, path)
    late = build("late:conv4", width=4, weights=str(path))
    for k in range(2):
        own = late.get_submodule(f"networks.{k}").state_dict()
        assert all(torch.equal(own[name], value) for name, value in given.items())
    with pytest.raises(DataError, match=r"\(4, 1, 3, 3\), and \(4, 2, 3, 3\) is needed"):
        build("stacked:conv4", width=4, weights=str(path))


@pytest.mark.parametrize("name", ["slices:late:conv4", "late:slices:conv4", "gated:conv4-3d"])
def test_volumes_of_several_modalities_are_fused(name: str) -> None:
    network = build(name, width=4)
    images = pixels(3, 12, 12, 12, 2)
    lacks = np.array([[0, 0], [0, 1], [1, 0]], bool)
    found = to_input(Images(images, (1, 1), lacks), network.input, CPU)
    assert found.shape == (3, 2, 16, 16, 16)
    with torch.no_grad():
        out = network(found)
        assert out.isfinite().all()
        whole = to_input(Images(images, (1, 1)), network.input, CPU)
        torch.testing.assert_close(network(whole)[0], out[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(whole)[1:], out[1:], rtol=1e-2)


@pytest.mark.parametrize("name", ["late:conv4", "gated:conv4", "stacked:conv4"])
def test_networks_inside_wrappers_are_folded(name: str) -> None:
    network = lively(build(name, width=4))
    fast = inference_copy(network)
    assert isinstance(fast, Folded)
    assert fast.n_folded == (4 if name.startswith("stacked") else 8)
    images = torch.rand(4, 2, 16, 16)
    if not name.startswith("stacked"):
        images[1, 0] = NAN
    np.testing.assert_allclose(features(fast, images), features(network, images), atol=1e-5)


class ThreeChannels(Backbone):
    """Wants colour, whatever it is asked for."""

    def __init__(self, *, image_size: int, **rest: Any) -> None:
        super().__init__()
        assert "channels" in rest
        self.n_features = 3
        self.input = InputSpec(image_size, 3, (0.0,) * 3, (1.0,) * 3)

    def feature_map(self, images: Tensor) -> Tensor:
        return images

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_a_network_of_fixed_channels_is_stacked_by_no_means_and_fused_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = registry().get("backbones", "conv4")
    monkeypatch.setattr(
        "medbench.backbones.load_factory",
        lambda entry: ThreeChannels if entry is wanted else load_factory(entry),
    )
    with pytest.raises(ContractError, match=r"wants 3 channels, and 2 modalities.*late:conv4"):
        build("conv4")
    late = build("late:conv4")
    assert late.input.channels == 6
    assert to_input(Images(pixels(2, 16, 16, 2), (1, 1)), late.input, CPU).shape[1] == 6
