"""Pictures of answers: what is drawn where, and who gets to see it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medbench.api import Boxes, Detections
from medbench.pictures import box_strip, mask_strip, most_shown

SIDE, GAP = 144, 4
GREEN, YELLOW = (0, 158, 115), (240, 228, 66)


def decoded(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    return np.asarray(image.convert("RGB")).astype(int)


def near(pixel, colour, by: int = 25) -> bool:
    """Colours come back a little changed."""
    return bool((np.abs(np.asarray(pixel) - np.asarray(colour)) <= by).all())


def boxes(*xyxy) -> Boxes:
    n = len(xyxy)
    return Boxes(np.array(xyxy, float), np.zeros(n, np.int64), np.zeros(n, bool))


def detections(xyxy, labels, scores) -> Detections:
    return Detections(np.array(xyxy, float), np.array(labels, np.int64), np.array(scores))


def test_a_mask_is_a_wash_where_it_was_predicted_and_a_line_where_it_is_true():
    images = np.full((1, 72, 72, 1), 200, np.uint8)
    true, found = np.zeros((2, 1, 1, 72, 72), bool)
    true[0, 0, 10:60, 10:60] = True
    found[0, 0, :, 36:] = True
    strip = decoded(mask_strip(images, true, found))
    assert strip.shape == (SIDE, SIDE, 3)
    wash = 0.5 * 200 + 0.5 * np.array(GREEN)
    assert near(strip[72, 100], wash), "predicted and true"
    assert near(strip[72, 140], wash), "predicted and not true"
    assert near(strip[72, 45], 200), "true and not predicted: only its border is drawn"
    assert near(strip[5, 5], 200)
    # Columns 20 and 21 are the first of the true mask, which is twice as large here.
    line = strip[40:100, 18:24].mean(axis=0)
    assert line[:, 0].min() < 120, "a line in the colour of the class"


def test_of_a_volume_the_slice_with_most_of_the_structure_is_shown():
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 4, 1, 1, 1) * np.ones(
        (1, 1, 5, 5, 1), np.uint8
    )
    true, found = np.zeros((2, 3, 2, 4, 5, 5), bool)
    true[0, 0, 1, :2], true[0, 1, 3, :1] = True, True
    true[1, 1, 2, 0, 0] = True
    found[1, 0, 0] = True  # what is true is looked for first
    found[2, 0, 3, :4], found[2, 0, 1, :1] = True, True
    shown, truth, answer = most_shown(images, true, found)
    assert shown.shape == (3, 5, 5, 1)
    assert shown[:, 0, 0, 0].tolist() == [1, 4 + 2, 8 + 3]
    assert (truth[0] == true[0, :, 1]).all()
    assert (answer[2] == found[2, :, 3]).all()


def test_classes_have_colours_of_their_own():
    images = np.full((1, 72, 72, 3), 128, np.uint8)
    masks = np.zeros((1, 2, 72, 72), bool)
    masks[0, 0, :36], masks[0, 1, 36:] = True, True
    strip = decoded(mask_strip(images, masks, masks))
    assert near(strip[36, 72], 64 + 0.5 * np.array(GREEN))
    assert near(strip[108, 72], 64 + 0.5 * np.array(YELLOW))


def test_images_keep_their_form_and_their_colours():
    images = np.zeros((3, 50, 100, 3), np.uint8)
    images[..., 0] = 220
    none = np.zeros((3, 1, 50, 100), bool)
    strip = decoded(mask_strip(images, none, none))
    assert strip.shape == (SIDE // 2, 3 * SIDE + 2 * GAP, 3)
    assert near(strip[30, 60], (220, 0, 0), by=40)
    assert near(strip[36, SIDE + 1], 128, by=60), "a gap between images"


def test_of_predicted_boxes_as_many_are_drawn_as_are_true_the_surest():
    images = np.full((1, 144, 144, 1), 100, np.uint8)
    true = [boxes((10, 10, 40, 40))]
    found = [
        detections(
            [[80, 80, 120, 120], [60, 20, 90, 50], [20, 80, 50, 110]], [0, 0, 0], [0.2, 0.9, 0.1]
        )
    ]
    strip = decoded(box_strip(images, true, found))
    assert strip[10:13, 15:35].mean() > 140, "the true one is white"
    edge = strip[20:22, 65:85].mean(axis=(0, 1))
    assert near(edge, GREEN, by=50), "the surest one"
    untouched = np.full(3, 100)
    assert near(strip[80:82, 85:115].mean(axis=(0, 1)), untouched, by=5)
    assert near(strip[80:82, 25:45].mean(axis=(0, 1)), untouched, by=5)


def test_boxes_lie_where_they_do_in_an_image_of_another_size():
    images = np.full((1, 288, 288, 1), 100, np.uint8)
    strip = decoded(
        box_strip(images, [boxes((200, 40, 280, 120))], [detections(np.zeros((0, 4)), [], [])])
    )
    assert strip[20:22, 105:135].mean() > 130
    assert near(strip[100, 60], 100, by=5)


@pytest.mark.parametrize("box", [(-5.0, -5.0, 3.0, 3.0), (7.0, 7.0, 7.0, 7.0), (0, 0, 20, 20)])
def test_any_box_can_be_drawn(box):
    images = np.full((1, 20, 20, 3), 100, np.uint8)
    assert decoded(box_strip(images, [boxes(box)], [detections([box], [0], [0.5])])).size


def test_the_same_answers_give_the_same_bytes():
    images = np.random.default_rng(0).integers(0, 255, (2, 30, 40, 3)).astype(np.uint8)
    masks = np.random.default_rng(1).random((2, 2, 30, 40)) < 0.5
    assert mask_strip(images, masks, masks) == mask_strip(images.copy(), masks, masks)
