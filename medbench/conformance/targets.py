"""Checks of data sets whose targets are masks or boxes: as large as the image, and as labelled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medbench.api import Boxes, Dataset
from medbench.conformance.check import Broken, DoesNotApply
from medbench.conformance.datasets import DATASETS, Found

_IMAGES = 16
_ROUNDING = 1e-6


@DATASETS.add(
    "targets",
    reason="Masks and boxes are compared with predictions pixel by pixel, and tasks are drawn by "
    "the classes that labels say an image has.",
    hint="Resize masks and boxes with their image. In labels, set 1 for the classes that occur in "
    "an image and for no others; ignored boxes do not count.",
    needs=("labels", "images"),
)
def _targets(found: Found) -> None:
    dataset = found.dataset
    kind = dataset.info.task_kind
    if kind not in ("segmentation", "detection"):
        raise DoesNotApply(f"its task is {kind}")
    rows = found.some()[:_IMAGES]
    if kind == "segmentation":
        _masks(dataset, rows)
    else:
        _boxes(dataset, rows)
    if dataset.spacings is not None:
        wanted = (len(dataset.labels), len(dataset.info.image_shape) - 1)
        if dataset.spacings.shape != wanted or not (dataset.spacings > 0).all():
            raise Broken(f"spacings are {dataset.spacings.shape}, and {wanted} above 0 are needed.")


def _masks(dataset: Dataset, rows: NDArray[np.int64]) -> None:
    masks = dataset.read_masks(rows)
    wanted = (len(rows), len(dataset.info.label_names), *dataset.info.image_shape[:-1])
    if masks.shape != wanted or masks.dtype != np.bool_:
        raise Broken(f"read_masks returned {masks.shape} {masks.dtype}; {wanted} bool is needed.")
    if not np.array_equal(dataset.read_masks(rows[::-1].copy())[::-1], masks):
        raise Broken("asked for in another order, masks are not those of the same indices.")
    # Resizing may lose a small structure, and never makes one.
    occurs = masks.any(axis=tuple(range(2, masks.ndim)))
    for image, label in np.argwhere(occurs & (dataset.labels[rows] == 0))[:1]:
        _unlabelled(dataset, int(rows[image]), int(label), "mask")


def _boxes(dataset: Dataset, rows: NDArray[np.int64]) -> None:
    given = dataset.read_boxes(rows)
    if len(given) != len(rows) or not all(isinstance(boxes, Boxes) for boxes in given):
        raise Broken(f"read_boxes returned {len(given)} things; {len(rows)} Boxes are needed.")
    height, width = dataset.info.image_shape[:2]
    limits = np.array([width, height, width, height])
    for row, boxes in zip(rows.tolist(), given, strict=True):
        k = len(boxes.labels)
        if boxes.xyxy.shape != (k, 4) or boxes.ignored.shape != (k,):
            raise Broken(
                f"image {row} has boxes xyxy {boxes.xyxy.shape}, labels {boxes.labels.shape} and "
                f"ignored {boxes.ignored.shape}; (k, 4), (k,) and (k,) are needed."
            )
        for box, label, ignored in zip(boxes.xyxy, boxes.labels, boxes.ignored, strict=True):
            shown = ", ".join(f"{v:g}" for v in box)
            if (box < -_ROUNDING).any() or (box > limits + _ROUNDING).any():
                raise Broken(
                    f"image {row} has a box ({shown}), and the image that read gives is {width} "
                    f"wide and {height} high."
                )
            if (box[2:] <= box[:2]).any():
                raise Broken(f"image {row} has a box ({shown}) whose right or lower edge is first.")
            if not 0 <= label < len(dataset.info.label_names):
                raise Broken(f"image {row} has a box of class {label}, which has no name.")
            if not ignored and not dataset.labels[row, label]:
                _unlabelled(dataset, row, int(label), "box")


def _unlabelled(dataset: Dataset, row: int, label: int, what: str) -> None:
    name = dataset.info.label_names[label]
    raise Broken(f"image {row} has a {what} of {name!r}, and labels say that it shows none.")
