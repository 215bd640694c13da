"""Scores of boxes agree with plain loops over the definitions, and with values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medbench.api import Boxes, Detections
from medbench.errors import ContractError
from medbench.metrics import detection, sensitivity
from medbench.metrics.boxes import iou


def boxes(*rows, labels=None, ignored=None):
    xyxy = np.array(rows, np.float64).reshape(-1, 4)
    n = len(xyxy)
    return Boxes(
        xyxy,
        np.zeros(n, np.int64) if labels is None else np.array(labels, np.int64),
        np.zeros(n, bool) if ignored is None else np.array(ignored, bool),
    )


def found(*rows, scores, labels=None):
    plain = boxes(*rows, labels=labels)
    return Detections(plain.xyxy, plain.labels, np.array(scores, np.float64))


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / either if either else 0.0


def average_precision_by_loops(predicted, truth, way, threshold):
    """COCO's rules written out: greedy matching in each image, 101 recalls, best precision right
    of each."""
    marks = []
    n_true = 0
    for ours, theirs in zip(predicted, truth, strict=True):
        wanted = [tuple(b) for b, k in zip(theirs.xyxy, theirs.labels, strict=True) if k == way]
        n_true += len(wanted)
        taken = set()
        order = sorted(
            (k for k in range(len(ours.labels)) if ours.labels[k] == way),
            key=lambda k: -ours.scores[k],
        )
        for k in order[:100]:
            best, best_overlap = None, threshold
            for j, box in enumerate(wanted):
                value = overlap(tuple(ours.xyxy[k]), box)
                if j not in taken and value >= best_overlap:
                    best, best_overlap = j, value
            if best is not None:
                taken.add(best)
            marks.append((ours.scores[k], best is not None))
    if not n_true:
        return np.nan
    marks.sort(key=lambda mark: -mark[0])
    points = []
    right = 0
    for count, (_, hit) in enumerate(marks, 1):
        right += hit
        points.append((right / n_true, right / count))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((p for r, p in points if r >= recall), default=0.0)
    return total / 101


def sensitivity_by_loops(predicted, truth, way, rate):
    """Every threshold tried in turn."""
    every = [*sorted({s for p in predicted for s in p.scores}), np.inf]
    n_true = sum(int((t.labels == way).sum()) for t in truth)
    best = 0.0
    for threshold in every:
        hits = false = 0
        for ours, theirs in zip(predicted, truth, strict=True):
            kept = [
                tuple(b)
                for b, s, k in zip(ours.xyxy, ours.scores, ours.labels, strict=True)
                if k == way and s >= threshold
            ]
            wanted = [tuple(b) for b, k in zip(theirs.xyxy, theirs.labels, strict=True) if k == way]
            hits += sum(any(overlap(b, w) >= 0.5 for b in kept) for w in wanted)
            false += sum(all(overlap(b, w) < 0.5 for w in wanted) for b in kept)
        if false / len(truth) <= rate:
            best = max(best, hits / n_true)
    return best


def drawn(seed, n_images=8, n_way=2):
    """Boxes, and detections of which some are near them and some anywhere; scores tie."""
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(n_images):
        n = int(rng.integers(0, 6))
        corner, size = rng.uniform(0, 80, (n, 2)), rng.uniform(5, 25, (n, 2))
        true = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(0, n_way, n)
        truth.append(boxes(*true, labels=labels))
        near = true + rng.normal(0, 1.5, true.shape)
        near = near[rng.random(n) < 0.8]
        corner, size = rng.uniform(0, 80, (3, 2)), rng.uniform(5, 25, (3, 2))
        every = np.concatenate([near, np.concatenate([corner, corner + size], 1)])
        names = np.concatenate([labels[: len(near)], rng.integers(0, n_way, 3)])
        predicted.append(found(*every, scores=rng.random(len(every)), labels=names))
    return predicted, truth


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_plain_loops(seed):
    predicted, truth = drawn(seed)
    values = detection(predicted, truth, 2)
    for way in range(2):
        steps = [
            average_precision_by_loops(predicted, truth, way, t) for t in np.linspace(0.5, 0.95, 10)
        ]
        assert values["ap50"][way] == pytest.approx(steps[0], abs=1e-9)
        assert values["ap50_95"][way] == pytest.approx(np.mean(steps), abs=1e-9)
    assert 0.05 < np.mean(values["ap50_95"]) < np.mean(values["ap50"]) < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_sensitivity_equals_every_threshold_tried_in_turn(seed):
    predicted, truth = drawn(seed)
    rates = (0.0, 0.125, 0.5, 1.0, 8.0)
    values = sensitivity(predicted, truth, 2, false_positives=rates)
    for way in range(2):
        expected = [sensitivity_by_loops(predicted, truth, way, rate) for rate in rates]
        assert values[way].tolist() == pytest.approx(expected)
    assert detection(predicted, truth, 2)["froc"][0] == pytest.approx(
        sensitivity(predicted, truth, 2)[0].mean()
    )


def test_average_precision_by_hand():
    truth = [boxes(A, B), boxes(C)]
    predicted = [found(A, (50, 50, 60, 60), scores=[0.9, 0.8]), found(C, scores=[0.7])]
    # Recall 1/3 at precision 1, then a false one, then recall 2/3 at precision 2/3; B is missed.
    values = detection(predicted, truth, 1)
    assert values["ap50"][0] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert values["ap50_95"][0] == pytest.approx(values["ap50"][0])


def test_a_box_of_nine_tenths_counts_up_to_its_overlap():
    values = detection([found((0, 0, 10, 9), scores=[1.0])], [boxes(A)], 1)
    assert values["ap50"][0] == pytest.approx(1.0)
    assert values["ap50_95"][0] == pytest.approx(9 / 10)  # 0.5 ... 0.9 pass, 0.95 does not


def test_a_second_detection_of_one_box_is_false_for_precision_and_nothing_for_froc():
    predicted, truth = [found(A, A, B, scores=[0.9, 0.8, 0.7])], [boxes(A, B)]
    assert detection(predicted, truth, 1)["ap50"][0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert sensitivity(predicted, truth, 1, false_positives=(0.0,))[0, 0] == 1.0


def test_sensitivity_by_hand():
    far = (50, 50, 60, 60)
    predicted = [
        found(A, far, B, scores=[0.9, 0.8, 0.7]),
        found(far, C, scores=[0.6, 0.5]),
    ]
    truth = [boxes(A, B), boxes(C)]
    rates = (0.0, 0.4, 0.5, 0.99, 1.0)
    values = sensitivity(predicted, truth, 1, false_positives=rates)[0]
    assert values.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1.0])


def test_a_score_shared_with_a_false_positive_cannot_be_kept_without_it():
    predicted = [found(A, (50, 50, 60, 60), scores=[0.5, 0.5])]
    values = sensitivity(predicted, [boxes(A)], 1, false_positives=(0.0, 1.0))
    assert values[0].tolist() == [0.0, 1.0]


def test_ignored_regions_count_neither_way():
    truth = [boxes(A, (40, 40, 80, 80), ignored=[False, True])]
    predicted = [found(A, (45, 45, 55, 55), scores=[0.5, 0.9])]
    values = detection(predicted, truth, 1)
    assert values["ap50"][0] == pytest.approx(1.0)
    assert values["froc"][0] == 1.0
    plain = [boxes(A)]
    assert detection(predicted, plain, 1)["ap50"][0] == pytest.approx(0.5)
    assert sensitivity(predicted, plain, 1, false_positives=(0.0,))[0, 0] == 0.0


def test_a_class_without_boxes_is_left_out_and_one_without_detections_is_zero():
    truth = [boxes(A, labels=[1])]
    predicted = [found(A, scores=[1.0], labels=[0])]
    values = detection(predicted, truth, 3)
    for name in ("ap50", "ap50_95", "froc"):
        assert np.isnan(values[name][[0, 2]]).all()
        assert values[name][1] == 0.0
    nothing = detection([found(scores=[])], truth, 3)
    assert nothing["ap50"][1] == nothing["froc"][1] == 0.0


def test_the_first_of_all_boxes_is_matched_like_any_other():
    # pycocotools takes an identity of 0 for "no match".
    values = detection([found(A, scores=[1.0])], [boxes(A)], 1)
    assert values["ap50"][0] == pytest.approx(1.0)


def test_only_the_best_detections_of_an_image_count():
    rows = [(50 + k, 50, 60 + k, 60) for k in range(5)]
    predicted = [found(*rows, A, scores=[0.9] * 5 + [0.1])]
    assert detection(predicted, [boxes(A)], 1, max_detections=5)["ap50"][0] == 0.0
    assert detection(predicted, [boxes(A)], 1)["ap50"][0] == pytest.approx(1 / 6)


def test_nothing_is_printed(capsys):
    detection([found(A, scores=[1.0])], [boxes(A)], 1)
    assert capsys.readouterr().out == ""


def test_overlap_of_every_pair():
    first, second = np.array([A, B], float), np.array([(5, 0, 15, 10), B], float)
    assert iou(first, second) == pytest.approx(np.array([[1 / 3, 0], [0, 1]]))


@pytest.mark.parametrize(
    ("predicted", "said"),
    [
        ([], "0 images with detections for 1 query images"),
        ([found((0, 0, np.nan, 1), scores=[1.0])], "hold NaN"),
        ([found(A, scores=[np.inf])], "hold NaN or infinite"),
        ([found((10, 0, 0, 10), scores=[1.0])], "corners in the wrong order"),
        (
            [found(A, scores=[1.0], labels=[1])],
            r"labels 1\.\.\.1 \(int64\); expected whole numbers 0\.\.\.0",
        ),
        ([found(A, scores=[1.0, 2.0])], r"expected \(n, 4\), \(n,\) and \(n,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(predicted, said):
    with pytest.raises(ContractError, match=said):
        detection(predicted, [boxes(A)], 1)
