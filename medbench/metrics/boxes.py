"""Scores of predicted boxes: average precision as COCO defines it, and FROC sensitivity.

Average precision is pycocotools' own: the numbers of papers come from it. It needs numpy alone and
loads in a fifth of a second; torchmetrics calls the same code and takes ten.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import Boxes, Detections
from medbench.errors import ContractError

Floats = NDArray[np.float64]

DETECTION_METRICS = ("ap50", "ap50_95", "froc")
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which sensitivity is read, as LUNA16 does; their mean is ``froc``."""
MAX_DETECTIONS = 100
"""Best detections of an image and class that average precision looks at, as COCO does."""


def detection(
    predicted: Sequence[Detections],
    truth: Sequence[Boxes],
    n_way: int,
    *,
    max_detections: int = MAX_DETECTIONS,
    false_positives: Sequence[float] = FALSE_POSITIVES,
    min_iou: float = 0.5,
) -> dict[str, Floats]:
    """Three scores of each class over the query images of one episode, each ``(n_way,)``.

    `predicted` and `truth` have one entry a query image, with labels in ``0 ... n_way - 1``.
    ``ap50`` and ``ap50_95``: COCO's average precision (101 points) at IoU 0.5, and its mean over
    0.5, 0.55 ... 0.95. ``froc``: the mean of `sensitivity` over `false_positives`. A class with
    no box to find in any query is NaN in all three, as COCO leaves it out.
    """
    _check(predicted, truth, n_way)
    precision = _average_precision(predicted, truth, n_way, max_detections)
    found = sensitivity(predicted, truth, n_way, false_positives=false_positives, min_iou=min_iou)
    return {
        "ap50": precision[0],
        "ap50_95": precision.mean(axis=0),
        "froc": found.mean(axis=1),
    }


def sensitivity(
    predicted: Sequence[Detections],
    truth: Sequence[Boxes],
    n_way: int,
    *,
    false_positives: Sequence[float] = FALSE_POSITIVES,
    min_iou: float = 0.5,
) -> Floats:
    """Share of boxes found at fixed false positives an image, ``(n_way, len(false_positives))``.

    A box is found by the best score among the detections of its class that overlap it by `min_iou`
    or more; other detections of the same box count neither way, and those that overlap no box are
    false positives, unless they lie in an ignored region (half of them or more). At each number
    of false positives an image, the lowest score is taken that stays at or below it; nothing is
    interpolated, for between two scores there is no way to run a detector. NaN for a class without
    boxes.
    """
    _check(predicted, truth, n_way)
    rates = np.asarray(false_positives, np.float64)
    if rates.ndim != 1 or not len(rates) or not (rates >= 0).all() or not 0 < min_iou <= 1:
        raise ContractError(
            f"expected numbers of false positives and 0 < min_iou <= 1; got {false_positives} and "
            f"{min_iou}."
        )
    found = np.full((n_way, len(rates)), np.nan)
    for way in range(n_way):
        hits: list[Floats] = []
        misses: list[Floats] = []
        for ours, theirs in zip(predicted, truth, strict=True):
            best, false = _marks(ours, theirs, way, min_iou)
            hits.append(best)
            misses.append(false)
        best, false = np.concatenate(hits), np.sort(np.concatenate(misses))[::-1]
        if not len(best):
            continue
        allowed = np.floor(rates * len(truth) + 1e-9).astype(np.int64)
        for k, n_allowed in enumerate(allowed):
            # The next false positive's score must stay out, and whatever ties with it.
            floor = false[n_allowed] if n_allowed < len(false) else -np.inf
            found[way, k] = float((best > floor).mean())
    return found


def iou(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Intersection over union of every pair, ``(n, m)``, of boxes ``(n, 4)`` and ``(m, 4)``."""
    shared = _intersections(first, second)
    either = _areas(first)[:, None] + _areas(second)[None] - shared
    ratio: Floats = shared / np.where(either > 0, either, 1.0)
    return ratio


def _marks(ours: Detections, theirs: Boxes, way: int, min_iou: float) -> tuple[Floats, Floats]:
    """Best score of each true box of one image (-inf if missed), and scores of false positives."""
    mine = ours.labels == way
    boxes, scores = np.asarray(ours.xyxy, np.float64)[mine], ours.scores[mine].astype(np.float64)
    of_class = theirs.labels == way
    wanted = np.asarray(theirs.xyxy, np.float64)[of_class & ~theirs.ignored]
    regions = np.asarray(theirs.xyxy, np.float64)[of_class & theirs.ignored]
    overlap = iou(boxes, wanted) >= min_iou
    best = np.where(overlap, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    inside = _intersections(boxes, regions) >= np.maximum(0.5 * _areas(boxes), 1e-12)[:, None]
    return best, scores[~overlap.any(axis=1) & ~inside.any(axis=1)]


def _intersections(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared: Floats = np.prod(np.clip(high - low, 0.0, None), axis=-1)
    return shared


def _areas(boxes: NDArray[Any]) -> Floats:
    areas: Floats = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1, dtype=np.float64)
    return areas


def _average_precision(
    predicted: Sequence[Detections], truth: Sequence[Boxes], n_way: int, max_detections: int
) -> Floats:
    """``(10, n_way)`` average precision at IoU 0.5 ... 0.95; NaN for classes without boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": k} for k in range(len(truth))]
    classes = [{"id": k} for k in range(n_way)]
    sides = []
    # pycocotools prints what it does, and has no switch for it.
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (_annotations(truth), _annotations(predicted)):
            data = COCO()
            data.dataset = {
                "images": images,
                "categories": classes,
                "annotations": annotations,
            }
            data.createIndex()
            sides.append(data)
        evaluation = COCOeval(sides[0], sides[1], "bbox")
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng = [[0.0, np.inf]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU, recall, class, area, detections); -1 where a class has no box.
    precision = evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1)
    values: Floats = np.where(precision < 0, np.nan, precision)
    return values


def _annotations(side: Sequence[Boxes | Detections]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for image, boxes in enumerate(side):
        scores = boxes.scores if isinstance(boxes, Detections) else None
        for k, (x0, y0, x1, y1) in enumerate(np.asarray(boxes.xyxy, np.float64).tolist()):
            found.append(
                {
                    "id": len(found) + 1,  # 0 is pycocotools' mark for "not matched"
                    "image_id": image,
                    "category_id": int(boxes.labels[k]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(boxes.ignored[k]) if isinstance(boxes, Boxes) else 0,
                    **({"score": float(scores[k])} if scores is not None else {}),
                }
            )
    return found


def _check(predicted: Sequence[Detections], truth: Sequence[Boxes], n_way: int) -> None:
    if len(predicted) != len(truth) or not len(truth):
        raise ContractError(
            f"{len(predicted)} images with detections for {len(truth)} query images; expected one "
            "entry for each, empty where nothing was found."
        )
    for k, found in enumerate(predicted):
        _check_boxes(f"detections of query {k}", found.xyxy, found.labels, n_way, found.scores)
    for k, true in enumerate(truth):
        _check_boxes(f"true boxes of query {k}", true.xyxy, true.labels, n_way, true.ignored)


def _check_boxes(
    what: str, xyxy: NDArray[Any], labels: NDArray[Any], n_way: int, marks: NDArray[Any]
) -> None:
    n = len(labels)
    if xyxy.shape != (n, 4) or labels.shape != (n,) or marks.shape != (n,):
        raise ContractError(
            f"{what}: boxes {xyxy.shape}, labels {labels.shape}, and {marks.shape} besides; "
            "expected (n, 4), (n,) and (n,)."
        )
    if not n:
        return
    if not (np.isfinite(xyxy).all() and np.isfinite(marks).all()):
        raise ContractError(f"{what} hold NaN or infinite values.")
    if (xyxy[:, 2:] < xyxy[:, :2]).any():
        raise ContractError(
            f"{what} have corners in the wrong order; expected x0, y0, x1, y1 with x0 <= x1 and "
            "y0 <= y1."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= n_way:
        raise ContractError(
            f"{what} have labels {labels.min()}...{labels.max()} ({labels.dtype}); expected whole "
            f"numbers 0...{n_way - 1}."
        )
