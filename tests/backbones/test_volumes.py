"""Backbones for volumes: the 3-D conv4, slices of a network for images, and inflated networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medbench.api import Backbone, InputSpec, MedbenchError
from medbench.backbones import build_backbone, inference_copy
from medbench.config import BackboneRef
from medbench.embed import Folded, form_of
from medbench.errors import UsageError
from medbench.nesting import layers
from medbench.plugins import registry
from medbench_backbones.conv4_3d import Conv4Volume
from medbench_backbones.inflated import Inflated
from medbench_backbones.slices import Slices


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name: str, size: int = 16, channels: int = 1, seed: int = 0, **params: Any) -> Backbone:
    ref = BackboneRef(name=name, params=params)
    return build_backbone(registry(), ref, image_size=size, channels=channels, seed=seed)


def volumes(n: int = 2, size: int = 16, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, size, size, size)


# --- conv4-3d ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "size", "n_features", "parameters"),
    # (27 c + 1) w + 2 w for the first block, and three times (27 w + 1) w + 2 w, with w = 8.
    [(1, 16, 8, 5_496), (3, 32, 64, 5_928)],
)
def test_conv4_has_a_third_dimension(
    channels: int, size: int, n_features: int, parameters: int
) -> None:
    network = Conv4Volume(image_size=size, channels=channels, width=8).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.n_features == n_features
    assert network.input.shape == (channels, size, size, size)
    images = volumes(2, size, channels)
    with torch.no_grad():
        features = network(images)
        assert features.shape == (2, n_features)
        torch.testing.assert_close(network(images[:1]), features[:1])
        side = size // 16
        assert network.feature_map(images).shape == (2, 8, side * side, side)


def test_conv4_of_volumes_is_four_times_convolution_norm_relu_and_pooling() -> None:
    network = build("conv4-3d", width=4)
    x = images = volumes()
    with torch.no_grad():
        for convolution, norm, _, _ in network.blocks:  # type: ignore[union-attr, misc]
            x = nn.functional.conv3d(x, convolution.weight, convolution.bias, padding=1)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = (x - norm.running_mean.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1)
            x = x + norm.bias.view(-1, 1, 1, 1)
            x = nn.functional.max_pool3d(x.relu(), 2)
        torch.testing.assert_close(network(images), x.flatten(1), rtol=1e-4, atol=1e-5)


def test_the_order_of_slices_matters_to_a_network_for_volumes_alone() -> None:
    images = volumes()
    upside_down = images.flip(2)
    with torch.no_grad():
        deep, flat = build("conv4-3d", width=8), build("slices:conv4", width=8)
        assert not torch.allclose(deep(images), deep(upside_down), rtol=1e-2)
        torch.testing.assert_close(flat(images), flat(upside_down))


# --- slices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_features_of_a_volume_are_those_of_its_slices_pooled(axis: int, pooling: str) -> None:
    network = build("slices:conv4", width=4, axis=axis, pooling=pooling)
    flat = build("conv4", width=4)
    (volume,) = volumes(1)
    with torch.no_grad():
        each = torch.stack([flat(volume.select(1 + axis, i)[None])[0] for i in range(16)])
        wanted = each.mean(0) if pooling == "mean" else each.max(0).values
        torch.testing.assert_close(network(volume[None])[0], wanted, rtol=1e-4, atol=1e-5)


def test_three_planes_stand_side_by_side() -> None:
    network = build("slices:conv4", width=4, planes=3)
    images = volumes()
    with torch.no_grad():
        wanted = [build("slices:conv4", width=4, axis=axis)(images) for axis in (0, 1, 2)]
        torch.testing.assert_close(network(images), torch.cat(wanted, 1))
    assert network.n_features == 12


def test_maps_of_slices_lie_one_below_the_other() -> None:
    network, flat = build("slices:conv4", width=4, pools=2), build("conv4", width=4, pools=2)
    images = volumes()
    with torch.no_grad():
        maps = network.feature_map(images)
        assert maps.shape == (2, 4, 16 * 4, 4)
        third = flat.feature_map(images[:, :, 2])
        torch.testing.assert_close(maps[:, :, 8:12], third, rtol=1e-4, atol=1e-5)


def test_slices_are_resized_to_what_the_inner_network_wants() -> None:
    seen: list[tuple[int, ...]] = []

    class Wide(Backbone):
        n_features = 1
        input = InputSpec(24, 1, (0.5,), (0.5,), "bicubic")

        def feature_map(self, images: Tensor) -> Tensor:
            return images

        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            assert images.min() >= -1.0
            assert images.max() <= 1.0
            return images.mean((1, 2, 3))[:, None]

    network = Slices(inner=Wide(), image_size=12, channels=1).eval()
    checkers = (torch.rand(2, 1, 12, 12, 12) > 0.5).float() * 2 - 1
    with torch.no_grad():
        found = network(checkers)
    assert seen == [(24, 1, 24, 24)]
    torch.testing.assert_close(found[:, 0], checkers.mean((1, 2, 3, 4)), rtol=0, atol=0.05)


def test_the_faster_copy_folds_the_network_inside() -> None:
    for name, n_norms in [("slices:conv4", 4), ("conv4-3d", 4)]:
        network = build(name, width=4)
        copy = inference_copy(network)
        assert form_of(copy) == f"{n_norms} BatchNorms folded"
        assert isinstance(copy, Folded)
        assert copy.reference == network.reference
        images = volumes()
        with torch.no_grad():
            torch.testing.assert_close(copy(images), network(images), rtol=1e-4, atol=1e-5)


# --- inflated ------------------------------------------------------------------------------------


def _replicating(network: nn.Module) -> None:
    """Have convolutions see the border's slices again, where they would see zeros."""

    def repeat(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        assert isinstance(module, nn.Conv3d)
        depth = int(module.padding[0])
        module.padding = (0, *module.padding[1:])  # type: ignore[assignment]
        (x,) = given
        module.depth = depth
        return (torch.cat([x[:, :, :1]] * depth + [x] + [x[:, :, -1:]] * depth, 2),)

    def restore(module: nn.Module, given: object, output: object) -> None:
        module.padding = (module.depth, *module.padding[1:])  # type: ignore[assignment, index, misc]

    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(repeat)
            module.register_forward_hook(restore)


def test_a_volume_of_equal_slices_has_the_features_of_the_slice() -> None:
    flat = build("timm:test_resnet", 32)
    for norm in flat.modules():
        if isinstance(norm, nn.BatchNorm2d):  # timm's residual branches begin as zero
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    network = Inflated(inner=flat, image_size=32, channels=1).eval()
    images = torch.rand(1, 1, 32, 32)
    volume = images[:, :, None].expand(-1, -1, 32, -1, -1)
    with torch.no_grad():
        wanted, bordered = flat(images), network(volume)
        _replicating(network)
        torch.testing.assert_close(network(volume), wanted, rtol=1e-3, atol=1e-4)
    # Zeros beyond the first and last slice are seen, as in the paper.
    assert not torch.allclose(bordered, wanted, rtol=1e-3, atol=1e-4)


def test_away_from_the_borders_a_convolution_gives_what_it_gave() -> None:
    class Stem(Backbone):
        n_features = 3
        input = InputSpec(8, 1, (0.0,), (1.0,))

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def feature_map(self, images: Tensor) -> Tensor:
            out: Tensor = self.norm(self.conv(images)).relu()
            return out

        def forward(self, images: Tensor) -> Tensor:
            return self.feature_map(images).flatten(2).amax(2)

    flat = Stem().eval()
    network = Inflated(inner=flat, image_size=8, channels=1).eval()
    conv = network.inner.conv
    assert isinstance(conv, nn.Conv3d)
    torch.testing.assert_close(conv.weight.sum(2), flat.conv.weight)
    torch.testing.assert_close(conv.weight[:, :, 0], conv.weight[:, :, 2])
    images = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        found = network.inner.feature_map(images[:, :, None].expand(-1, -1, 8, -1, -1))
        for depth in range(1, 7):
            torch.testing.assert_close(found[:, :, depth], flat.feature_map(images))
        assert not torch.allclose(found[:, :, 0], flat.feature_map(images))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:convnext_atto", "LayerNorm2d, which has no like for volumes"),
        # It weighs channels by means over height and width, and would forget depth or width.
        (
            "timm:regnety_002",
            r"cannot be inflated: it gives, in model\.s1\.b1\.se\.fc1, on a volume of equal slices",
        ),
        ("timm:vit_tiny_patch16_224", "cannot be inflated: it fails on a volume"),
        ("conv4", "cannot be inflated"),
    ],
)
def test_what_cannot_be_inflated_is_refused(name: str, said: str) -> None:
    with pytest.raises(MedbenchError, match=said) as caught:
        build(f"inflated:{name}", 32)
    assert "slices:BACKBONE" in str(caught.value)


# --- references ----------------------------------------------------------------------------------


def test_a_parameter_is_the_outermost_networks_that_has_it() -> None:
    outer, inner = layers(registry(), "slices:conv4", {"width": 8, "pooling": "max"})
    assert (outer.name, outer.n_dims) == ("slices:conv4", 3)
    assert outer.params == {"axis": 0, "planes": 1, "pooling": "max"}
    assert (inner.name, inner.n_dims, inner.params) == ("conv4", 2, {"width": 8, "pools": 4})


def test_what_is_wrapped_has_the_weights_it_has_alone() -> None:
    alone, wrapped = build("conv4", width=4, seed=3), build("slices:conv4", width=4, seed=3)
    inner = wrapped.inner
    assert isinstance(inner, Backbone)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(inner.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("slices", {}, "slices:BACKBONE"),
        ("slices:conv5", {}, "no backbone called 'conv5'. Did you mean 'conv4'"),
        ("slices:conv4-3d", {}, "wraps backbones that take images, and 'conv4-3d' takes volumes"),
        ("slices:slices:conv4", {}, "'slices:conv4' takes volumes"),
        ("slices:conv4", {"widht": 4}, "slices:conv4 has no parameter 'widht'. Did you mean"),
        ("slices:conv4", {"axis": 3}, "slices: parameter axis: 3"),
        ("slices:conv4", {"width": 0}, "conv4: parameter width: 0"),
    ],
)
def test_wrong_references_are_explained(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        layers(registry(), name, params)
    assert said in str(caught.value)
