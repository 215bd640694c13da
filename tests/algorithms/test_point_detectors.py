"""The small FCOS, from scratch and meta-trained, against its equations written out plainly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from medbench.api import Boxes, Support, Task
from medbench.metrics import detection
from medbench_algorithms.dense.fcos import (
    PointNet,
    Points,
    ScratchFCOS,
    aims_of,
    point_loss,
    turned,
)
from medbench_algorithms.dense.meta_fcos import MetaFCOS

from .conftest import FakeRun, SmallConv
from .test_detection import scene
from .test_meta_segmentation import Unvalidated

SIZE = (32, 32)


def boxes_of(rows: list[list[float]], labels: list[int], ignored: list[bool]) -> Boxes:
    return Boxes(np.array(rows, np.float64), np.array(labels), np.array(ignored))


def test_a_point_belongs_to_the_smallest_box_around_it_and_knows_its_edges() -> None:
    boxes = boxes_of(
        [[0, 0, 20, 20], [4, 4, 10, 12], [22, 22, 30, 30], [6, 6, 28, 8]],
        [0, 1, 0, 0],
        [False, False, True, True],
    )
    aims = aims_of([boxes], 2, SIZE, torch.zeros(1))
    for i in range(16):
        for j in range(16):
            y, x = 2 * i + 1, 2 * j + 1  # the middle of two by two pixels
            inside = [
                k
                for k, (x0, y0, x1, y1) in enumerate(boxes.xyxy)
                if x0 < x < x1 and y0 < y < y1 and not boxes.ignored[k]
            ]
            assert bool(aims.inside[0, i, j]) == bool(inside)
            told = aims.classes[0, :, i, j].tolist()
            if inside:
                k = max(inside)  # the second box is the smaller
                assert told == [float(boxes.labels[k] == c) for c in (0, 1)]
                x0, y0, x1, y1 = boxes.xyxy[k]
                assert aims.edges[0, :, i, j].tolist() == [x - x0, y - y0, x1 - x, y1 - y]
            else:
                assert told == [0.0, 0.0]
            among = any(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in boxes.xyxy[boxes.ignored])
            assert bool(aims.counted[0, i, j]) == (bool(inside) or not among)


def test_the_loss_is_the_papers_three_terms_written_out() -> None:
    g = torch.Generator().manual_seed(0)
    boxes = boxes_of([[2, 3, 11, 9], [16, 16, 30, 31]], [0, 1], [False, False])
    empty = boxes_of([], [], [])
    empty = Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool))
    found = torch.randn(2, 7, 16, 16, generator=g, dtype=torch.float64)
    aims = aims_of([boxes, empty], 2, SIZE, found)
    focal = overlap = centre = 0.0
    n = int(aims.inside.sum())
    for b in range(2):
        for i in range(16):
            for j in range(16):
                for k in range(2):
                    p = 1 / (1 + math.exp(-float(found[b, k, i, j])))
                    if aims.classes[b, k, i, j]:
                        focal -= 0.25 * (1 - p) ** 2 * math.log(p)
                    else:
                        focal -= 0.75 * p**2 * math.log(1 - p)
                if not aims.inside[b, i, j]:
                    continue
                w, n_, e, s = aims.edges[b, :, i, j].tolist()
                w2, n2, e2, s2 = (2 * math.exp(v) for v in found[b, 2:6, i, j].tolist())
                both = (min(w, w2) + min(e, e2)) * (min(n_, n2) + min(s, s2))
                either = (w + e) * (n_ + s) + (w2 + e2) * (n2 + s2) - both
                overlap -= math.log(both / either)
                aim = math.sqrt(min(w, e) / max(w, e) * min(n_, s) / max(n_, s))
                q = 1 / (1 + math.exp(-float(found[b, 6, i, j])))
                centre -= aim * math.log(q) + (1 - aim) * math.log(1 - q)
    assert n > 20
    assert point_loss(found, aims).item() == pytest.approx((focal + overlap + centre) / n)


def test_images_without_a_box_have_a_loss_and_slopes() -> None:
    none = Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool))
    net = PointNet(1, 1, 2)
    images = torch.randn(1, 1, 32, 32)
    loss = point_loss(net(images), aims_of([none], 1, SIZE, images))
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_points_that_say_where_edges_are_become_these_boxes() -> None:
    boxes = boxes_of([[2, 3, 11, 9], [16, 16, 30, 31]], [0, 1], [False, False])
    aims = aims_of([boxes], 2, SIZE, torch.zeros(1))
    centre = torch.full((1, 16, 16), -3.0)
    for x0, y0, x1, y1 in boxes.xyxy:
        centre[0, int((y0 + y1) / 4), int((x0 + x1) / 4)] = 3.0
    said = torch.cat([20 * aims.classes[0] - 10, (aims.edges[0] / 2).log(), centre])

    class Says(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return said[None]

    (one,) = Points(Says(), 2, 0, 0.5, 50).predict(torch.zeros(1, 1, 32, 32))
    best = one.scores > 0.5
    assert one.labels[best].tolist() == [0, 1]
    np.testing.assert_allclose(one.xyxy[best], boxes.xyxy, atol=1e-4)
    p, q = 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-3))
    np.testing.assert_allclose(one.scores[best], p * q, rtol=1e-5)


def test_boxes_are_turned_and_mirrored_with_their_image() -> None:
    image = torch.zeros(12, 16)
    image[2:5, 7:13] = 1.0
    box = boxes_of([[7, 2, 13, 5]], [0], [False])
    for turns in range(4):
        for mirror in (False, True):
            x = torch.rot90(image, turns, (-2, -1))
            x = x.flip(-1) if mirror else x
            ys, xs = torch.nonzero(x, as_tuple=True)
            (found,) = turned(box, turns, mirror, (12, 16)).xyxy.tolist()
            extent = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert found == [float(v) for v in extent]


def support_of(n: int, seed: int) -> Support:
    images, boxes = scene(n, torch.Generator().manual_seed(seed))
    labels = torch.ones(n, 2, dtype=torch.int64)
    return Support(images, labels, 2, (seed,), SIZE, boxes=boxes)


def test_it_finds_and_tells_apart_what_its_support_shows_by_its_seed_alone() -> None:
    query, truth = scene(4, torch.Generator().manual_seed(9))
    support = support_of(4, 1)
    torch.manual_seed(5)  # the global state must not matter
    found = ScratchFCOS(steps=150).adapt(support).predict(query)
    assert detection(found, truth, 2)["ap50"].min() > 0.25
    found = ScratchFCOS(steps=5, width=4).adapt(support).predict(query)
    torch.manual_seed(6)
    again = ScratchFCOS(steps=5, width=4).adapt(support).predict(query)
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(found, again, strict=True))
    with torch.inference_mode():
        inside = ScratchFCOS(steps=1, width=2).adapt(support)
        alone = inside.predict(query[2:3])[0]
        assert np.array_equal(alone.scores, inside.predict(query)[2].scores)


@pytest.mark.parametrize("turn", [True, False])
def test_images_are_turned_only_where_that_is_asked_for(
    turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def watched(boxes: Boxes, turns: int, mirror: bool, size: tuple[int, int]) -> Boxes:
        seen.add((turns, mirror))
        return turned(boxes, turns, mirror, size)

    monkeypatch.setattr("medbench_algorithms.dense.fcos.turned", watched)
    ScratchFCOS(steps=20, width=2, turn=turn).adapt(support_of(2, 1))
    quarters = ((0, 1, 2, 3) if SIZE[0] == SIZE[1] else (0, 2)) if turn else (0,)
    assert seen == {(q, m) for q in quarters for m in (False, True)}


def test_the_first_order_gradient_is_the_one_at_the_adapted_weights() -> None:
    torch.manual_seed(2)
    net = PointNet(1, 1, 2)
    support, query = support_of(2, 3), support_of(2, 4)
    task = Task(support, query.inputs, query.labels, query_boxes=query.boxes)

    def plain(weights: dict[str, Tensor], one: Support) -> Tensor:
        assert one.boxes is not None
        found = functional_call(net, weights, (one.inputs,))
        return point_loss(found, aims_of(one.boxes, 2, SIZE, one.inputs))

    weights = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    for k in ("classes.weight", "classes.bias"):
        weights[k] = torch.cat([weights[k], weights[k]]).detach().requires_grad_()
    for _ in range(3):
        slopes = torch.autograd.grad(plain(weights, support), list(weights.values()))
        weights = {
            k: (v - 0.05 * s).detach().requires_grad_()
            for (k, v), s in zip(weights.items(), slopes, strict=True)
        }
    outer = plain(weights, query)
    slopes = torch.autograd.grad(outer, list(weights.values()))
    found = MetaFCOS(inner_lr=0.05, inner_steps=3).loss(net, task)
    assert found.item() == pytest.approx(outer.item(), rel=1e-4)
    mine = torch.autograd.grad(found, list(net.parameters()))
    for k, a, b in zip(weights, mine, slopes, strict=True):
        b = b.sum(0, keepdim=True) if k.startswith("classes") else b
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class SquareBoxes:
    """Source tasks of one kind of square, by turns."""

    n_classes = 2
    ways = (1,)
    images_per_task = 6

    def tasks(self, step: int, count: int = 1, only: Any = None) -> list[Task]:
        return [
            one_kind(step * count + i, (step * count + i) % 2)
            for i in (range(count) if only is None else only)
        ]


def one_kind(number: int, kind: int, n: int = 3) -> Task:
    images, boxes = scene(2 * n, torch.Generator().manual_seed(100 + number))
    own = tuple(
        Boxes(b.xyxy[kind : kind + 1], np.zeros(1, np.int64), np.zeros(1, bool)) for b in boxes
    )
    labels = torch.ones(2 * n, 1, dtype=torch.int64)
    support = Support(images[:n], labels[:n], 1, (number,), SIZE, boxes=own[:n])
    return Task(support, images[n:], labels[n:], query_boxes=own[n:])


def ap50(method: Any) -> float:
    scores = []
    for t in range(4):
        task = one_kind(5000 + t, t % 2)
        found = method.adapt(task.support).predict(task.query)
        assert task.query_boxes is not None
        scores.append(float(detection(found, task.query_boxes, 1)["ap50"][0]))
    return float(np.mean(scores))


def test_a_learned_start_detects_after_few_steps_what_a_random_one_does_not() -> None:
    method = MetaFCOS(
        inner_lr=0.05, inner_steps=3, inner_steps_test=3, width=4, meta_lr=0.01, meta_batch=2
    )
    torch.manual_seed(0)
    backbone = SmallConv().eval()
    start = {f"network.{k}": v for k, v in PointNet(1, 1, 4).state_dict().items()}
    method.prepare(backbone, start)
    before = ap50(method)
    n = 40
    run: Any = Unvalidated(FakeRun(SquareBoxes(), n, n * 12))  # type: ignore[arg-type]
    source: Any = SquareBoxes()
    method.prepare(backbone, method.meta_train(backbone, source, run))
    assert ap50(method) > before + 0.3


def test_scores_are_of_the_networks_logits() -> None:
    net = PointNet(3, 2, 4).eval()
    images = torch.randn(2, 3, 32, 32)
    found = net(images)
    assert found.shape == (2, 7, 16, 16)
    # At the start every point is background (Lin et al. 2017).
    fresh = PointNet(3, 1, 4)
    assert torch.sigmoid(fresh.classes.bias).item() == pytest.approx(0.01)
    for i in range(2):
        torch.testing.assert_close(net(images[i : i + 1])[0], found[i])
