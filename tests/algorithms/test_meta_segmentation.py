"""Segmentation that is meta-trained: losses, gradients and layers against plain computations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from medbench.api import ContractError, Predictor, Support, Task
from medbench.errors import MedbenchError
from medbench_algorithms.dense.meta_unet import MetaUNet
from medbench_algorithms.dense.panet import PANet, alignment_loss
from medbench_algorithms.dense.unet import UNet, mask_loss
from medbench_algorithms.dense.universeg import (
    CrossConv,
    UniverSeg,
    UniverSegNet,
    soft_dice_loss,
)

from .conftest import SIZE, FakeRun, SmallConv


def squares(number: int, marked: str | None = None, n: int = 3, n_way: int = 1) -> Task:
    """Images of a bright and a dark square on grey; the mask is of one of them, task by task.

    With two ways both are marked, the bright one first.
    """
    g = torch.Generator().manual_seed(number)
    images = 0.1 * torch.randn(2 * n, 1, SIZE, SIZE, generator=g)
    both = torch.zeros(2 * n, 2, SIZE, SIZE, dtype=torch.bool)
    for i in range(2 * n):
        for k, (low, high) in enumerate(((0, SIZE // 2 - 5), (SIZE // 2, SIZE - 5))):
            (y,) = torch.randint(0, SIZE - 5, (1,), generator=g).tolist()
            (x,) = torch.randint(low, high + 1, (1,), generator=g).tolist()
            both[i, k, y : y + 5, x : x + 5] = True
        if torch.rand((), generator=g) < 0.5:
            both[i] = both[i].flip(-1)
    images += both[:, :1].float() - both[:, 1:].float()
    if n_way == 2:
        masks = both
    else:
        bright = marked == "bright" if marked else number % 2 == 0
        masks = both[:, :1] if bright else both[:, 1:]
    labels = torch.ones(2 * n, n_way, dtype=torch.int64)
    support = Support(images[:n], labels[:n], n_way, (number,), (SIZE, SIZE), masks[:n])
    return Task(support, images[n:], labels[n:], query_masks=masks[n:])


class SquareSource:
    """Source tasks of `squares`."""

    n_classes = 2
    ways = (1,)
    images_per_task = 6

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        numbers: Iterable[int] = range(count) if only is None else only
        return [squares(step * count + i) for i in numbers]


def fine() -> SmallConv:
    """A network whose maps are as large as the image."""
    net = SmallConv()
    net.net = nn.Sequential(*(m for m in net.net if not isinstance(m, nn.MaxPool2d)))
    return net


def trained(method: Any, n_steps: int) -> tuple[dict[str, Tensor], SmallConv, FakeRun]:
    torch.manual_seed(0)
    backbone = fine()
    images = n_steps * method.meta_batch * SquareSource.images_per_task
    run = FakeRun(SquareSource(), n_steps, images)  # type: ignore[arg-type]
    learned = method.meta_train(backbone, SquareSource(), Unvalidated(run))
    return learned, backbone, run


class Unvalidated:
    """A run that leaves validation to the tests of runs."""

    def __init__(self, run: FakeRun) -> None:
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def steps(self, state: Any, *, images_per_step: int, validate: Any = None) -> Any:
        return self._run.steps(state, images_per_step=images_per_step)


def dice(scores: Tensor, truth: Tensor) -> float:
    found = scores > 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def mean_dice(method: Any, marked: str, seen: Any = lambda x: x) -> float:
    values = []
    for t in range(1000, 1008):
        task = squares(t, marked)
        assert task.query_masks is not None
        support = replace(task.support, inputs=seen(task.support.inputs))
        predictor = method.adapt(support)
        assert isinstance(predictor, Predictor)
        values.append(dice(predictor.predict(seen(task.query)), task.query_masks))
    return float(np.mean(values))


# --- PANet ---------------------------------------------------------------------------------------


def large(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def plain_prototype(features: Tensor, masks: Tensor) -> Tensor:
    means = [(f * m).sum((1, 2)) / m.sum() for f, m in zip(features, masks, strict=True) if m.any()]
    return torch.stack(means).mean(0)


def plain_scores(features: Tensor, prototypes: list[Tensor]) -> Tensor:
    """Equation 3's exponents of maps, enlarged; a loop over prototypes."""
    cosines = [F.cosine_similarity(features, p.view(1, -1, 1, 1), dim=1) * 20.0 for p in prototypes]
    return large(torch.stack(cosines, dim=1))


@pytest.mark.parametrize("n_way", [1, 2])
def test_panets_loss_is_the_papers_two_terms_written_out(n_way: int) -> None:
    torch.manual_seed(1)
    backbone = SmallConv().eval()
    task = squares(4, n_way=n_way)
    masks, truth = task.support.masks, task.query_masks
    assert masks is not None
    assert truth is not None
    maps, asked = backbone.feature_map(task.support.inputs), backbone.feature_map(task.query)
    background = ~masks.any(1)
    own = [plain_prototype(large(maps), m) for m in (background, *masks.unbind(1))]
    scores = plain_scores(asked, own)
    label = torch.zeros(truth.shape[0], SIZE, SIZE, dtype=torch.int64)
    for k in range(n_way):
        label[truth[:, k]] = k + 1
    p = scores.softmax(1).gather(1, label[:, None]).log()
    segmentation = -p.mean().item()
    # Back again: the queries' own masks, as predicted, segment each class's support images.
    found = scores.argmax(1)
    total = 0.0
    for k in range(n_way):
        if not (found == k + 1).any():
            continue
        theirs = [plain_prototype(large(asked), found == j) for j in (0, k + 1)]
        q = plain_scores(maps, theirs).softmax(1)
        for i in range(len(maps)):
            right = torch.where(masks[i, k], q[i, 1], q[i, 0])[masks[i, k] | background[i]]
            total -= right.log().mean().item() / (len(maps) * n_way)
    assert total > 0
    plain = PANet(align=0.0).loss(backbone, task)
    assert plain.item() == pytest.approx(segmentation, rel=1e-4)
    both = PANet(align=0.5).loss(backbone, task)
    assert both.item() == pytest.approx(segmentation + 0.5 * total, rel=1e-4)


def test_alignment_says_nothing_of_a_class_that_is_predicted_nowhere() -> None:
    maps, asked = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    nowhere = torch.zeros(2, 2, 8, 8)
    nowhere[:, 0] = 1.0
    assert alignment_loss(maps, masks, asked, nowhere, 20.0).item() == 0.0


def test_panet_learns_features_on_which_prototypes_segment_better_than_before() -> None:
    method = PANet(lr=0.02)
    torch.manual_seed(0)
    before = fine().eval()
    learned, backbone, run = trained(method, 60)
    assert all(name.startswith("backbone.") for name in learned)
    backbone.eval()
    with torch.no_grad():
        for marked in ("bright", "dark"):
            first = mean_dice(method, marked, before.feature_map)
            assert mean_dice(method, marked, backbone.feature_map) > first + 0.1
    assert np.mean(run.losses[-10:]) < 0.7 * np.mean(run.losses[:10])


def test_panet_predicts_from_images_in_validation_what_it_predicts_from_maps() -> None:
    torch.manual_seed(0)
    backbone, task, method = SmallConv().eval(), squares(2), PANet()
    with torch.no_grad():
        seen = method.answers(backbone, task.support).predict(task.query)
        maps = replace(task.support, inputs=backbone.feature_map(task.support.inputs))
        expected = method.adapt(maps).predict(backbone.feature_map(task.query))
    assert torch.equal(seen, expected)


def test_panets_rate_falls_as_the_paper_says() -> None:
    rates = [PANet().rate(step, 30_000) for step in (0, 9_999, 10_000, 29_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    (group,) = PANet().optimiser([nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)


# --- MAML on a U-Net -----------------------------------------------------------------------------


def small_unet(channels: int = 1) -> UNet:
    torch.manual_seed(3)
    return UNet(channels, 1, 2).double()


def doubled(task: Task) -> Task:
    support = replace(task.support, inputs=task.support.inputs.double())
    return replace(task, support=support, query=task.query.double())


def unrolled(network: UNet, task: Task, n_steps: int, lr: float, *, second: bool) -> Any:
    """The queries' loss after plain gradient steps, and the weights these end with."""
    start = dict(network.named_parameters())
    weights = {
        k: v.repeat(task.support.n_way, *[1] * (v.ndim - 1)) if k.startswith("last.") else v
        for k, v in start.items()
    }
    assert task.support.masks is not None
    assert task.query_masks is not None
    for _ in range(n_steps):
        loss = mask_loss(
            functional_call(network, weights, (task.support.inputs,)), task.support.masks.double()
        )
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=second)
        weights = {k: v - lr * s for (k, v), s in zip(weights.items(), slopes, strict=True)}
    outer = mask_loss(functional_call(network, weights, (task.query,)), task.query_masks.double())
    return outer, weights


@pytest.mark.parametrize("n_way", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_second_order_gradient_is_that_of_the_steps_written_out(
    n_way: int, recompute: bool
) -> None:
    network, task = small_unet(), doubled(squares(5, n=2, n_way=n_way))
    expected, _ = unrolled(network, task, 2, 0.3, second=True)
    slopes = torch.autograd.grad(expected, list(network.parameters()))
    found = MetaUNet(inner_lr=0.3, inner_steps=2, recompute=recompute).loss(network, task)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    mine = torch.autograd.grad(found, list(network.parameters()))
    for a, b in zip(mine, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_the_first_order_gradient_is_the_one_at_the_adapted_weights() -> None:
    network, task = small_unet(), doubled(squares(5, n=2, n_way=2))
    outer, weights = unrolled(network, task, 2, 0.3, second=False)
    slopes = dict(zip(weights, torch.autograd.grad(outer, list(weights.values())), strict=True))
    found = MetaUNet(inner_lr=0.3, inner_steps=2, first_order=True).loss(network, task)
    mine = torch.autograd.grad(found, list(network.parameters()))
    second, _ = unrolled(network, task, 2, 0.3, second=True)
    full = torch.autograd.grad(second, list(network.parameters()))
    far = 0.0
    for (name, _), a, c in zip(network.named_parameters(), mine, full, strict=True):
        # One learned row is the start of both classes' rows: its gradient is the sum of theirs.
        b = slopes[name].sum(0, keepdim=True) if name.startswith("last.") else slopes[name]
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
        far = max(far, float((a - c).abs().max()))
    assert far > 1e-4  # and it is not the other one


def test_a_learned_start_segments_after_steps_that_are_too_few_for_a_random_one() -> None:
    method = MetaUNet(
        inner_lr=0.5,
        inner_steps=3,
        inner_steps_test=3,
        width=4,
        meta_lr=0.01,
        meta_batch=2,
        first_order=True,
    )
    backbone = SmallConv().eval()
    torch.manual_seed(0)
    fresh = {f"network.{k}": v for k, v in UNet(1, 1, 4).state_dict().items()}
    method.prepare(backbone, fresh)
    before = [mean_dice(method, marked) for marked in ("bright", "dark")]
    learned, *_ = trained(method, 40)
    method.prepare(backbone, learned)
    after = [mean_dice(method, marked) for marked in ("bright", "dark")]
    assert min(after) > 0.6
    assert sum(after) > sum(before) + 0.8


def test_no_statistics_pass_between_queries_or_tasks_and_nothing_given_is_changed() -> None:
    method = MetaUNet(inner_lr=0.1, inner_steps_test=2, width=4)
    torch.manual_seed(0)
    method.prepare(SmallConv(), {f"network.{k}": v for k, v in UNet(1, 1, 4).state_dict().items()})
    task = squares(7, n_way=2)
    kept = {k: v.clone() for k, v in method.prepared.state_dict().items()}
    with torch.inference_mode():
        predictor = method.adapt(task.support)
        together = predictor.predict(task.query)
        for i, query in enumerate(task.query):
            assert torch.equal(predictor.predict(query[None])[0], together[i])
        method.adapt(squares(8, n_way=2).support)
        assert torch.equal(method.adapt(task.support).predict(task.query), together)
    assert all(torch.equal(v, kept[k]) for k, v in method.prepared.state_dict().items())
    # Classes in another order, and support images in another order.
    assert task.support.masks is not None
    swapped = replace(task.support, masks=task.support.masks.flip(1))
    assert torch.allclose(method.adapt(swapped).predict(task.query).flip(1), together, atol=1e-4)
    order = [2, 0, 1]
    moved = replace(
        task.support, inputs=task.support.inputs[order], masks=task.support.masks[order]
    )
    assert torch.allclose(method.adapt(moved).predict(task.query), together, atol=1e-4)
    assert predictor.n_adapted == sum(
        v.numel() * (2 if k.startswith("last.") else 1) for k, v in kept.items()
    )


# --- UniverSeg -----------------------------------------------------------------------------------


def test_cross_convolution_is_a_convolution_of_every_pair() -> None:
    torch.manual_seed(0)
    cross = CrossConv(3, 5, 4)
    query, support = torch.randn(2, 3, 6, 7), torch.randn(2, 4, 5, 6, 7)
    found = cross(query, support)
    assert found.shape == (2, 4, 4, 6, 7)
    for b in range(2):
        for i in range(4):
            pair = torch.cat([query[b], support[b, i]])[None]
            expected = F.conv2d(pair, cross.conv.weight, cross.conv.bias, padding=1)[0]
            torch.testing.assert_close(found[b, i], expected, rtol=1e-4, atol=1e-5)
    shared = cross(query, support[:1])
    torch.testing.assert_close(shared[1], cross(query[1:], support[:1])[0])


def naive_net(net: UniverSegNet, image: Tensor, support: Tensor, masks: Tensor) -> Tensor:
    """The network for one query, support image by support image."""

    def block(b: Any, u: Tensor, vs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        zs = [b.cross.conv(torch.cat([u, v])[None])[0] for v in vs]
        mean = sum(zs[1:], zs[0]) / len(zs)
        seen = F.leaky_relu(b.query(mean[None]), 0.01)[0]
        return seen, [F.leaky_relu(b.support(z[None]), 0.01)[0] for z in zs]

    def half(x: Tensor) -> Tensor:
        return F.max_pool2d(x[None], 2)[0]

    def twice(x: Tensor) -> Tensor:
        up = nn.UpsamplingBilinear2d(scale_factor=2)
        return up(x[None])[0]  # type: ignore[no-any-return]

    u = image
    vs = [torch.cat([s, m.float()]) for s, m in zip(support, masks, strict=True)]
    passed = []
    for i, b in enumerate(net.down):
        if i:
            u, vs = half(u), [half(v) for v in vs]
        u, vs = block(b, u, vs)
        passed.append((u, vs))
    passed.pop()
    for b in net.up:
        beside, theirs = passed.pop()
        u = torch.cat([twice(u), beside])
        vs = [torch.cat([twice(v), w]) for v, w in zip(vs, theirs, strict=True)]
        u, vs = block(b, u, vs)
    found: Tensor = net.last(u[None])
    return found[0]


def test_the_network_is_the_papers_for_each_query_and_support_image_apart() -> None:
    torch.manual_seed(0)
    net = UniverSegNet(1, 6, 3)
    task = squares(1)
    assert task.support.masks is not None
    with torch.no_grad():
        found = net(task.query, task.support.inputs, task.support.masks)
        for i, image in enumerate(task.query):
            expected = naive_net(net, image, task.support.inputs, task.support.masks)
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_neither_order_nor_copies_of_support_images_change_the_answer() -> None:
    torch.manual_seed(0)
    net, task = UniverSegNet(1, 6, 3).double(), doubled(squares(1))
    assert task.support.masks is not None
    images, masks = task.support.inputs, task.support.masks
    with torch.no_grad():
        found = net(task.query, images, masks)
        for order in ([2, 0, 1], [1, 0, 2], [0, 1, 2, 0, 1, 2]):
            again = net(task.query, images[order], masks[order])
            torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(net(task.query, images, ~masks), found)
        assert not torch.allclose(net(task.query, images[:2], masks[:2]), found)


def test_the_papers_network_has_the_papers_size() -> None:
    n = sum(p.numel() for p in UniverSegNet(1, 64, 4).parameters())
    # Seven blocks of one cross-convolution and two convolutions, and the last one.
    first = (1 + 2) * 64 * 9 + 64
    down, up = 128 * 64 * 9 + 64, 256 * 64 * 9 + 64
    assert n == first + 3 * down + 3 * up + 7 * 2 * (64 * 64 * 9 + 64) + 65
    assert n == pytest.approx(1.18e6, rel=0.01)


def test_what_is_marked_in_the_support_decides_what_is_found() -> None:
    method = UniverSeg(width=8, levels=3, lr=3e-3, cross_entropy=4.0, augment=False)
    learned, backbone, _ = trained(method, 200)
    method.prepare(backbone.eval(), learned)
    # Who marks both squares whatever the support says has a Dice of two thirds at most.
    assert mean_dice(method, "bright") + mean_dice(method, "dark") > 4 / 3
    assert min(mean_dice(method, marked) for marked in ("bright", "dark")) > 0.5
    assert method.adapt(squares(3).support).n_adapted == 0


def test_classes_are_asked_about_apart_and_queries_too() -> None:
    method = UniverSeg(width=4, levels=2)
    torch.manual_seed(0)
    net = UniverSegNet(1, 4, 2)
    method.prepare(SmallConv(), {f"network.{k}": v for k, v in net.state_dict().items()})
    task = squares(9, n_way=2)
    assert task.support.masks is not None
    together = method.adapt(task.support).predict(task.query)
    for k in range(2):
        one = replace(task.support, masks=task.support.masks[:, k : k + 1], n_way=1)
        assert torch.equal(method.adapt(one).predict(task.query)[:, 0], together[:, k])
    assert torch.equal(method.adapt(task.support).predict(task.query[1:2])[0], together[1])


def test_soft_dice_is_the_mean_of_every_image_and_class() -> None:
    scores = torch.randn(2, 2, 4, 4)
    truth = torch.randint(0, 2, (2, 2, 4, 4)).float()
    expected = []
    for b in range(2):
        for k in range(2):
            p, y = 1 / (1 + np.exp(-scores[b, k].numpy())), truth[b, k].numpy()
            expected.append(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    assert soft_dice_loss(scores, truth).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_changed_task_is_the_same_task_in_another_light() -> None:
    method = UniverSeg(width=4, levels=2)
    method.network(SmallConv())
    task = squares(9)
    truth = task.query_masks
    assert task.support.masks is not None
    assert truth is not None
    kinds = set()
    for seed in range(30):
        torch.manual_seed(seed)
        images, asked, masks, true = method._changed(
            task.support.inputs, task.query, task.support.masks, truth
        )
        inverted = bool(asked[true].mean() > asked[~true].mean())  # what is marked is dark
        # In each image what the mask covers stays what it covered, up to the light.
        for x, m, x0, m0 in zip(asked, true, task.query, truth, strict=True):
            inside = sorted(x[m].tolist())
            before = sorted(x0[m0].tolist())
            mirrored = sorted((1 - x0[m0]).tolist())
            assert inside == pytest.approx(before) or inside == pytest.approx(mirrored, abs=1e-6)
        assert torch.equal(masks.sum((1, 2, 3)), task.support.masks.sum((1, 2, 3)))
        assert images.shape == task.support.inputs.shape
        kinds.add((inverted, float(true.float().argmax())))
    assert len(kinds) > 4


def test_images_that_cannot_be_halved_so_often_are_refused_with_the_numbers() -> None:
    with pytest.raises(MedbenchError, match=r"levels=6 .* 16 pixels"):
        UniverSeg(levels=6).network(SmallConv())


@pytest.mark.parametrize("method", [MetaUNet(), UniverSeg(levels=2)])
def test_without_what_was_learned_there_is_one_clear_error(method: Any) -> None:
    with pytest.raises(ContractError, match="Meta-train it first"):
        method.prepare(SmallConv(), {"backbone.x": torch.zeros(1)})
    with pytest.raises(ContractError, match="before prepare"):
        method.adapt(squares(0).support)
    assert math.isfinite(method.lr)
