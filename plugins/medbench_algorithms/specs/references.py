"""Specs of methods that adapt to nothing, over which tables show what others gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    choice,
    count,
    positive,
    share,
    supervised_pretraining,
    switch,
    training_shape,
)

_TRAITS: Final = Traits(
    works_on="features",
    adapts="nothing",
    batched=True,
    meta_trains=True,
    knows_classes=True,
    uses_support=False,
)
_OF_IMAGES: Final = replace(_TRAITS, works_on="images", batched=False, parallel=True)
_GULRAJANI: Final = Citation(
    title="In Search of Lost Domain Generalization",
    authors="Ishaan Gulrajani, David Lopez-Paz",
    venue="ICLR",
    year=2021,
    url="https://arxiv.org/abs/2007.01434",
)

SOURCE_ONLY: Final = AlgorithmSpec(
    name="source-only",
    version="1",
    factory="medbench_algorithms.references.source_only:SourceOnly",
    summary="A classifier of the source sites' classes, backbone and head, used as it is",
    family="reference",
    traits=_TRAITS,
    citation=_GULRAJANI,
    licence=LICENCE,
    parameters=(
        positive("lr", 1e-3, "Adam's learning rate", stage="train"),
        count("batch_size", 64, "images a training step", least=2, stage="train"),
    ),
)

ZERO_ADAPTATION: Final = AlgorithmSpec(
    name="zero-adaptation",
    version="1",
    factory="medbench_algorithms.references.zero_adaptation:ZeroAdaptation",
    trainer=SUPERVISED_TRAINER,
    summary="Nearest class mean, of all source images in place of the support set's",
    family="reference",
    traits=_TRAITS,
    citation=Citation(
        title="Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost",
        authors="Thomas Mensink, Jakob Verbeek, Florent Perronnin, Gabriela Csurka",
        venue="IEEE Transactions on Pattern Analysis and Machine Intelligence",
        year=2013,
        url="https://doi.org/10.1109/TPAMI.2013.83",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "euclidean",
            "cosine",
        ),
        *supervised_pretraining("supervised"),
    ),
)

_NETWORK: Final = (
    count("width", 8, "channels at full size; twice and four times as many below", stage="both"),
    positive("lr", 1e-3, "Adam's learning rate", stage="train"),
    count("meta_batch", 4, "tasks of a training step", stage="train"),
)

SOURCE_ONLY_UNET: Final = AlgorithmSpec(
    name="source-only-unet",
    version="1",
    factory="medbench_algorithms.references.source_segmenter:SourceUNet",
    summary="A small U-Net trained on the source sites' masks, used as it is; uses no backbone",
    family="reference",
    traits=replace(_OF_IMAGES, task_kinds=("segmentation",)),
    citation=_GULRAJANI,
    licence=LICENCE,
    parameters=(*_NETWORK, *training_shape(1)),
)

ZERO_ADAPTATION_MASKS: Final = AlgorithmSpec(
    name="zero-adaptation-masks",
    version="1",
    factory="medbench_algorithms.references.source_prototypes:SourceMaskedPrototypes",
    summary="Masked prototypes of source images in place of the support set's",
    family="reference",
    traits=replace(_TRAITS, works_on="maps", task_kinds=("segmentation",)),
    citation=Citation(
        title="PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment",
        authors="Kaixin Wang, Jun Hao Liew, Yingtian Zou, Daquan Zhou, Jiashi Feng",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1908.06391",
    ),
    licence=LICENCE,
    parameters=(
        count("tasks", 50, "source tasks whose prototypes are averaged", stage="train"),
        positive("alpha", 20.0, "what cosines are multiplied by"),
        switch(
            "centre", default=False, text="take the source's mean feature off all features first"
        ),
        *training_shape(1),
    ),
)

SOURCE_ONLY_FCOS: Final = AlgorithmSpec(
    name="source-only-fcos",
    version="1",
    factory="medbench_algorithms.references.source_detector:SourceFCOS",
    summary="A small anchor-free detector trained on the source sites' boxes, used as it is",
    family="reference",
    traits=replace(_OF_IMAGES, task_kinds=("detection",)),
    citation=_GULRAJANI,
    licence=LICENCE,
    parameters=(
        *_NETWORK,
        share("nms_iou", 0.5, "overlap beyond which only the better of two boxes is kept"),
        count("most", 50, "boxes kept of each class in an image"),
        *training_shape(1),
    ),
)

SPECS: Final = (
    SOURCE_ONLY,
    ZERO_ADAPTATION,
    SOURCE_ONLY_UNET,
    ZERO_ADAPTATION_MASKS,
    SOURCE_ONLY_FCOS,
)
