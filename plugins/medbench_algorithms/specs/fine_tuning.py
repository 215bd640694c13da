"""Specs of methods that fit a classifier to frozen features."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    choice,
    count,
    number,
    positive,
    share,
    supervised_pretraining,
)

_TRAITS: Final = Traits(works_on="features", adapts="linear head", batched=True, meta_trains=True)

LINEAR_PROBE: Final = AlgorithmSpec(
    name="linear-probe",
    version="1",
    factory="medbench_algorithms.fine_tuning.linear_probe:LinearProbe",
    trainer=SUPERVISED_TRAINER,
    summary="Logistic regression on frozen features, as scikit-learn would fit it",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="Understanding intermediate layers using linear classifier probes",
        authors="Guillaume Alain, Yoshua Bengio",
        venue="ICLR Workshop",
        year=2017,
        url="https://arxiv.org/abs/1610.01644",
    ),
    licence=LICENCE,
    parameters=(
        positive("C", 1.0, "inverse strength of the L2 penalty, as in scikit-learn"),
        choice("normalize", "none", "features as they are, or scaled to unit length", "none", "l2"),
        *supervised_pretraining("none"),
    ),
)

BASELINE: Final = AlgorithmSpec(
    name="baseline",
    version="1",
    factory="medbench_algorithms.fine_tuning.baseline:Baseline",
    trainer=SUPERVISED_TRAINER,
    summary="Baseline: supervised training on the sources, then a linear head by SGD",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="A Closer Look at Few-shot Classification",
        authors="Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1904.04232",
    ),
    licence=LICENCE,
    parameters=(
        count("head_epochs", 100, "passes over the support set"),
        count("head_batch_size", 4, "support images an SGD step"),
        positive("head_lr", 0.01, "SGD's learning rate"),
        share("head_momentum", 0.9, "SGD's momentum"),
        share("head_dampening", 0.9, "SGD's dampening of new gradients"),
        number("head_weight_decay", 0.001, "SGD's weight decay, on weights and intercepts"),
        *supervised_pretraining("supervised"),
    ),
)

SPECS: Final = (LINEAR_PROBE, BASELINE)
