"""Means over what was measured: absent classes are left out, never counted as right or wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def class_means(values: Floats) -> Floats:
    """The mean of each class over the query images that measure it.

    `values` ``(n_query, n_way)``, NaN where an image says nothing about a class; the result is
    ``(n_way,)``, NaN for a class that no image measures.
    """
    return _mean(values, axis=0)


def mean_of_classes(values: Floats) -> float:
    """One number an episode: the mean of ``(n_way,)`` class values, those that are NaN left out.

    NaN when no class was measured.
    """
    return float(_mean(values, axis=-1))


def _mean(values: Floats, axis: int) -> Floats:
    measured = ~np.isnan(values)
    count = measured.sum(axis=axis)
    total = np.where(measured, values, 0.0).sum(axis=axis)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
