"""Specs of methods that compare distances between features."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    choice,
    count,
    episodic_training,
    positive,
    supervised_pretraining,
)

PROTONET: Final = AlgorithmSpec(
    name="protonet",
    version="1",
    factory="medbench_algorithms.metric.protonet:ProtoNet",
    summary="Prototypical Networks: the nearest class mean, in a space trained for that",
    family="metric",
    traits=Traits(works_on="features", adapts="nothing", batched=True, meta_trains=True),
    citation=Citation(
        title="Prototypical Networks for Few-shot Learning",
        authors="Jake Snell, Kevin Swersky, Richard Zemel",
        venue="NeurIPS",
        year=2017,
        url="https://arxiv.org/abs/1703.05175",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "euclidean",
            "cosine",
            stage="both",
        ),
        positive(
            "temperature",
            1.0,
            "scores are divided by this; the paper uses none, cosine gains from 0.1",
            stage="both",
        ),
        *episodic_training(),
    ),
)

SIMPLESHOT: Final = AlgorithmSpec(
    name="simpleshot",
    version="1",
    factory="medbench_algorithms.metric.simpleshot:SimpleShot",
    trainer=SUPERVISED_TRAINER,
    summary="SimpleShot: the nearest centroid on centred features of unit length",
    family="metric",
    traits=Traits(works_on="features", adapts="nothing", batched=True, meta_trains=True),
    citation=Citation(
        title="SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning",
        authors="Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1911.04623",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "normalize",
            "cl2",
            "features as they are, of unit length (l2), or centred on the source images' mean and "
            "then of unit length (cl2)",
            "none",
            "l2",
            "cl2",
        ),
        *supervised_pretraining("supervised"),
    ),
)

NEAREST_NEIGHBOUR: Final = AlgorithmSpec(
    name="nearest-neighbour",
    version="1",
    factory="medbench_algorithms.metric.nearest_neighbour:NearestNeighbour",
    trainer=SUPERVISED_TRAINER,
    summary="The label of the nearest support image, or a vote of the nearest k",
    family="metric",
    traits=Traits(works_on="features", adapts="nothing", batched=True, meta_trains=True),
    citation=Citation(
        title="Nearest Neighbor Pattern Classification",
        authors="Thomas M. Cover, Peter E. Hart",
        venue="IEEE Transactions on Information Theory",
        year=1967,
        url="https://doi.org/10.1109/TIT.1967.1053964",
    ),
    licence=LICENCE,
    parameters=(
        count("k", 1, "how many neighbours vote; all, where the support set has fewer"),
        choice(
            "metric",
            "euclidean",
            "squared Euclidean distance, or one minus the cosine",
            "euclidean",
            "cosine",
        ),
        *supervised_pretraining("none"),
    ),
)

SPECS: Final = (PROTONET, SIMPLESHOT, NEAREST_NEIGHBOUR)
