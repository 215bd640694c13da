"""Methods that answer with boxes, against plain computations and tasks whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medbench.api import Boxes, Detections, Support
from medbench.metrics import detection
from medbench_algorithms.dense.prototype_boxes import PrototypeBoxes
from medbench_algorithms.dense.template_matching import TemplateMatching, correlation
from medbench_algorithms.dense.windows import best_apart, typical_sizes, windows_of


def scene(n: int, g: torch.Generator) -> tuple[Tensor, tuple[Boxes, ...]]:
    """Noisy images ``(n, 1, 32, 32)`` with a filled square (0) and a hollow one (1), apart."""
    images = 0.15 * torch.randn(n, 1, 32, 32, generator=g)
    boxes = []
    for image in images:
        y0, x0, y1, x1 = torch.randint(1, 6, (4,), generator=g).tolist()
        x1 += 17
        image[0, y0 : y0 + 8, x0 : x0 + 8] += 1.0
        image[0, y1 : y1 + 10, x1 : x1 + 10] += 1.0
        image[0, y1 + 2 : y1 + 8, x1 + 2 : x1 + 8] -= 1.0
        xyxy = np.array([[x0, y0, x0 + 8, y0 + 8], [x1, y1, x1 + 10, y1 + 10]], np.float64)
        boxes.append(Boxes(xyxy, np.array([0, 1]), np.zeros(2, bool)))
    return images, tuple(boxes)


def features(images: Tensor) -> Tensor:
    """Maps of half the size: brightness, and how strongly it changes."""
    bright = torch.nn.functional.avg_pool2d(images, 2)
    edges = (images - torch.nn.functional.avg_pool2d(images, 3, 1, 1)).abs()
    return torch.cat([bright, torch.nn.functional.avg_pool2d(edges, 2)], dim=1)


METHODS: dict[str, tuple[Any, Any]] = {
    "templates": (TemplateMatching(templates=4), lambda images: images),
    "prototypes": (PrototypeBoxes(), features),
    "plain prototypes": (PrototypeBoxes(whiten=False), features),
}


def found_by(name: str, n: int = 4) -> tuple[list[Detections], tuple[Boxes, ...]]:
    g = torch.Generator().manual_seed(0)
    method, seen = METHODS[name]
    images, boxes = scene(4, g)
    query, truth = scene(n, g)
    labels = torch.ones(4, 2, dtype=torch.int64)
    support = Support(seen(images), labels, 2, (0,), (32, 32), None, boxes)
    return method.adapt(support).predict(seen(query)), truth


@pytest.mark.parametrize("name", ["templates", "prototypes"])
def test_objects_of_two_classes_are_found_and_told_apart(name: str) -> None:
    found, truth = found_by(name)
    scores = detection(found, truth, 2)
    assert scores["ap50"].min() > 0.85
    for one in found:
        assert one.xyxy.min() >= 0
        assert one.xyxy.max() <= 32


def test_a_class_without_a_box_in_the_support_is_never_found() -> None:
    g = torch.Generator().manual_seed(0)
    images, boxes = scene(2, g)
    only = tuple(Boxes(b.xyxy[:1], b.labels[:1], b.ignored[:1]) for b in boxes)
    labels = torch.tensor([[1, 0], [1, 0]])
    for method, seen in METHODS.values():
        support = Support(seen(images), labels, 2, (0,), (32, 32), None, only)
        (one,) = method.adapt(support).predict(seen(images[:1]))
        assert set(one.labels.tolist()) == {0}


def test_correlation_is_pearsons_of_every_window() -> None:
    g = torch.Generator().manual_seed(1)
    image, template = torch.rand(1, 12, 14, generator=g), torch.rand(1, 4, 5, generator=g)
    found = correlation(image, template)
    assert found.shape == (12, 14)
    for y, x in ((3, 4), (6, 2), (8, 10)):
        window = image[0, y - 1 : y + 3, x - 2 : x + 3].flatten().numpy()
        expected = np.corrcoef(window, template.flatten().numpy())[0, 1]
        assert float(found[y, x]) == pytest.approx(expected, abs=1e-5)
    assert float(found.abs().max()) <= 1 + 1e-5
    assert not correlation(torch.ones(1, 9, 9), template).any()


def test_of_boxes_that_overlap_the_better_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [20.0, 0, 30, 10], [28.0, 0, 40, 10]])
    kept, scores = best_apart(boxes, torch.tensor([0.5, 0.9, 0.1, 0.2]), 0.3, 9, (32, 32))
    assert scores.tolist() == pytest.approx([0.9, 0.2, 0.1])
    assert kept[1].tolist() == [28, 0, 32, 10]  # cut at the border
    assert len(best_apart(boxes, torch.ones(4), 0.3, 1, (32, 32))[0]) == 1


def test_windows_lie_at_every_place_in_every_size() -> None:
    sizes = typical_sizes(torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 4, 4], [0.0, 0, 6, 4]]), 2)
    assert sizes.tolist() == [[3, 3], [6, 4]]
    windows = windows_of(sizes, 2, 3)
    assert windows.shape == (12, 4)
    assert windows[0].tolist() == [-1, -1, 2, 2]
    assert windows[-1].tolist() == [-0.5, -0.5, 5.5, 3.5]
