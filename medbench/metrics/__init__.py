"""Scores of episodes, one module for each kind of answer: classes, masks, boxes.

Nothing here imports torch or a plugin; pycocotools is loaded when boxes are scored.
"""

from __future__ import annotations

from medbench.metrics.boxes import DETECTION_METRICS, detection, sensitivity
from medbench.metrics.classes import (
    ALL_METRICS as _OF_CLASSES,
)
from medbench.metrics.classes import (
    ECE_BINS,
    METRICS,
    MULTILABEL_METRICS,
    ORDINAL_METRICS,
    by_group,
    classification,
    multilabel,
    ordinal,
)
from medbench.metrics.masks import SEGMENTATION_METRICS, segmentation
from medbench.metrics.means import class_means, mean_of_classes

ALL_METRICS = (*_OF_CLASSES, *SEGMENTATION_METRICS, *DETECTION_METRICS)
"""Those that records may hold, in the order of tables."""

__all__ = [
    "ALL_METRICS",
    "DETECTION_METRICS",
    "ECE_BINS",
    "METRICS",
    "MULTILABEL_METRICS",
    "ORDINAL_METRICS",
    "SEGMENTATION_METRICS",
    "by_group",
    "class_means",
    "classification",
    "detection",
    "mean_of_classes",
    "multilabel",
    "ordinal",
    "segmentation",
    "sensitivity",
]
