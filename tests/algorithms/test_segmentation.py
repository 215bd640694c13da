"""Methods that answer with masks, against their papers' equations written out plainly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from medbench.api import Predictor, Support
from medbench_algorithms.dense.local_prototypes import LocalPrototypes
from medbench_algorithms.dense.masked_prototypes import MaskedPrototypes
from medbench_algorithms.dense.nearest_place import NearestPlaces
from medbench_algorithms.dense.pooling import enlarged, place_weights
from medbench_algorithms.dense.unet import ScratchUNet

SIZE = (12, 16)
ON_MAPS = {
    "masked": MaskedPrototypes(),
    "centred": MaskedPrototypes(centre=True),
    "local": LocalPrototypes(window=2, purity=0.5),
    "nearest": NearestPlaces(k=3),
}


def task(
    n_episodes: int = 3, n_way: int = 2, shot: int = 2, seed: int = 0
) -> tuple[Support, Tensor]:
    """Maps ``(e, n, 5, 6, 8)`` and blocky masks of twice the size; a class an image, some both."""
    g = torch.Generator().manual_seed(seed)
    n = n_way * shot
    maps = torch.randn(n_episodes, n, 5, 6, 8, generator=g).relu()
    coarse = torch.rand(n_episodes, n, n_way, 3, 4, generator=g) < 0.4
    owns = torch.eye(n_way, dtype=torch.bool).repeat_interleave(shot, dim=0)
    coarse &= owns[:, :, None, None]
    coarse[..., 0, 0] |= owns
    coarse[:, 0, 1, 2, 3] = True  # one image shows both
    masks = coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)
    labels = masks.any(dim=(-2, -1)).long()
    query = torch.randn(n_episodes, 4, 5, 6, 8, generator=g).relu()
    return Support(maps, labels, n_way, tuple(range(n_episodes)), SIZE, masks), query


def one_of(support: Support, e: int) -> Support:
    assert support.masks is not None
    return Support(
        support.inputs[e], support.labels[e], support.n_way, support.seeds[e : e + 1], SIZE,
        support.masks[e],
    )  # fmt: skip


def predicted(method: Any, support: Support, query: Tensor) -> Tensor:
    predictor = method.adapt(support)
    assert isinstance(predictor, Predictor)
    return predictor.predict(query)


def large(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)


def test_weights_of_places_stand_for_a_sum_over_enlarged_features() -> None:
    support, _ = task()
    assert support.masks is not None
    maps, masks = support.inputs[0], support.masks[0]
    direct = torch.einsum("nchw,nkhw->nkc", large(maps), masks.float())
    weights = place_weights(masks, 6, 8, SIZE).unflatten(-1, (6, 8))
    torch.testing.assert_close(torch.einsum("nchw,nkhw->nkc", maps, weights), direct)
    torch.testing.assert_close(enlarged(maps, SIZE), large(maps))


@pytest.mark.parametrize("method", ON_MAPS.values(), ids=ON_MAPS)
def test_episodes_together_get_what_each_gets_alone(method: Any) -> None:
    support, query = task()
    together = predicted(method, support, query)
    assert together.shape == (3, 4, 2, *SIZE)
    for e in range(3):
        alone = predicted(method, one_of(support, e), query[e])
        torch.testing.assert_close(together[e], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_way", [1, 2, 3])
def test_masked_prototypes_are_the_papers_equations_on_enlarged_features(n_way: int) -> None:
    support, query = task(1, n_way) if n_way > 1 else task_of_one()
    support = one_of(support, 0)
    assert support.masks is not None
    features, masks = large(support.inputs), support.masks.float()
    prototypes = []
    outside = 1 - masks.amax(1)
    for m in (outside, *masks.unbind(1)):
        shown = [k for k in range(len(m)) if m[k].sum() > 0]
        means = [(features[k] * m[k]).sum((1, 2)) / m[k].sum() for k in shown]
        prototypes.append(torch.stack(means).mean(0))
    cosines = F.cosine_similarity(
        query[0][:, None], torch.stack(prototypes)[None, :, :, None, None], dim=2
    )
    p = large(20.0 * cosines).softmax(1)
    best = p.argmax(1)  # 0 is the background
    found = predicted(MaskedPrototypes(), support, query[0]) > 0
    for k in range(n_way):
        assert float((found[:, k] == (best == k + 1)).float().mean()) > 0.999


def task_of_one() -> tuple[Support, Tensor]:
    support, query = task(1, 2)
    assert support.masks is not None
    masks = support.masks[:, :2, :1]
    one = Support(support.inputs[:, :2], masks.any(-1).any(-1).long(), 1, (0,), SIZE, masks)
    return one, query


def test_local_prototypes_are_the_papers_pooling_and_attention() -> None:
    support, query = task(1)
    support = one_of(support, 0)
    assert support.masks is not None
    whole = torch.cat([~support.masks.any(1, keepdim=True), support.masks], 1).float()
    windows = F.avg_pool2d(support.inputs, 2).permute(0, 2, 3, 1).reshape(-1, 5)
    cover = place_weights(whole, 6, 8, SIZE).unflatten(-1, (6, 8)) / 4
    share = F.avg_pool2d(cover, 2).permute(0, 2, 3, 1).reshape(-1, 3)
    features = large(support.inputs)
    similar = []
    for k in range(3):
        m = whole[:, k]
        shown = [i for i in range(len(m)) if m[i].sum() > 0]
        mean = torch.stack([(features[i] * m[i]).sum((1, 2)) / m[i].sum() for i in shown]).mean(0)
        prototypes = torch.cat([windows[share[:, k] >= 0.5], mean[None]])
        s = 20 * F.cosine_similarity(query[0][:, None], prototypes[None, :, :, None, None], dim=2)
        similar.append((s.softmax(1) * s).sum(1))
    best = large(torch.stack(similar, 1)).argmax(1)
    found = predicted(LocalPrototypes(window=2, purity=0.5), support, query[0]) > 0
    for k in range(2):
        assert float((found[:, k] == (best == k + 1)).float().mean()) > 0.999


def test_nearest_places_are_scikit_learns_neighbours() -> None:
    support, _ = task(1)
    g = torch.Generator().manual_seed(5)
    # Behind a ReLU many places point exactly one way, and which of them is nearest is open.
    maps = torch.randn(4, 5, 6, 8, generator=g)
    support, query = (
        replace(one_of(support, 0), inputs=maps),
        torch.randn(1, 4, 5, 6, 8, generator=g),
    )
    assert support.masks is not None
    places = support.inputs.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    cover = (place_weights(support.masks, 6, 8, SIZE) / 4).mT.reshape(-1, 2).numpy()
    asked = query[0].permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    judge = NearestNeighbors(n_neighbors=3, metric="cosine").fit(places)
    expected = cover[judge.kneighbors(asked)[1]].mean(1) - 0.5
    predictor: Any = NearestPlaces(k=3).adapt(support)
    predictor.size = (6, 8)
    found = predictor.predict(query[0]).permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    assert np.isclose(found, expected, atol=1e-5).all(axis=1).mean() > 0.99


def bright_squares(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    masks = torch.zeros(n, 1, 16, 16, dtype=torch.bool)
    for i, (y, x) in enumerate(torch.randint(0, 10, (n, 2), generator=g).tolist()):
        masks[i, 0, y : y + 6, x : x + 6] = True
    return 0.2 * torch.randn(n, 1, 16, 16, generator=g) + masks.float(), masks


def test_a_unet_learns_a_task_from_its_support_alone_and_draws_from_its_seed_alone() -> None:
    g = torch.Generator().manual_seed(0)
    images, masks = bright_squares(3, g)
    query, truth = bright_squares(4, g)
    labels = torch.ones(3, 1, dtype=torch.int64)

    def answer(seed: int) -> Tensor:
        support = Support(images, labels, 1, (seed,), (16, 16), masks)
        torch.manual_seed(seed + 7)  # the global state must not matter
        return predicted(ScratchUNet(steps=40, width=4), support, query)

    first = answer(1)
    mask = first > 0
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert float(dice) > 0.85
    torch.manual_seed(99)
    assert torch.equal(first, answer(1))
    assert not torch.equal(first, answer(2))
