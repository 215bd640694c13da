"""Specs of methods that answer with masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    count,
    number,
    positive,
    share,
    switch,
    training_shape,
)

_ON_MAPS: Final = Traits(
    works_on="maps", adapts="nothing", batched=True, task_kinds=("segmentation",)
)
_CENTRE: Final = switch(
    "centre", default=False, text="take the support's mean feature off all features first"
)

_WANG: Final = Citation(
    title="PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment",
    authors="Kaixin Wang, Jun Hao Liew, Yingtian Zou, Daquan Zhou, Jiashi Feng",
    venue="ICCV",
    year=2019,
    url="https://arxiv.org/abs/1908.06391",
)

MASKED_PROTOTYPES: Final = AlgorithmSpec(
    name="masked-prototypes",
    version="1",
    factory="medbench_algorithms.dense.masked_prototypes:MaskedPrototypes",
    summary="PANet's masked prototypes: nearest class mean, place by place, on the backbone as is",
    family="segmentation",
    traits=replace(_ON_MAPS, adapts="prototypes"),
    citation=_WANG,
    licence=LICENCE,
    parameters=(positive("alpha", 20.0, "what cosines are multiplied by"), _CENTRE),
)

LOCAL_PROTOTYPES: Final = AlgorithmSpec(
    name="local-prototypes",
    version="1",
    factory="medbench_algorithms.dense.local_prototypes:LocalPrototypes",
    summary="ALPNet's local prototypes: a class has one for each window it fills",
    family="segmentation",
    traits=replace(_ON_MAPS, adapts="prototypes"),
    citation=Citation(
        title="Self-Supervision with Superpixels: Training Few-shot Medical Image Segmentation "
        "without Annotation",
        authors="Cheng Ouyang, Carlo Biffi, Chen Chen, Turkay Kart, Huaqi Qiu, Daniel Rueckert",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/2007.09886",
    ),
    licence=LICENCE,
    parameters=(
        count("window", 4, "side of a pooling window, in places of the map"),
        share("purity", 0.95, "share of a window that a class covers to own its prototype"),
        positive("alpha", 20.0, "what cosines are multiplied by"),
        _CENTRE,
    ),
)

NEAREST_PLACES: Final = AlgorithmSpec(
    name="nearest-places",
    version="1",
    factory="medbench_algorithms.dense.nearest_place:NearestPlaces",
    summary="k nearest neighbours by cosine, place by place: the floor on a backbone's maps",
    family="segmentation",
    traits=_ON_MAPS,
    citation=Citation(
        title="Nearest neighbor pattern classification",
        authors="Thomas Cover, Peter Hart",
        venue="IEEE Transactions on Information Theory",
        year=1967,
        url="https://doi.org/10.1109/TIT.1967.1053964",
    ),
    licence=LICENCE,
    parameters=(count("k", 5, "neighbours whose masks are averaged"),),
)

SCRATCH_UNET: Final = AlgorithmSpec(
    name="unet-scratch",
    version="1",
    factory="medbench_algorithms.dense.unet:ScratchUNet",
    summary="A small U-Net trained on the support set alone; uses no backbone",
    family="segmentation",
    traits=Traits(works_on="images", adapts="all weights", task_kinds=("segmentation",)),
    citation=Citation(
        title="U-Net: Convolutional Networks for Biomedical Image Segmentation",
        authors="Olaf Ronneberger, Philipp Fischer, Thomas Brox",
        venue="MICCAI",
        year=2015,
        url="https://arxiv.org/abs/1505.04597",
    ),
    licence=LICENCE,
    parameters=(
        count("steps", 80, "training steps"),
        positive("lr", 0.01, "Adam's learning rate at the start; it falls to zero linearly"),
        count("width", 8, "channels at full size; twice and four times as many below"),
        count("batch_size", 8, "support images a step"),
    ),
)

PANET: Final = AlgorithmSpec(
    name="panet",
    version="1",
    factory="medbench_algorithms.dense.panet:PANet",
    summary="Masked prototypes on features trained for them, with prototype alignment",
    family="segmentation",
    traits=Traits(
        works_on="maps",
        adapts="prototypes",
        batched=True,
        meta_trains=True,
        parallel=True,
        task_kinds=("segmentation",),
    ),
    citation=_WANG,
    licence=LICENCE,
    parameters=(
        positive("alpha", 20.0, "what cosines are multiplied by", stage="both"),
        number("align", 1.0, "weight of the prototype alignment regularisation", stage="train"),
        positive("lr", 1e-3, "learning rate of stochastic gradient descent", stage="train"),
        count("lr_decay_every", 10_000, "steps after which the rate is a tenth", stage="train"),
        number("weight_decay", 5e-4, "weight decay", stage="train"),
        count("meta_batch", 1, "episodes of a training step", stage="train"),
        *training_shape(1),
    ),
)

MAML_UNET: Final = AlgorithmSpec(
    name="maml-unet",
    version="1",
    factory="medbench_algorithms.dense.meta_unet:MetaUNet",
    summary="A small U-Net whose start is learned, so that a few steps on the support segment",
    family="segmentation",
    traits=Traits(
        works_on="images",
        adapts="all weights",
        meta_trains=True,
        parallel=True,
        task_kinds=("segmentation",),
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
        switch(
            "first_order",
            default=False,
            text="leave out second derivatives, as FOMAML does",
            stage="train",
        ),
        count(
            "width", 8, "channels at full size; twice and four times as many below", stage="both"
        ),
        positive("meta_lr", 1e-3, "Adam's learning rate", stage="train"),
        count("meta_batch", 4, "tasks of a training step", stage="train"),
        switch(
            "recompute",
            default=False,
            text="keep no graph of inner steps, and take them twice",
            stage="train",
        ),
        *training_shape(1),
    ),
)

UNIVERSEG: Final = AlgorithmSpec(
    name="universeg",
    version="1",
    factory="medbench_algorithms.dense.universeg:UniverSeg",
    summary="A U-Net that reads the task from the support by cross-convolution; nothing is fitted",
    family="segmentation",
    traits=Traits(
        works_on="images",
        adapts="nothing",
        meta_trains=True,
        parallel=True,
        task_kinds=("segmentation",),
        n_dims=(2,),
    ),
    citation=Citation(
        title="UniverSeg: Universal Medical Image Segmentation",
        authors="Victor Ion Butoi, Jose Javier Gonzalez Ortiz, Tianyu Ma, Mert R. Sabuncu, "
        "John Guttag, Adrian V. Dalca",
        venue="ICCV",
        year=2023,
        url="https://arxiv.org/abs/2304.06131",
    ),
    licence=LICENCE,
    parameters=(
        count("width", 64, "channels of every block", stage="both"),
        count("levels", 4, "sizes of the maps, each half of the one above", stage="both"),
        positive("lr", 1e-4, "Adam's learning rate", stage="train"),
        number(
            "cross_entropy",
            0.0,
            "weight of the pixels' cross-entropy beside soft Dice; the paper has none",
            stage="train",
        ),
        switch(
            "augment",
            default=True,
            text="change whole tasks: intensities inverted, images mirrored and turned",
            stage="train",
        ),
        count("meta_batch", 1, "episodes of a training step", stage="train"),
        *training_shape(1),
    ),
)

SPECS: Final = (
    NEAREST_PLACES,
    SCRATCH_UNET,
    MASKED_PROTOTYPES,
    LOCAL_PROTOTYPES,
    PANET,
    MAML_UNET,
    UNIVERSEG,
)
