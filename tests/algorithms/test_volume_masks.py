"""Methods that answer with masks, on volumes: the papers' equations with one more dimension."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from medbench.api import ContractError, InputSpec, Predictor, Support
from medbench_algorithms.dense.local_prototypes import LocalPrototypes
from medbench_algorithms.dense.masked_prototypes import MaskedPrototypes
from medbench_algorithms.dense.meta_unet import MetaUNet
from medbench_algorithms.dense.nearest_place import NearestPlaces
from medbench_algorithms.dense.panet import alignment_loss
from medbench_algorithms.dense.pooling import enlarged, grid, place_weights
from medbench_algorithms.dense.unet import ScratchUNet, UNet, mask_loss

SIZE = (6, 8, 8)
PLACES = (3, 4, 4)


def task(n_way: int = 2, shot: int = 2, seed: int = 0) -> tuple[Support, Tensor]:
    """Maps ``(n, 5, 12, 4)`` of 3 slices of 4 x 4 places, and blocky masks of twice the size."""
    g = torch.Generator().manual_seed(seed)
    n = n_way * shot
    maps = torch.randn(n, 5, 12, 4, generator=g)
    coarse = torch.rand(n, n_way, 3, 2, 2, generator=g) < 0.4
    owns = torch.eye(n_way, dtype=torch.bool).repeat_interleave(shot, dim=0)
    coarse &= owns[:, :, None, None, None]
    coarse[..., 0, 0, 0] |= owns
    masks = coarse.repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    query = torch.randn(3, 5, 12, 4, generator=g)
    labels = masks.flatten(2).any(-1).long()
    return Support(maps, labels, n_way, (0,), SIZE, masks), query


def deep(maps: Tensor) -> Tensor:
    """Maps ``(n, c, 12, 4)`` with depth as a dimension of its own."""
    return maps.unflatten(2, (3, 4))


def large(values: Tensor) -> Tensor:
    return F.interpolate(values, size=SIZE, mode="trilinear", align_corners=False)


def predicted(method: Any, support: Support, query: Tensor) -> Tensor:
    predictor = method.adapt(support)
    assert isinstance(predictor, Predictor)
    return predictor.predict(query)


def prototypes_of(support: Support) -> Tensor:
    """PANet's equations 1 and 2 on enlarged features, the background first."""
    assert support.masks is not None
    features, masks = large(deep(support.inputs)), support.masks.float()
    means = []
    for m in (1 - masks.amax(1), *masks.unbind(1)):
        shown = [k for k in range(len(m)) if m[k].sum() > 0]
        inside = [(features[k] * m[k]).sum((1, 2, 3)) / m[k].sum() for k in shown]
        means.append(torch.stack(inside).mean(0))
    return torch.stack(means)


def cosines(query: Tensor, prototypes: Tensor) -> Tensor:
    """``(n, k, D', H', W')`` of maps and prototypes ``(k, c)``."""
    return F.cosine_similarity(
        deep(query)[:, None], prototypes[None, :, :, None, None, None], dim=2
    )


def test_weights_of_places_stand_for_a_sum_over_features_enlarged_in_three_dimensions() -> None:
    support, _ = task()
    assert support.masks is not None
    direct = torch.einsum("ncdhw,nkdhw->nkc", large(deep(support.inputs)), support.masks.float())
    weights = place_weights(support.masks, 12, 4, SIZE)
    torch.testing.assert_close(
        torch.einsum("ncp,nkp->nkc", support.inputs.flatten(2), weights), direct
    )
    torch.testing.assert_close(enlarged(support.inputs, SIZE), large(deep(support.inputs)))


def test_maps_that_are_not_of_square_slices_are_refused() -> None:
    assert grid(12, 4, SIZE) == PLACES
    with pytest.raises(ContractError, match="square slices"):
        grid(10, 4, SIZE)


def test_masked_prototypes_of_volumes_are_the_papers_equations() -> None:
    support, query = task()
    best = large(20.0 * cosines(query, prototypes_of(support))).argmax(1)
    found = predicted(MaskedPrototypes(), support, query) > 0
    assert found.shape == (3, 2, *SIZE)
    for k in range(2):
        assert float((found[:, k] == (best == k + 1)).float().mean()) > 0.999
        assert 0.02 < float(found[:, k].float().mean()) < 0.9


def test_local_prototypes_of_volumes_pool_cubes() -> None:
    support, query = task()
    assert support.masks is not None
    whole = torch.cat([~support.masks.any(1, keepdim=True), support.masks], 1).float()
    windows = F.avg_pool3d(deep(support.inputs), 2).permute(0, 2, 3, 4, 1).reshape(-1, 5)
    cover = place_weights(whole, 12, 4, SIZE).unflatten(-1, PLACES) / 8
    share = F.avg_pool3d(cover, 2).permute(0, 2, 3, 4, 1).reshape(-1, 3)
    means = prototypes_of(support)
    similar = []
    for k in range(3):
        own = torch.cat([windows[share[:, k] >= 0.5], means[k : k + 1]])
        s = 20 * cosines(query, own)
        similar.append((s.softmax(1) * s).sum(1))
    best = large(torch.stack(similar, 1)).argmax(1)
    found = predicted(LocalPrototypes(window=2, purity=0.5), support, query) > 0
    for k in range(2):
        assert float((found[:, k] == (best == k + 1)).float().mean()) > 0.999


def test_nearest_places_of_volumes_are_scikit_learns_neighbours() -> None:
    support, query = task()
    assert support.masks is not None
    places = support.inputs.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    asked = query.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    judge = NearestNeighbors(n_neighbors=3, metric="cosine").fit(places)
    cover = (place_weights(support.masks, 12, 4, SIZE) / 8).mT.reshape(-1, 2).numpy()
    assert 0.9 < cover.max() <= 1.0 + 1e-6
    expected = torch.from_numpy(cover[judge.kneighbors(asked)[1]].mean(1) - 0.5)
    wanted = large(expected.reshape(3, *PLACES, 2).movedim(-1, 1))
    found = predicted(NearestPlaces(k=3), support, query)
    assert np.isclose(found.numpy(), wanted.numpy(), atol=1e-5).mean() > 0.99


@pytest.mark.parametrize(
    "method",
    [MaskedPrototypes(), MaskedPrototypes(centre=True), NearestPlaces(k=1)],
    ids=["masked", "centred", "nearest"],
)
def test_a_volume_of_equal_slices_is_answered_as_its_slice_is(method: Any) -> None:
    g = torch.Generator().manual_seed(3)
    maps, query = torch.randn(4, 5, 4, 4, generator=g), torch.randn(2, 5, 4, 4, generator=g)
    masks = torch.rand(4, 1, 4, 4, generator=g) < 0.5
    masks = masks.repeat_interleave(2, -1).repeat_interleave(2, -2)
    labels = torch.ones(4, 1, dtype=torch.int64)
    flat = predicted(method, Support(maps, labels, 1, (0,), (8, 8), masks), query)
    tall = masks[:, :, None].expand(-1, -1, 8, -1, -1)
    stacked = Support(maps.repeat(1, 1, 4, 1), labels, 1, (0,), (8, 8, 8), tall)
    found = predicted(method, stacked, query.repeat(1, 1, 4, 1))
    assert found.shape == (2, 1, 8, 8, 8)
    torch.testing.assert_close(found, flat[:, :, None].expand_as(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method", [MaskedPrototypes(), LocalPrototypes(window=2, purity=0.5), NearestPlaces(k=3)]
)
def test_volumes_of_several_episodes_are_answered_as_each_alone(method: Any) -> None:
    (first, asked), (second, others) = task(seed=1), task(seed=2)
    assert first.masks is not None
    assert second.masks is not None
    both = replace(
        first,
        inputs=torch.stack([first.inputs, second.inputs]),
        labels=torch.stack([first.labels, second.labels]),
        masks=torch.stack([first.masks, second.masks]),
        seeds=(0, 1),
    )
    together = predicted(method, both, torch.stack([asked, others]))
    assert together.shape == (2, 3, 2, *SIZE)
    for found, support, query in zip(together, (first, second), (asked, others), strict=True):
        torch.testing.assert_close(found, predicted(method, support, query), rtol=1e-4, atol=1e-4)


def test_alignment_over_a_volume_of_equal_slices_is_that_of_the_slice() -> None:
    g = torch.Generator().manual_seed(4)
    maps, asked = torch.randn(2, 5, 4, 4, generator=g), torch.randn(2, 5, 4, 4, generator=g)
    masks = torch.rand(2, 1, 8, 8, generator=g) < 0.5
    scores = torch.randn(2, 2, 8, 8, generator=g)

    def stack(values: Tensor) -> Tensor:
        return values[:, :, None].expand(-1, -1, 4, -1, -1)

    flat = alignment_loss(maps, masks, asked, scores, 20.0)
    assert flat > 0
    tall = alignment_loss(
        maps.repeat(1, 1, 4, 1), stack(masks), asked.repeat(1, 1, 4, 1), stack(scores), 20.0
    )
    torch.testing.assert_close(tall, flat)


def test_the_loss_of_masks_counts_voxels_as_it_counts_pixels() -> None:
    g = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 3, 4, 6, 6, generator=g)
    truth = (torch.rand(2, 3, 4, 6, 6, generator=g) < 0.3).float()
    torch.testing.assert_close(
        mask_loss(scores, truth), mask_loss(scores.flatten(2, 3), truth.flatten(2, 3))
    )


@torch.no_grad()
def test_a_unet_for_volumes_sees_in_which_order_slices_are() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 4, n_dims=3)
    assert not any(isinstance(m, nn.Conv2d) for m in network.modules())
    volume = torch.randn(1, 1, 8, 8, 8)
    found = network(volume)
    assert found.shape == (1, 2, 8, 8, 8)
    # Slice by slice, the same slices in reverse would have the same scores in reverse.
    assert not torch.allclose(network(volume.flip(2)).flip(2), found, atol=1e-2)


def tubes(n: int, seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Volumes with a bright cube, and its mask."""
    g = torch.Generator().manual_seed(seed)
    volumes = 0.1 * torch.randn(n, 1, size, size, size, generator=g)
    masks = torch.zeros(n, 1, size, size, size, dtype=torch.bool)
    for i in range(n):
        z, y, x = torch.randint(0, size - 4, (3,), generator=g).tolist()
        masks[i, 0, z : z + 4, y : y + 4, x : x + 4] = True
    return volumes + masks.float(), masks


def test_a_unet_from_scratch_finds_bright_cubes_and_each_query_for_itself() -> None:
    volumes, masks = tubes(4, seed=0)
    query, truth = tubes(3, seed=9)
    support = Support(volumes, torch.ones(4, 1, dtype=torch.int64), 1, (7,), (8, 8, 8), masks)
    method = ScratchUNet(steps=40, width=4)
    predictor = method.adapt(support)
    assert isinstance(predictor, Predictor)
    scores = predictor.predict(query)
    found = scores > 0
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert float(dice) > 0.9
    torch.testing.assert_close(predictor.predict(query[1:2]), scores[1:2], rtol=0, atol=0)
    torch.testing.assert_close(predicted(method, support, query), scores, rtol=0, atol=0)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_maml_learns_a_unet_for_what_its_backbone_takes(n_dims: Any) -> None:
    class Net(nn.Module):
        input = InputSpec(size=8, channels=1, mean=(0.0,), std=(1.0,), n_dims=n_dims)

    network: Any = MetaUNet(width=2).network(Net())  # type: ignore[arg-type]
    assert network(torch.zeros(1, 1, *(8,) * n_dims)).shape == (1, 1, *(8,) * n_dims)
