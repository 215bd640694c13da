"""Specs of methods that answer with boxes."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import LICENCE, count, number, positive, share, switch

_NMS: Final = (
    share("nms_iou", 0.3, "overlap beyond which only the better of two boxes is kept"),
    count("most", 50, "boxes kept of each class in an image"),
)

TEMPLATE_MATCHING: Final = AlgorithmSpec(
    name="template-matching",
    version="1",
    factory="medbench_algorithms.dense.template_matching:TemplateMatching",
    summary="Cut-outs of the support's boxes, found again by correlation: the floor of detection",
    family="detection",
    traits=Traits(works_on="images", adapts="nothing", task_kinds=("detection",)),
    citation=Citation(
        title="Fast Template Matching",
        authors="J. P. Lewis",
        venue="Vision Interface",
        year=1995,
        url="http://scribblethink.org/Work/nvisionInterface/nip.html",
    ),
    licence=LICENCE,
    parameters=(
        count("templates", 8, "cut-outs of each class"),
        number("margin", 0.25, "what is cut out around a box, in shares of its size"),
        *_NMS,
    ),
)

PROTOTYPE_BOXES: Final = AlgorithmSpec(
    name="prototype-boxes",
    version="1",
    factory="medbench_algorithms.dense.prototype_boxes:PrototypeBoxes",
    summary="Windows of the backbone's map near the mean feature of a class's support boxes",
    family="detection",
    traits=Traits(works_on="maps", adapts="prototypes", task_kinds=("detection",)),
    citation=Citation(
        title="Discriminative Decorrelation for Clustering and Classification",
        authors="Bharath Hariharan, Jitendra Malik, Deva Ramanan",
        venue="ECCV",
        year=2012,
        url="https://doi.org/10.1007/978-3-642-33765-9_33",
    ),
    licence=LICENCE,
    parameters=(
        count("bins", 3, "side of the grid that a window is pooled to"),
        count("sizes", 3, "window sizes of each class"),
        positive("alpha", 20.0, "what cosines are multiplied by"),
        switch("whiten", default=True, text="decorrelate by the background's covariance"),
        share("shrinkage", 0.1, "share of the covariance that is replaced by its mean variance"),
        *_NMS,
    ),
)

SPECS: Final = (TEMPLATE_MATCHING, PROTOTYPE_BOXES)
