"""Specs of methods that answer with masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import LICENCE, count, positive, share, switch

_ON_MAPS: Final = Traits(
    works_on="maps", adapts="nothing", batched=True, task_kinds=("segmentation",)
)
_CENTRE: Final = switch(
    "centre", default=False, text="take the support's mean feature off all features first"
)

MASKED_PROTOTYPES: Final = AlgorithmSpec(
    name="masked-prototypes",
    version="1",
    factory="medbench_algorithms.dense.masked_prototypes:MaskedPrototypes",
    summary="PANet's masked prototypes: nearest class mean, place by place, on the backbone as is",
    family="segmentation",
    traits=replace(_ON_MAPS, adapts="prototypes"),
    citation=Citation(
        title="PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment",
        authors="Kaixin Wang, Jun Hao Liew, Yingtian Zou, Daquan Zhou, Jiashi Feng",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1908.06391",
    ),
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

SPECS: Final = (NEAREST_PLACES, SCRATCH_UNET, MASKED_PROTOTYPES, LOCAL_PROTOTYPES)
