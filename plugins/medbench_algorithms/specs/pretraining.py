"""Specs of strong pretrainings, each with the head its paper puts on them."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    WITH_FINDINGS,
    count,
    number,
    positive,
    share,
    switch,
)

_TRAITS: Final = Traits(
    works_on="features",
    adapts="linear head",
    batched=True,
    meta_trains=True,
    task_kinds=WITH_FINDINGS,
)
_ADAM: Final = (
    positive("lr", 1e-3, "Adam's learning rate", stage="train"),
    count("batch_size", 64, "images a training step", least=2, stage="train"),
)


def _cosine_head(*, class_norms: bool, scale: float, epochs: int) -> tuple[Parameter, ...]:
    """The parameters of `fine_tuning.cosine_head.CosineHead`."""
    return (
        switch(
            "class_norms",
            default=class_norms,
            text="cosine classifiers learn a factor for each class, in training and head alike",
            stage="both",
        ),
        positive("head_scale", scale, "what cosines are multiplied by in the head"),
        count("head_epochs", epochs, "passes over the support set"),
        count("head_batch_size", 4, "support images an SGD step"),
        positive("head_lr", 0.01, "SGD's learning rate"),
        share("head_momentum", 0.9, "SGD's momentum"),
        share("head_dampening", 0.9, "SGD's dampening of new gradients"),
        number("head_weight_decay", 0.001, "SGD's weight decay"),
    )


def _cosine_training(*, scale: float, margin: float) -> tuple[Parameter, ...]:
    """The parameters of `common.cosine_pretrain.CosinePretraining`."""
    return (
        positive("scale", scale, "what cosines are multiplied by in training", stage="train"),
        number(
            "margin",
            margin,
            "what is taken off the true class's cosine in training; below 0 it is added",
            least=-1.0,
            most=1.0,
            stage="train",
        ),
        *_ADAM,
    )


BASELINE_PLUS_PLUS: Final = AlgorithmSpec(
    name="baseline-plus-plus",
    version="1",
    factory="medbench_algorithms.fine_tuning.baseline_plus_plus:BaselinePlusPlus",
    trainer="medbench_algorithms.common.cosine_pretrain:CosinePretraining",
    summary="Baseline++: cosine classifiers, in supervised training and as a head by SGD",
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
        *_cosine_head(class_norms=True, scale=2.0, epochs=100),
        *_cosine_training(scale=2.0, margin=0.0),
    ),
)

NEGATIVE_MARGIN: Final = AlgorithmSpec(
    name="negative-margin",
    version="1",
    factory="medbench_algorithms.fine_tuning.negative_margin:NegativeMargin",
    trainer="medbench_algorithms.common.cosine_pretrain:CosinePretraining",
    summary="Negative margin: supervised training by a cosine softmax that is made easier, then a "
    "cosine head by SGD",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="Negative Margin Matters: Understanding Margin in Few-shot Classification",
        authors="Bin Liu, Yue Cao, Yutong Lin, Qi Li, Zheng Zhang, Mingsheng Long, Han Hu",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/2003.12060",
    ),
    licence=LICENCE,
    parameters=(
        *_cosine_head(class_norms=False, scale=5.0, epochs=100),
        *_cosine_training(scale=30.0, margin=-0.02),
    ),
)

RFS: Final = AlgorithmSpec(
    name="rfs",
    version="1",
    factory="medbench_algorithms.fine_tuning.rfs:RFS",
    trainer="medbench_algorithms.common.distillation:SelfDistillation",
    summary="RFS: supervised training distilled into itself, then logistic regression on unit "
    "features",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?",
        authors="Yonglong Tian, Yue Wang, Dilip Krishnan, Joshua B. Tenenbaum, Phillip Isola",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/2003.11539",
    ),
    licence=LICENCE,
    parameters=(
        positive("C", 1.0, "inverse strength of the L2 penalty, as in scikit-learn"),
        count(
            "generations",
            1,
            "self-distillations after plain training, with which they share the budget evenly",
            least=0,
            stage="train",
        ),
        share("alpha", 0.5, "weight of the teacher's predictions against labels", stage="train"),
        positive("temperature", 4.0, "temperature of the distillation", stage="train"),
        *_ADAM,
    ),
)

S2M2: Final = AlgorithmSpec(
    name="s2m2",
    version="1",
    factory="medbench_algorithms.fine_tuning.s2m2:S2M2",
    trainer="medbench_algorithms.common.manifold_mixup:ManifoldMixup",
    summary="S2M2: training with rotations, then with manifold mixup; a cosine head by SGD",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="Charting the Right Manifold: Manifold Mixup for Few-shot Learning",
        authors="Puneet Mangla, Mayank Singh, Abhishek Sinha, Nupur Kumari, Vineeth N "
        "Balasubramanian, Balaji Krishnamurthy",
        venue="WACV",
        year=2020,
        url="https://arxiv.org/abs/1907.12087",
    ),
    licence=LICENCE,
    parameters=(
        *_cosine_head(class_norms=True, scale=2.0, epochs=300),
        share(
            "rotation_share",
            0.8,
            "share of the training budget that goes into the phase of rotations alone",
            stage="train",
        ),
        positive("alpha", 2.0, "shares of mixing are drawn from Beta(alpha, alpha)", stage="train"),
        positive("scale", 2.0, "what cosines are multiplied by in training", stage="train"),
        positive("lr", 1e-3, "Adam's learning rate", stage="train"),
        count("batch_size", 64, "images a training step, in eighths", least=8, stage="train"),
    ),
)

SPECS: Final = (BASELINE_PLUS_PLUS, NEGATIVE_MARGIN, RFS, S2M2)
