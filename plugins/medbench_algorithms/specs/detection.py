"""Specs of methods that answer with boxes."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Conformance, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    count,
    number,
    positive,
    share,
    switch,
    training_shape,
)

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

_OF_POINTS: Final = (
    share("nms_iou", 0.5, "overlap beyond which only the better of two boxes is kept"),
    count("most", 50, "boxes kept of each class in an image"),
)

SCRATCH_FCOS: Final = AlgorithmSpec(
    name="fcos-scratch",
    version="1",
    factory="medbench_algorithms.dense.fcos:ScratchFCOS",
    summary="A small anchor-free detector trained on the support set alone; uses no backbone",
    family="detection",
    traits=Traits(works_on="images", adapts="all weights", task_kinds=("detection",)),
    citation=Citation(
        title="FCOS: Fully Convolutional One-Stage Object Detection",
        authors="Zhi Tian, Chunhua Shen, Hao Chen, Tong He",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1904.01355",
    ),
    licence=LICENCE,
    parameters=(
        count("steps", 150, "training steps"),
        positive("lr", 0.01, "Adam's learning rate at the start; it falls to zero linearly"),
        count("width", 8, "channels at half size; twice and four times as many below"),
        count("batch_size", 8, "support images a step"),
        switch("turn", default=True, text="turn images by quarters; not where up is up"),
        *_OF_POINTS,
    ),
)

FOMAML_FCOS: Final = AlgorithmSpec(
    name="fomaml-fcos",
    version="1",
    factory="medbench_algorithms.dense.meta_fcos:MetaFCOS",
    summary="The same detector from a start that is meta-trained, first order",
    family="detection",
    traits=Traits(
        works_on="images",
        adapts="all weights",
        meta_trains=True,
        parallel=True,
        task_kinds=("detection",),
    ),
    citation=Citation(
        title="Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        authors="Chelsea Finn, Pieter Abbeel, Sergey Levine",
        venue="ICML",
        year=2017,
        url="https://arxiv.org/abs/1703.03400",
    ),
    licence=LICENCE,
    parameters=(
        positive("inner_lr", 0.01, "learning rate of the inner loop", stage="both"),
        count("inner_steps", 5, "inner steps in training", stage="train"),
        count("inner_steps_test", 10, "inner steps in the test"),
        count(
            "width", 8, "channels at half size; twice and four times as many below", stage="both"
        ),
        positive("meta_lr", 1e-3, "Adam's learning rate", stage="train"),
        count("meta_batch", 4, "tasks of a training step", stage="train"),
        *_OF_POINTS,
        *training_shape(1),
    ),
    # The paper's rates learn nothing in the seconds of a check.
    conformance=Conformance(params={"inner_lr": 0.03, "meta_lr": 3e-3, "meta_batch": 1}),
)

SPECS: Final = (TEMPLATE_MATCHING, PROTOTYPE_BOXES, SCRATCH_FCOS, FOMAML_FCOS)
