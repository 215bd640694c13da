"""Specs of methods that compare distances between features."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import LICENCE, training_shape

PROTONET: Final = AlgorithmSpec(
    name="protonet",
    version="1",
    factory="medbench_algorithms.protonet:ProtoNet",
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
        Parameter(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "str",
            choices=("euclidean", "cosine"),
            stage="both",
        ),
        Parameter(
            "temperature",
            1.0,
            "scores are divided by this; the paper uses none, cosine gains from 0.1",
            "float",
            above=0.0,
            stage="both",
        ),
        Parameter("lr", 1e-3, "Adam's learning rate", "float", above=0.0, stage="train"),
        Parameter(
            "lr_halve_every",
            2000,
            "training episodes after which the learning rate is halved",
            "int",
            minimum=1,
            stage="train",
        ),
        *training_shape(),
    ),
)

SPECS: Final = (PROTONET,)
