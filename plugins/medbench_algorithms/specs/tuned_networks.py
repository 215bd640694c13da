"""Specs of methods that tune the network itself, or something inside it, on each support set."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    WITH_FINDINGS,
    choice,
    count,
    number,
    positive,
    share,
    supervised_pretraining,
)

_MODULE: Final = "medbench_algorithms.fine_tuning"


def _traits(adapts: str) -> Traits:
    return Traits(works_on="images", adapts=adapts, meta_trains=True, task_kinds=WITH_FINDINGS)


def _descent(lr: float, epochs: int) -> tuple[Parameter, ...]:
    return (
        positive("tune_lr", lr, "learning rate of what is tuned in the network"),
        positive("head_lr", lr, "learning rate of the linear head"),
        count("tune_epochs", epochs, "passes over the support set", least=0),
        Parameter(
            "tune_batch_size",
            None,
            "support images a step, in random order; null takes the whole support set",
            "int",
            minimum=1,
            optional=True,
            stage="adapt",
        ),
    )


_HEAD: Final = choice(
    "head",
    "normalised",
    "the linear head's start: class means of unit length on features of unit length (normalised), "
    "Prototypical Networks' logits as ProtoMAML writes them (prototype), or random",
    "normalised",
    "prototype",
    "random",
)


def _part(
    name: str, factory: str, summary: str, adapts: str, citation: Citation, lr: float
) -> AlgorithmSpec:
    return AlgorithmSpec(
        name=name,
        version="1",
        factory=f"{_MODULE}.network:{factory}",
        trainer=SUPERVISED_TRAINER,
        summary=summary,
        family="fine-tuning",
        traits=_traits(adapts),
        citation=citation,
        licence=LICENCE,
        parameters=(
            choice("optimiser", "adam", "how the loss is descended", "adam", "sgd"),
            *_descent(lr, 25),
            share("momentum", 0.0, "SGD's momentum; Adam has its own"),
            number("weight_decay", 0.0, "L2 penalty on all that is tuned, the head included"),
            _HEAD,
            *supervised_pretraining("supervised"),
        ),
    )


FULL_FINE_TUNING: Final = _part(
    "full-fine-tuning",
    "FullFineTuning",
    "Fine-tuning of all weights and a head that starts from the class means",
    "all weights",
    Citation(
        title="A Baseline for Few-Shot Image Classification",
        authors="Guneet S. Dhillon, Pratik Chaudhari, Avinash Ravichandran, Stefano Soatto",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1909.02729",
    ),
    5e-5,
)

LAST_BLOCK_FINE_TUNING: Final = _part(
    "last-block-fine-tuning",
    "LastBlockFineTuning",
    "Fine-tuning of the last block and a head; earlier layers stay frozen",
    "last block",
    Citation(
        title="A Broader Study of Cross-Domain Few-Shot Learning",
        authors="Yunhui Guo, Noel C. Codella, Leonid Karlinsky, James V. Codella, John R. Smith, "
        "Kate Saenko, Tajana Rosing, Rogerio Feris",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/1912.07200",
    ),
    5e-5,
)

NORM_TUNING: Final = _part(
    "norm-tuning",
    "NormTuning",
    "Fine-tuning of the normalisation layers' scales and shifts, and a head",
    "normalisation layers",
    Citation(
        title="Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features "
        "in CNNs",
        authors="Jonathan Frankle, David J. Schwab, Ari S. Morcos",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2003.00152",
    ),
    1e-3,
)

BIAS_TUNING: Final = _part(
    "bias-tuning",
    "BiasTuning",
    "BitFit: fine-tuning of the biases alone, and a head",
    "biases",
    Citation(
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
        "Language-models",
        authors="Elad Ben Zaken, Yoav Goldberg, Shauli Ravfogel",
        venue="ACL",
        year=2022,
        url="https://arxiv.org/abs/2106.10199",
    ),
    1e-3,
)

LORA: Final = AlgorithmSpec(
    name="lora",
    version="1",
    factory=f"{_MODULE}.lora:LoRA",
    trainer=SUPERVISED_TRAINER,
    summary="LoRA: low-rank updates of a vision transformer's attention, and a head",
    family="fine-tuning",
    traits=_traits("low-rank updates of attention"),
    citation=Citation(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, "
        "Shean Wang, Lu Wang, Weizhu Chen",
        venue="ICLR",
        year=2022,
        url="https://arxiv.org/abs/2106.09685",
    ),
    licence=LICENCE,
    parameters=(
        count("rank", 4, "rank of the updates"),
        positive("alpha", 32.0, "updates are multiplied by alpha / rank"),
        choice(
            "target",
            "qv",
            "projections that are updated: queries and values, or keys and the output too",
            "qv",
            "qkvo",
        ),
        *_descent(2e-4, 50),
        number("weight_decay", 0.01, "AdamW's weight decay"),
        _HEAD,
        *supervised_pretraining("supervised"),
    ),
)

ADAPTERS: Final = AlgorithmSpec(
    name="adapters",
    version="1",
    factory=f"{_MODULE}.adapters:Adapters",
    trainer=SUPERVISED_TRAINER,
    summary="Adapters: small bottleneck networks inside a vision transformer, and a head",
    family="fine-tuning",
    traits=_traits("bottleneck adapters"),
    citation=Citation(
        title="Parameter-Efficient Transfer Learning for NLP",
        authors="Neil Houlsby, Andrei Giurgiu, Stanislaw Jastrzebski, Bruna Morrone, "
        "Quentin de Laroussilhe, Andrea Gesmundo, Mona Attariyan, Sylvain Gelly",
        venue="ICML",
        year=2019,
        url="https://arxiv.org/abs/1902.00751",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "kind",
            "houlsby",
            "after attention and MLP, with tuned normalisation (houlsby), or beside the MLP "
            "(adaptformer: Chen et al. 2022, arXiv 2205.13535)",
            "houlsby",
            "adaptformer",
        ),
        count("bottleneck", 64, "width of the adapters' hidden layer"),
        *_descent(3e-4, 50),
        number("weight_decay", 0.0, "Adam's L2 penalty"),
        _HEAD,
        *supervised_pretraining("supervised"),
    ),
)

TSA: Final = AlgorithmSpec(
    name="tsa",
    version="1",
    factory=f"{_MODULE}.tsa:TaskSpecificAdapters",
    trainer=SUPERVISED_TRAINER,
    summary="TSA: 1x1 convolutions beside a frozen network's, and a map of its features",
    family="fine-tuning",
    traits=_traits("residual adapters"),
    citation=Citation(
        title="Cross-domain Few-shot Learning with Task-specific Adapters",
        authors="Wei-Hong Li, Xialei Liu, Hakan Bilen",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2107.00358",
    ),
    licence=LICENCE,
    parameters=(
        positive("tune_lr", 0.5, "Adadelta's learning rate of the adapters"),
        positive("align_lr", 1.0, "Adadelta's learning rate of the map of the features"),
        count("steps", 40, "steps on the whole support set", least=0),
        *supervised_pretraining("supervised"),
    ),
)

SPECS: Final = (
    FULL_FINE_TUNING,
    LAST_BLOCK_FINE_TUNING,
    NORM_TUNING,
    BIAS_TUNING,
    LORA,
    ADAPTERS,
    TSA,
)
