"""Specs of methods that learn where gradient descent should start."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    choice,
    count,
    positive,
    switch,
    training_shape,
)

_PARAMETERS: Final = (
    positive(
        "inner_lr",
        0.01,
        "step size of the inner loop; the paper's for miniImageNet (Omniglot 5-way: 0.4), and "
        "short trainings want larger ones",
        stage="both",
    ),
    count("inner_steps", 5, "inner steps in training and validation", stage="train"),
    count("inner_steps_test", 10, "inner steps at test", least=0),
    switch(
        "first_order",
        default=False,
        text="treat inner gradients as constants in the outer one (first-order MAML)",
        stage="train",
    ),
    choice(
        "head",
        "auto",
        "start of the head: learned rows for a fixed number of classes, one learned vector shared "
        "by any number, or by whether the source's tasks all have one number",
        "auto",
        "per_class",
        "shared",
        stage="train",
    ),
    choice(
        "batch_norm",
        "query",
        "statistics for query images: of the query batch (the paper's code; transductive), or of "
        "the support set",
        "query",
        "support",
        stage="both",
    ),
    positive("meta_lr", 1e-3, "Adam's learning rate in the outer loop", stage="train"),
    count("meta_batch", 4, "tasks an outer step", stage="train"),
    *training_shape(),
)

MAML: Final = AlgorithmSpec(
    name="maml",
    version="1",
    factory="medbench_algorithms.optimisation.maml:MAML",
    summary="MAML: learned initial weights, adapted by a few gradient steps",
    family="optimisation",
    traits=Traits(
        works_on="images",
        adapts="all weights",
        transductive={"batch_norm": ("query",)},
        meta_trains=True,
    ),
    citation=Citation(
        title="Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        authors="Chelsea Finn, Pieter Abbeel, Sergey Levine",
        venue="ICML",
        year=2017,
        url="https://arxiv.org/abs/1703.03400",
    ),
    licence=LICENCE,
    parameters=_PARAMETERS,
)

ANIL: Final = AlgorithmSpec(
    name="anil",
    version="1",
    factory="medbench_algorithms.optimisation.anil:ANIL",
    summary="ANIL: MAML whose inner loop adapts the head alone",
    family="optimisation",
    traits=Traits(
        works_on="images",
        adapts="linear head",
        transductive={"batch_norm": ("query",)},
        meta_trains=True,
    ),
    citation=Citation(
        title="Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
        authors="Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1909.09157",
    ),
    licence=LICENCE,
    parameters=_PARAMETERS,
)

SPECS: Final = (MAML, ANIL)
