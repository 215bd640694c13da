"""Compressed backbones: weights of one byte, channels left out, and what is tested of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from medbench.api import Backbone, InputSpec, MedbenchError, Unavailable
from medbench.backbones import build_backbone, deploy, inference_copy
from medbench.config import BackboneRef
from medbench.embed import form_of, weights_digest
from medbench.errors import ContractError
from medbench.plugins import registry
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_backbones import int8_layers
from medbench_backbones.channels import channels_of, strongest
from medbench_backbones.int8_layers import Int8Layer, compressed

Doubles = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name: str, size: int = 28, channels: int = 1, seed: int = 0, **params: Any) -> Backbone:
    ref = BackboneRef(name=name, params=params)
    return build_backbone(registry(), ref, image_size=size, channels=channels, seed=seed)


def unsettled(network: Backbone) -> Backbone:
    """With BatchNorms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                assert isinstance(tensor, Tensor)
                tensor.uniform_(low, high, generator=generator)
    return network


def distance(found: Tensor, wanted: Tensor) -> float:
    """The root mean square error, relative to the features'."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def file_bytes(network: nn.Module, folder: Path) -> int:
    """What a safetensors file of the network takes, its header apart."""
    path = folder / "network.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def bytes_of(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


# --- int8, layer by layer, against numpy ---------------------------------------------------------


def by_hand_weight(weight: Doubles) -> tuple[Doubles, Doubles]:
    rows = weight.reshape(len(weight), -1)
    step = np.abs(rows).max(1) / 127
    return np.rint(rows / step[:, None]).reshape(weight.shape), step


def by_hand_levels(x: Doubles) -> tuple[Doubles, float, float]:
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 127
    zero = np.rint(-low / step)
    return np.clip(np.rint(x / step + zero), 0, 127), step, zero


def by_hand_convolution(
    image: Doubles, weight: Doubles, bias: Doubles, stride: int, padding: int
) -> Doubles:
    """``(o, h, w)`` of ``(i, h, w)``, with every sum in whole numbers."""
    levels, step, zero = by_hand_levels(image)
    whole, steps = by_hand_weight(weight)
    kernel = weight.shape[-1]
    padded = np.pad(levels - zero, ((0, 0), (padding, padding), (padding, padding)))
    side = (padded.shape[1] - kernel) // stride + 1
    out = np.empty((len(weight), side, side))
    for row in range(side):
        for column in range(side):
            y, x = row * stride, column * stride
            window = padded[:, y : y + kernel, x : x + kernel]
            out[:, row, column] = (whole * window).sum((1, 2, 3))
    return out * step * steps[:, None, None] + bias[:, None, None]


@pytest.fixture(params=["whole numbers", "floats"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As this machine multiplies, and as one does that has no kernel for whole numbers."""
    if request.param == "floats":
        monkeypatch.setattr(int8_layers, "_convolves", lambda n_dims: False)
        monkeypatch.setattr(int8_layers, "_multiplies", lambda: False)
    elif not (int8_layers._convolves(2) and int8_layers._multiplies()):
        pytest.skip("this machine multiplies no whole numbers")
    return str(request.param)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0), (2, 2)])
def test_a_convolution_in_int8_is_what_numpy_makes_of_whole_numbers(
    kernels: str, signed: bool, stride: int, padding: int
) -> None:
    layer = nn.Conv2d(6, 8, 3, stride=stride, padding=padding)
    images = torch.rand(3, 6, 9, 9) * torch.tensor([1.0, 5.0, 0.01]).view(3, 1, 1, 1)
    if signed:
        images[:2] -= 0.4  # the third stays without negative values
    small = compressed(layer, activations=True)
    assert small is not None
    assert small.whole_numbers == (kernels == "whole numbers")
    with torch.no_grad():
        found = small(images).numpy()
    arguments = (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
    for image, features in zip(images.double().numpy(), found, strict=True):
        wanted = by_hand_convolution(image, *arguments, stride, padding)
        np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_a_linear_layer_in_int8_is_what_numpy_makes_of_whole_numbers(kernels: str) -> None:
    layer = nn.Linear(40, 8)
    tokens = torch.randn(2, 5, 40) * torch.rand(2, 5, 1)
    small = compressed(layer, activations=True)
    assert small is not None
    with torch.no_grad():
        found = small(tokens).flatten(0, 1).numpy()
    whole, steps = by_hand_weight(layer.weight.detach().double().numpy())
    for row, features in zip(tokens.double().numpy().reshape(10, 40), found, strict=True):
        levels, step, zero = by_hand_levels(row)
        wanted = whole @ (levels - zero) * step * steps + layer.bias.detach().double().numpy()
        np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-5)


def test_weights_are_off_by_half_a_step_at_most_and_zero_is_zero() -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight[2] = 0
    whole, step = int8_layers.quantised_weight(weight)
    assert whole.dtype == torch.int8
    assert whole.flatten(1).abs().amax(1).tolist() == [127, 127, 0, 127, 127]
    wide = step.view(-1, 1, 1, 1)
    assert ((whole * wide - weight).abs() <= wide / 2 * 1.0001).all()
    assert torch.equal(whole[2], torch.zeros(4, 3, 3, dtype=torch.int8))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(16, 16, 5, padding=2, groups=16),
        nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.Conv2d(300, 8, (1, 5), padding=(0, 2)),  # sums beyond 2^24
        nn.Conv3d(4, 8, 3, stride=(1, 2, 2), padding=1),
        nn.Linear(700, 9, bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("signed", [False, True])
def test_whole_numbers_and_floats_that_stand_for_them_give_the_same(
    layer: nn.Module, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = compressed(layer, activations=True)
    assert small is not None
    if not small.whole_numbers:
        pytest.skip("this machine multiplies no whole numbers in such a layer")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    inputs = (2, weight.shape[1] * getattr(layer, "groups", 1), *(9,) * (weight.ndim - 2))
    x = torch.rand(inputs) - (0.3 if signed else 0.0)
    with torch.no_grad():
        found = small(x)
        monkeypatch.setattr(int8_layers, "_convolves", lambda n_dims: False)
        monkeypatch.setattr(int8_layers, "_multiplies", lambda: False)
        wanted = small(x)
        plain = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert distance(found, plain) < 0.03


def test_with_weights_alone_in_int8_activations_are_what_they_were() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    small = compressed(layer, activations=False)
    assert small is not None
    rounded = copy.deepcopy(layer)
    rounded.weight.data = small.weight * small.step.view(-1, 1, 1, 1)
    images = torch.randn(2, 3, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(small(images), rounded(images))


def test_what_is_not_finite_stays_so() -> None:
    small = compressed(nn.Conv2d(2, 8, 3), activations=True)
    assert small is not None
    images = torch.rand(3, 2, 5, 5)
    images[0, 1, 2, 2], images[1, 0, 0, 0] = float("nan"), float("inf")
    with torch.no_grad():
        finite = torch.isfinite(small(images)).flatten(1).all(1)
    assert finite.tolist() == [False, False, True]


def test_subclasses_and_other_paddings_stay_in_floats() -> None:
    class Standardised(nn.Conv2d):
        pass

    for layer in (
        Standardised(1, 2, 3),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.ConvTranspose2d(1, 2, 3),
    ):
        assert compressed(layer, activations=True) is None


# --- int8, whole networks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "params", "told"),
    [
        ("int8:conv4", 28, {}, "int8: 4 layers, 99.8 % of the weights"),
        ("int8:resnet12", 32, {"width_factor": 0.2}, "int8: 16 layers"),
        ("int8:timm:test_resnet", 32, {}, "int8: 15 layers"),
        ("int8:timm:test_vit", 32, {}, "int8: 25 layers"),
        ("int8:conv4-3d", 16, {"width": 16}, "int8: 4 layers"),
        ("slices:int8:conv4", 16, {"width": 16}, "int8: 4 layers"),
        ("int8:slices:conv4", 16, {"width": 16}, "int8: 4 layers"),
    ],
)
def test_features_in_int8_are_near_those_in_floats(
    name: str, size: int, params: dict[str, Any], told: str
) -> None:
    network = unsettled(build(name, size, **params))
    images = torch.rand(4, *network.input.shape)
    with torch.no_grad():
        features, maps = network(images), network.feature_map(images)
        small = deploy(network)
        assert distance(small(images), features) < 0.05
        assert distance(small.feature_map(images), maps) < 0.05
        assert torch.equal(small(images)[:1], small(images[:1])), "an image depends on its company"
        torch.testing.assert_close(copy.deepcopy(small)(images), small(images))
    assert told in form_of(small)


def test_the_bytes_of_an_int8_network_are_those_of_its_file(tmp_path: Path) -> None:
    network = build("int8:conv4", channels=3, width=64)
    before = bytes_of(network)
    small = deploy(network)
    # Weights of one byte; a step and a bias, BatchNorm's included, of four bytes a channel.
    weights = 64 * 3 * 9 + 3 * 64 * 64 * 9
    assert bytes_of(small) == weights + 4 * 64 * (4 + 4)
    assert sum(p.numel() for p in small.parameters()) == weights + 4 * 64
    assert file_bytes(small, tmp_path) == bytes_of(small)
    assert before / bytes_of(small) > 3.8


def test_scores_hold_the_numbers_of_the_weights_that_were_learned() -> None:
    network = build("int8:conv4", width=8)
    learned = {k: torch.rand_like(v) if v.is_floating_point() else v
               for k, v in network.state_dict().items()}  # fmt: skip
    network.load_state_dict(learned)
    twin = build("conv4", width=8)
    twin.load_state_dict({k.removeprefix("inner."): v for k, v in learned.items()})
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        wanted = twin.eval()(images)
        assert distance(deploy(network)(images), wanted) < 0.02


def test_an_int8_network_and_its_floats_have_files_of_their_own_in_the_cache() -> None:
    network = build("int8:conv4", width=8)
    floats = weights_digest(network), form_of(inference_copy(network))
    small = deploy(network)
    assert inference_copy(small) is small
    assert small.reference
    assert floats[0] != weights_digest(small)
    assert floats[1] != form_of(small)


def test_methods_that_change_weights_are_refused_and_gradients_too() -> None:
    for name in ("int8:conv4", "slices:int8:conv4"):
        with pytest.raises(Unavailable, match="Int8 is tested with others than were trained"):
            FunctionalBody(build(name, 16, width=8))
    small = deploy(build("int8:conv4", width=8))
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    with pytest.raises(Unavailable, match="no gradient"):
        small(images)
    small(images.detach())


def test_a_network_without_layers_to_compress_is_refused() -> None:
    class Mean(Backbone):
        n_features = 1
        input = InputSpec(8, 1, (0.0,), (1.0,))

        def feature_map(self, images: Tensor) -> Tensor:
            return images

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None]

    from medbench_backbones.int8 import Int8

    with pytest.raises(MedbenchError, match="Mean has no convolution and no linear layer"):
        Int8(inner=Mean(), image_size=8, channels=1)


# --- pruned --------------------------------------------------------------------------------------


def test_which_channels_belong_together_is_read_off_the_network() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3)
            self.a = nn.Conv2d(4, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.b = nn.Conv2d(6, 4, 3, padding=1)
            self.out = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            out: Tensor = self.out(torch.relu(x + self.b(self.norm(self.a(x)).relu())))
            return out

    told = [
        (set(c.made_by), set(c.normed_by), set(c.taken_by), c.prunable)
        for c in channels_of(Residual())
        if c.made_by
    ]
    assert told == [
        ({"stem", "b"}, set(), {"a", "out"}, True),
        # A method's call is nothing that is known to leave channels apart.
        ({"a"}, {"norm"}, set(), False),
        ({"out"}, set(), set(), False),
    ]


def test_of_equal_channels_the_first_stay_and_one_at_least() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0])
    assert strongest(values, 0.0).tolist() == [0, 1, 2, 3, 4]
    assert strongest(values, 0.2).tolist() == [0, 1, 2, 4]
    assert strongest(values, 0.4).tolist() == [0, 2, 4]
    assert strongest(values, 0.99).tolist() == [4]
    assert len(strongest(torch.rand(30), 1 / 3)) == 20


def test_a_pruned_conv4_is_the_dense_one_with_its_weakest_channels_silenced() -> None:
    dense = unsettled(build("conv4", width=12))
    network = build("pruned:conv4", width=12, share=0.25)
    network.load_state_dict({f"inner.{k}": v for k, v in dense.state_dict().items()})
    pruned = deploy(network)
    images = torch.rand(3, 1, 28, 28)
    gone = None
    blocks = dense.blocks
    for i, (convolution, norm, *_) in enumerate(blocks):  # type: ignore[union-attr, arg-type]
        weight = convolution.weight.data
        if gone is not None:
            weight[:, gone] = 0
        if i == 3:
            break
        strength = weight.abs().sum((1, 2, 3)).numpy()
        gone = np.argsort(strength, kind="stable")[:3].tolist()
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), dense(images), rtol=1e-4, atol=1e-5)
    shapes = [tuple(c.weight.shape[:2]) for c, *_ in pruned.innermost()[0].blocks]  # type: ignore[union-attr, misc]
    assert shapes == [(9, 1), (9, 9), (9, 9), (12, 9)]
    assert form_of(pruned).startswith("pruned: 9 of 36 channels, ")


def test_nothing_pruned_is_the_network_itself() -> None:
    dense = unsettled(build("resnet12", 32, width_factor=0.1))
    network = build("pruned:resnet12", 32, width_factor=0.1, share=0.0)
    network.load_state_dict({f"inner.{k}": v for k, v in dense.state_dict().items()})
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        pruned = deploy(network)
        assert torch.equal(pruned(images), dense(images))
    assert bytes_of(pruned) == bytes_of(dense)


@pytest.mark.parametrize(
    ("name", "size", "params", "n"),
    [
        ("pruned:conv4", 28, {"width": 16}, 24),
        # Two inside each block, and the sums of the first three.
        ("pruned:resnet12", 32, {"width_factor": 0.1}, None),
        ("pruned:timm:resnet18", 32, {}, None),
        ("pruned:conv4-3d", 16, {"width": 8}, 12),
        ("slices:pruned:conv4", 16, {"width": 8}, 12),
        ("pruned:slices:conv4", 16, {"width": 8}, 12),
    ],
)
def test_networks_of_several_kinds_lose_half_of_what_they_can(
    name: str, size: int, params: dict[str, Any], n: int | None, tmp_path: Path
) -> None:
    network = unsettled(build(name, size, **params))
    shape, before = network.n_features, bytes_of(network)
    small = deploy(network)
    images = torch.rand(2, *small.input.shape)
    with torch.no_grad():
        assert small(images).shape == (2, shape)
        assert small.feature_map(images).ndim == 4
    assert bytes_of(small) < 0.6 * before
    if n is not None:
        assert form_of(small).startswith(f"pruned: {n} of {2 * n} channels")
    assert file_bytes(small, tmp_path) == bytes_of(small)


def test_what_is_pruned_before_training_is_small_from_the_start() -> None:
    network = build("pruned:conv4", width=8, when="before")
    assert tuple(network.innermost()[0].blocks[1][0].weight.shape[:2]) == (4, 4)  # type: ignore[index, union-attr]
    network.train()
    network(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    before = weights_digest(network)
    assert weights_digest(deploy(network.eval())) == before


def test_pruned_networks_can_be_adapted_folded_and_put_into_int8() -> None:
    FunctionalBody(deploy(build("pruned:conv4", width=8)))
    small = deploy(build("pruned:conv4", width=8))
    assert form_of(inference_copy(small)).endswith("; 4 BatchNorms folded")
    both = deploy(build("int8:pruned:conv4", width=16))
    assert form_of(both).startswith("int8: 4 layers")
    assert "pruned: 24 of 48 channels" in form_of(both)
    assert sum(isinstance(m, Int8Layer) for m in both.modules()) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pruned:timm:test_vit", "has no channels that only|cannot be traced"),
        ("pruned:int8:conv4", "Prune first, as in int8:pruned:BACKBONE"),
    ],
)
def test_what_cannot_be_pruned_is_refused(name: str, said: str) -> None:
    with pytest.raises(MedbenchError, match=said):
        build(name, 32)


def test_a_network_whose_trace_misleads_is_refused_by_what_it_gives() -> None:
    class Counts(Backbone):
        """Its features depend on how many channels the first layer has."""

        n_features = 2
        input = InputSpec(8, 1, (0.0,), (1.0,))

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def feature_map(self, images: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(images))
            return out

        def forward(self, images: Tensor) -> Tensor:
            return self.feature_map(images).mean((2, 3)) * self.a.out_channels

    from medbench_backbones.pruned import Pruned

    with pytest.raises(MedbenchError, match="without some channels gives other values"):
        Pruned(inner=Counts(), image_size=8, channels=1).deployed()


# --- what the core promises ----------------------------------------------------------------------


def test_a_deployed_network_that_is_another_one_is_a_broken_promise() -> None:
    class Shorter(Backbone):
        n_features = 2
        input = InputSpec(8, 1, (0.0,), (1.0,))

        def feature_map(self, images: Tensor) -> Tensor:
            return images

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, : self.n_features]

        def deployed(self) -> Backbone:
            self.n_features = 1
            return self

    class Nothing(Shorter):
        def deployed(self) -> Backbone:
            return None  # type: ignore[return-value]

    with pytest.raises(ContractError, match="n_features 1 for"):
        deploy(Shorter())
    with pytest.raises(ContractError, match="returned NoneType"):
        deploy(Nothing())


def test_most_networks_are_tested_as_they_were_trained() -> None:
    network = build("conv4", width=8)
    before = weights_digest(network)
    assert deploy(network) is network
    assert weights_digest(network) == before
    assert form_of(network) == "plain"
