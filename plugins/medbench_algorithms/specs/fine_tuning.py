"""Specs of methods that fit a classifier to frozen features, and of those that tune a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    WITH_FINDINGS,
    WITHOUT_PRETRAINING,
    choice,
    count,
    number,
    positive,
    share,
    supervised_pretraining,
)
from medbench_algorithms.specs.tuned_networks import SPECS as TUNED_NETWORKS

_TRAITS: Final = Traits(
    works_on="features",
    adapts="linear head",
    batched=True,
    meta_trains=True,
    task_kinds=WITH_FINDINGS,
)

LINEAR_PROBE: Final = AlgorithmSpec(
    name="linear-probe",
    version="1",
    factory="medbench_algorithms.fine_tuning.linear_probe:LinearProbe",
    trainer=SUPERVISED_TRAINER,
    summary="Logistic regression on frozen features, as scikit-learn would fit it",
    family="fine-tuning",
    traits=replace(_TRAITS, sources_optional=WITHOUT_PRETRAINING),
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

SWEPT_PROBE: Final = AlgorithmSpec(
    name="swept-probe",
    version="1",
    factory="medbench_algorithms.fine_tuning.swept_probe:SweptProbe",
    trainer=SUPERVISED_TRAINER,
    summary="Class-balanced logistic regression, its C chosen by cross-validation in each episode",
    family="fine-tuning",
    traits=_TRAITS,
    citation=Citation(
        title="Learning Transferable Visual Models From Natural Language Supervision",
        authors="Alec Radford, Jong Wook Kim, Chris Hallacy, Aditya Ramesh, Gabriel Goh, "
        "Sandhini Agarwal, Girish Sastry, Amanda Askell, Pamela Mishkin, Jack Clark, "
        "Gretchen Krueger, Ilya Sutskever",
        venue="ICML",
        year=2021,
        url="https://arxiv.org/abs/2103.00020",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "normalize",
            "standard",
            "features with mean 0 and variance 1 over the support set, of unit length, or as "
            "they are",
            "standard",
            "l2",
            "none",
        ),
        count("folds", 5, "folds at most; fewer where a class has fewer images", least=2),
        choice("select_by", "log_loss", "what is best on held-out images", "log_loss", "accuracy"),
        positive("C_min", 1e-4, "smallest inverse strength of the L2 penalty"),
        positive("C_max", 1e4, "largest inverse strength of the L2 penalty"),
        count("n_C", 9, "strengths tried, in logarithmic steps"),
        positive("C_one_shot", 1.0, "C where some class has one image and none can be held out"),
        *supervised_pretraining("none"),
    ),
)

_TIP_CITATION: Final = Citation(
    title="Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
    authors="Renrui Zhang, Wei Zhang, Rongyao Fang, Peng Gao, Kunchang Li, Jifeng Dai, Yu Qiao, "
    "Hongsheng Li",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2207.09519",
)
_TIP_BLEND: Final = (
    number("alpha", 1.0, "weight of the cache beside the nearest centroid"),
    positive("beta", 5.5, "how fast the affinity falls with the cosine"),
    positive("logit_scale", 10.0, "factor of the cosines to the centroids"),
)

TIP_ADAPTER: Final = AlgorithmSpec(
    name="tip-adapter",
    version="1",
    factory="medbench_algorithms.fine_tuning.tip_adapter:TipAdapter",
    trainer=SUPERVISED_TRAINER,
    summary="Tip-Adapter: a cache of support features beside the nearest centroid, untrained",
    family="fine-tuning",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=_TIP_CITATION,
    licence=LICENCE,
    parameters=(*_TIP_BLEND, *supervised_pretraining("supervised")),
)

TIP_ADAPTER_F: Final = AlgorithmSpec(
    name="tip-adapter-f",
    version="1",
    factory="medbench_algorithms.fine_tuning.tip_adapter:TipAdapterF",
    trainer=SUPERVISED_TRAINER,
    summary="Tip-Adapter-F: Tip-Adapter whose cached features are fine-tuned",
    family="fine-tuning",
    traits=Traits(
        works_on="features",
        adapts="cached features",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=_TIP_CITATION,
    licence=LICENCE,
    parameters=(
        *_TIP_BLEND,
        count("tune_epochs", 20, "AdamW steps on the whole support set", least=0),
        positive("tune_lr", 1e-3, "AdamW's learning rate at first"),
        *supervised_pretraining("supervised"),
    ),
)

SPECS: Final = (
    LINEAR_PROBE,
    SWEPT_PROBE,
    BASELINE,
    TIP_ADAPTER,
    TIP_ADAPTER_F,
    *TUNED_NETWORKS,
)
