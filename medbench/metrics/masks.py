"""Scores of predicted masks: Dice, IoU, 95 % Hausdorff distance, normalised surface distance.

Built on scipy. MONAI computes the same four (and the values here equal its), but importing it loads
torch and thousands of modules into every worker, and a mask that was missed altogether gives NaN
there, which its means then leave out: a method that finds less looks better. DeepMind's
surface-distance no longer runs with current numpy. scipy's parts are imported where masks are
scored: workers of other tasks start sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.errors import ContractError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SEGMENTATION_METRICS = ("dice", "iou", "hd95", "nsd")


def segmentation(
    predicted: NDArray[Any],
    truth: Mask,
    *,
    spacing: Sequence[float] | NDArray[Any] | None = None,
    tolerance: float = 1.0,
) -> dict[str, Floats]:
    """Four scores of each query image and class, each ``(n_query, n_way)``.

    `truth`: boolean ``(n_query, n_way, H, W)`` or ``(n_query, n_way, D, H, W)``. `predicted`:
    the same, or integer maps ``(n_query, H, W)`` or ``(n_query, D, H, W)`` with 0 for background
    and ``k + 1`` for class ``k``. `spacing`: mm between neighbours along each axis, one row for
    all images or one an image; 1 when not known, which makes distances pixels. `tolerance`: in mm.

    Surfaces are the pixels of a mask with a face on something else (the image's border counts).
    ``hd95``: the larger of the two directed 95th percentiles of surface distances, in mm;
    ``nsd``: the share of both surfaces within `tolerance` of the other (Nikolov et al. 2018,
    counted in pixels).

    Empty masks: where truth and prediction are both empty, an image says nothing about the class
    and all four are NaN, which means leave out (`medbench.metrics.class_means`). Where one of the
    two is empty, dice, iou and nsd are 0 and hd95 is the image's diagonal, the largest distance
    there can be: to miss a lesion or to invent one is never better than a bad outline.
    """
    chosen = _as_masks(predicted, truth)
    n_query, n_way, *space = truth.shape
    steps = _steps(spacing, n_query, len(space))
    if not tolerance >= 0:
        raise ContractError(f"tolerance must be 0 mm or more, and is {tolerance}.")
    found = {name: np.full((n_query, n_way), np.nan) for name in SEGMENTATION_METRICS}
    for query, way in np.ndindex(n_query, n_way):
        scores = _one(chosen[query, way], truth[query, way], steps[query], tolerance)
        for name, score in zip(SEGMENTATION_METRICS, scores, strict=True):
            found[name][query, way] = score
    return found


def _one(
    predicted: Mask, truth: Mask, spacing: Floats, tolerance: float
) -> tuple[float, float, float, float]:
    n_predicted, n_true = int(predicted.sum()), int(truth.sum())
    if not n_predicted and not n_true:
        return np.nan, np.nan, np.nan, np.nan
    if not n_predicted or not n_true:
        return 0.0, 0.0, _diagonal(truth.shape, spacing), 0.0
    from scipy.ndimage import find_objects
    from scipy.spatial import KDTree

    shared = int((predicted & truth).sum())
    either = n_predicted + n_true - shared
    # Nothing outside the union's box is on a surface.
    (box,) = find_objects((predicted | truth).astype(np.int8))
    ours = np.argwhere(surface(predicted[box])) * spacing
    theirs = np.argwhere(surface(truth[box])) * spacing
    there = KDTree(theirs).query(ours)[0]
    back = KDTree(ours).query(theirs)[0]
    within = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    return (
        2 * shared / (n_predicted + n_true),
        shared / either,
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
        within / (len(there) + len(back)),
    )


def surface(mask: Mask) -> Mask:
    """Those pixels of a mask that share a face with background or the border of the array."""
    from scipy.ndimage import binary_erosion

    inside: Mask = binary_erosion(mask)
    return mask & ~inside


def _diagonal(shape: tuple[int, ...], spacing: Floats) -> float:
    """Distance between the centres of two opposite corners."""
    return float(np.linalg.norm((np.array(shape) - 1) * spacing))


def _as_masks(predicted: NDArray[Any], truth: Mask) -> Mask:
    if truth.dtype != np.bool_ or truth.ndim not in (4, 5):
        raise ContractError(
            f"true masks must be boolean (n_query, n_way, H, W) or (n_query, n_way, D, H, W), and "
            f"are {truth.shape} {truth.dtype}."
        )
    n_way = truth.shape[1]
    maps = (truth.shape[0], *truth.shape[2:])
    if predicted.dtype == np.bool_ and predicted.shape == truth.shape:
        return predicted
    if predicted.dtype.kind not in "iu" or predicted.shape != maps:
        raise ContractError(
            f"predicted masks must be boolean {truth.shape} or integers {maps}, and are "
            f"{predicted.shape} {predicted.dtype}."
        )
    if predicted.size and (predicted.min() < 0 or predicted.max() > n_way):
        raise ContractError(
            f"predicted maps hold {predicted.min()}...{predicted.max()}; expected 0 for background "
            f"and 1...{n_way} for the classes of the episode."
        )
    classes = np.arange(1, n_way + 1).reshape(-1, *([1] * (truth.ndim - 2)))
    masks: Mask = predicted[:, None] == classes
    return masks


def _steps(spacing: Sequence[float] | NDArray[Any] | None, n_query: int, n_dims: int) -> Floats:
    """``(n_query, n_dims)`` mm."""
    steps = np.ones(n_dims) if spacing is None else np.asarray(spacing, np.float64)
    if steps.shape not in ((n_dims,), (n_query, n_dims)) or not (
        np.isfinite(steps).all() and (steps > 0).all()
    ):
        raise ContractError(
            f"spacing must be {n_dims} lengths above 0 mm, for all images or for each of "
            f"{n_query}; it is {steps.tolist()}."
        )
    return np.broadcast_to(steps, (n_query, n_dims))
