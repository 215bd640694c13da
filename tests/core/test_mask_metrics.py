"""Scores of masks agree with all pairs of distances, with MONAI, and with values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medbench.errors import ContractError
from medbench.metrics import class_means, mean_of_classes, segmentation


def one(predicted, truth, **options):
    """Scores of a single image and class."""
    found = segmentation(np.array(predicted, bool)[None, None], truth[None, None], **options)
    return {name: value.item() for name, value in found.items()}


def blobs(rng, shape, level):
    field = gaussian_filter(rng.normal(size=shape), (0, 0) + (2,) * (len(shape) - 2))
    return field > np.quantile(field, level)


def by_all_pairs(predicted, truth, spacing, tolerance):
    """The definitions, pixel by pixel: no distance transform, no erosion, no tree."""

    def outline(mask):
        points = []
        for place in zip(*np.nonzero(mask), strict=True):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    beside = list(place)
                    beside[axis] += step
                    outside = not 0 <= beside[axis] < mask.shape[axis]
                    if outside or not mask[tuple(beside)]:
                        points.append(place)
        return np.array(sorted(set(points))) * np.array(spacing)

    ours, theirs = outline(predicted), outline(truth)
    distances = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    there, back = np.sort(distances.min(1)), np.sort(distances.min(0))

    def percentile(ordered):
        position = 0.95 * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return {
        "dice": 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()),
        "iou": (predicted & truth).sum() / (predicted | truth).sum(),
        "hd95": max(percentile(there), percentile(back)),
        "nsd": near / (len(there) + len(back)),
    }


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((2, 2, 30, 24), (0.8, 1.3)), ((1, 2, 9, 12, 10), (2.5, 0.7, 0.9))],
    ids=["2-D", "3-D"],
)
def test_every_score_equals_all_pairs_of_surface_points(shape, spacing):
    rng = np.random.default_rng(3)
    truth, predicted = blobs(rng, shape, 0.8), blobs(rng, shape, 0.7)
    found = segmentation(predicted, truth, spacing=spacing, tolerance=1.5)
    for place in np.ndindex(*shape[:2]):
        expected = by_all_pairs(predicted[place], truth[place], spacing, 1.5)
        for name, value in expected.items():
            assert found[name][place] == pytest.approx(value, rel=1e-12), name


# Means over the images of each class, as MONAI 1.6.1 finds them for the masks drawn below.
MONAI = {
    "2-D": (
        (0, (4, 3, 40, 48), (0.8, 1.3)),
        {
            "dice": [0.197566, 0.2809353, 0.1913551],
            "iou": [0.1109801, 0.1637982, 0.1083143],
            "hd95": [8.1373653, 7.1940044, 8.1162748],
            "nsd": [0.2253964, 0.3084871, 0.2522238],
        },
    ),
    "3-D": (
        (1, (3, 2, 12, 14, 10), (2.5, 0.7, 0.9)),
        {
            "dice": [0.084924, 0.2608092],
            "iou": [0.0449169, 0.1546462],
            "hd95": [6.826608, 5.161236],
            "nsd": [0.1545329, 0.410613],
        },
    ),
}


@pytest.mark.parametrize(("drawn", "expected"), MONAI.values(), ids=MONAI)
def test_every_score_equals_monai(drawn, expected):
    seed, shape, spacing = drawn
    rng = np.random.default_rng(seed)
    truth, predicted = blobs(rng, shape, 0.8), blobs(rng, shape, 0.75)
    found = segmentation(predicted, truth, spacing=spacing, tolerance=1.0)
    for name, values in expected.items():
        assert class_means(found[name]) == pytest.approx(values, rel=2e-6), name


def test_a_square_moved_by_one_pixel_by_hand():
    truth = np.zeros((10, 12), bool)
    truth[2:6, 3:7] = True
    moved = np.roll(truth, 1, axis=1)
    found = one(moved, truth, spacing=(3.0, 0.5), tolerance=0.4)
    assert found["dice"] == pytest.approx(2 * 12 / 32)
    assert found["iou"] == pytest.approx(12 / 20)
    # Each outline has 12 pixels. In the top and bottom rows three of four lie on the other
    # outline and one is 0.5 mm beside it; in the two rows between, both columns are 0.5 mm off.
    assert found["hd95"] == pytest.approx(0.5)
    assert found["nsd"] == pytest.approx(12 / 24)
    assert one(moved, truth, spacing=(3.0, 0.5), tolerance=0.5)["nsd"] == 1.0


def test_one_pixel_far_away_is_the_distance_in_millimetres():
    truth, predicted = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    truth[1, 1] = predicted[4, 5] = True
    found = one(predicted, truth, spacing=(2.0, 0.5))
    assert found["hd95"] == pytest.approx(np.hypot(3 * 2.0, 4 * 0.5))
    assert found["dice"] == found["iou"] == found["nsd"] == 0.0


def test_the_95th_percentile_forgives_a_twentieth_of_the_outline():
    truth = np.zeros((4, 120), bool)
    truth[0, :100] = True
    predicted = truth.copy()
    predicted[3, 119] = True
    assert one(predicted, truth)["hd95"] == 0.0
    predicted[3, 100:] = True  # now a sixth lies three rows below
    assert one(predicted, truth)["hd95"] > 3.0


def test_empty_masks_follow_the_stated_rule():
    empty, some = np.zeros((7, 5), bool), np.zeros((7, 5), bool)
    some[2:4, 2:4] = True
    diagonal = np.hypot(6 * 2.0, 4 * 3.0)
    worst = {"dice": 0.0, "iou": 0.0, "hd95": pytest.approx(diagonal), "nsd": 0.0}
    assert one(empty, some, spacing=(2.0, 3.0)) == worst
    assert one(some, empty, spacing=(2.0, 3.0)) == worst
    assert all(np.isnan(v) for v in one(empty, empty).values())


def test_no_answer_is_worse_than_a_missed_mask():
    truth, far = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    truth[0, 0] = far[5, 5] = True
    missed = one(np.zeros((6, 6)), truth)
    assert one(far, truth) == missed


def test_a_perfect_prediction_is_perfect():
    truth = blobs(np.random.default_rng(0), (1, 1, 20, 20), 0.7)[0, 0]
    assert one(truth, truth) == {"dice": 1.0, "iou": 1.0, "hd95": 0.0, "nsd": 1.0}


def test_integer_maps_are_read_as_classes_behind_background():
    truth = np.zeros((1, 2, 4, 4), bool)
    truth[0, 0, 0], truth[0, 1, 3] = True, True
    maps = np.zeros((1, 4, 4), np.int64)
    maps[0, 0], maps[0, 3] = 1, 2
    assert segmentation(maps, truth)["dice"].tolist() == [[1.0, 1.0]]
    assert segmentation(3 * (maps > 0) - maps, truth)["dice"].tolist() == [[0.0, 0.0]]


def test_each_image_may_have_a_spacing_of_its_own():
    truth, predicted = np.zeros((2, 1, 5, 5), bool), np.zeros((2, 1, 5, 5), bool)
    truth[:, :, 0, 0] = predicted[:, :, 0, 4] = True
    found = segmentation(predicted, truth, spacing=np.array([[1.0, 1.0], [1.0, 0.25]]))
    assert found["hd95"].ravel().tolist() == [4.0, 1.0]


def test_means_leave_out_what_was_not_measured():
    values = np.array([[1.0, np.nan, np.nan], [0.5, 0.2, np.nan]])
    means = class_means(values)
    assert means[:2].tolist() == [0.75, 0.2]
    assert np.isnan(means[2])
    assert mean_of_classes(means) == pytest.approx(0.475)
    assert np.isnan(mean_of_classes(np.array([np.nan, np.nan])))


@pytest.mark.parametrize(
    ("predicted", "options", "said"),
    [
        (np.zeros((1, 1, 4, 5), bool), {}, r"boolean \(1, 1, 4, 4\) or integers \(1, 4, 4\)"),
        (np.zeros((1, 4, 4)), {}, "float64"),
        (np.full((1, 4, 4), 2), {}, r"hold 2\.\.\.2; expected 0 for background and 1\.\.\.1"),
        (np.full((1, 4, 4), -1), {}, r"hold -1"),
        (np.zeros((1, 4, 4), int), {"spacing": (1.0,)}, "2 lengths above 0 mm"),
        (np.zeros((1, 4, 4), int), {"spacing": (1.0, 0.0)}, "2 lengths above 0 mm"),
        (np.zeros((1, 4, 4), int), {"tolerance": float("nan")}, "tolerance must be 0 mm or more"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(predicted, options, said):
    with pytest.raises(ContractError, match=said):
        segmentation(predicted, np.zeros((1, 1, 4, 4), bool), **options)
