"""Specs of methods that learn where gradient descent should start."""

from __future__ import annotations

from typing import Final, Literal

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    WITH_FINDINGS,
    choice,
    count,
    number,
    positive,
    share,
    switch,
    training_shape,
)

_HEAD: Final = choice(
    "head",
    "auto",
    "start of the head: learned rows for a fixed number of classes, one learned vector shared "
    "by any number, or by whether the source's tasks all have one number",
    "auto",
    "per_class",
    "shared",
    stage="train",
)


def _first_order(*, default: bool) -> Parameter:
    return switch(
        "first_order",
        default=default,
        text="treat inner gradients as constants in the outer one (first-order MAML)",
        stage="train",
    )


def _inner_lr(default: float, text: str) -> Parameter:
    return positive("inner_lr", default, f"step size of the inner loop; {text}", stage="both")


def _steps(train: int, test: int) -> tuple[Parameter, Parameter]:
    return (
        count("inner_steps", train, "inner steps in training and validation", stage="train"),
        count("inner_steps_test", test, "inner steps at test", least=0),
    )


def _batch_norm(default: Literal["query", "support"] = "query") -> Parameter:
    whose = "of the query batch (transductive), or of the support set; the paper's code: "
    return choice(
        "batch_norm",
        default,
        f"statistics for query images: {whose}{default}",
        "query",
        "support",
        stage="both",
    )


def _outer(lr: float = 1e-3, tasks: int = 4) -> tuple[Parameter, ...]:
    return (
        positive("meta_lr", lr, "Adam's learning rate in the outer loop", stage="train"),
        count("meta_batch", tasks, "tasks an outer step", stage="train"),
        *training_shape(),
    )


_TASKS_AT_ONCE: Final = Parameter(
    "tasks_at_once",
    None,
    "tasks of a meta-batch that are vectorised together, which changes results by rounding only; "
    "null takes on a CPU as many as make small tasks large enough, and on a GPU what its memory "
    "holds",
    "int",
    minimum=1,
    optional=True,
    stage="train",
)
_VECTORISED: Final = (
    _TASKS_AT_ONCE,
    switch(
        "recompute",
        default=False,
        text="take inner steps twice instead of keeping what the outer gradient needs of them",
        stage="train",
    ),
)


def _decay(factor: float, every: int) -> tuple[Parameter, Parameter]:
    return (
        share("meta_lr_decay", factor, "what meta_lr is multiplied by", stage="train"),
        count("meta_lr_decay_every", every, "outer steps after which that happens", stage="train"),
    )


def _traits(adapts: str, *, parallel: bool = True) -> Traits:
    return Traits(
        works_on="images",
        adapts=adapts,
        transductive={"batch_norm": ("query",)},
        meta_trains=True,
        parallel=parallel,
        task_kinds=WITH_FINDINGS,
    )


_MAML_PAPER: Final = Citation(
    title="Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    authors="Chelsea Finn, Pieter Abbeel, Sergey Levine",
    venue="ICML",
    year=2017,
    url="https://arxiv.org/abs/1703.03400",
)
_REPTILE_PAPER: Final = Citation(
    title="On First-Order Meta-Learning Algorithms",
    authors="Alex Nichol, Joshua Achiam, John Schulman",
    venue="arXiv",
    year=2018,
    url="https://arxiv.org/abs/1803.02999",
)
_MAML_LR: Final = _inner_lr(
    0.01,
    "the paper's for miniImageNet (Omniglot 5-way: 0.4), and short trainings want larger ones",
)

MAML: Final = AlgorithmSpec(
    name="maml",
    version="1",
    factory="medbench_algorithms.optimisation.maml:MAML",
    summary="MAML: learned initial weights, adapted by a few gradient steps",
    family="optimisation",
    traits=_traits("all weights"),
    citation=_MAML_PAPER,
    licence=LICENCE,
    parameters=(
        _MAML_LR,
        *_steps(5, 10),
        _first_order(default=False),
        _HEAD,
        _batch_norm(),
        *_outer(),
        *_VECTORISED,
    ),
)

FOMAML: Final = AlgorithmSpec(
    name="fomaml",
    version="1",
    factory="medbench_algorithms.optimisation.maml:FOMAML",
    summary="FOMAML: MAML without second derivatives, its first-order approximation",
    family="optimisation",
    traits=_traits("all weights"),
    citation=_MAML_PAPER,
    licence=LICENCE,
    parameters=(_MAML_LR, *_steps(5, 10), _HEAD, _batch_norm(), *_outer(), _TASKS_AT_ONCE),
)

ANIL: Final = AlgorithmSpec(
    name="anil",
    version="1",
    factory="medbench_algorithms.optimisation.anil:ANIL",
    summary="ANIL: MAML whose inner loop adapts the head alone",
    family="optimisation",
    traits=_traits("linear head"),
    citation=Citation(
        title="Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
        authors="Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1909.09157",
    ),
    licence=LICENCE,
    parameters=MAML.parameters,
)

BOIL: Final = AlgorithmSpec(
    name="boil",
    version="1",
    factory="medbench_algorithms.optimisation.boil:BOIL",
    summary="BOIL: MAML whose inner loop adapts the body alone, so that features must change",
    family="optimisation",
    traits=_traits("all weights but the head's"),
    citation=Citation(
        title="BOIL: Towards Representation Change for Few-shot Learning",
        authors="Jaehoon Oh, Hyungjun Yoo, ChangHwan Kim, Se-Young Yun",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2008.08882",
    ),
    licence=LICENCE,
    parameters=(
        _inner_lr(0.5, "the authors' for Conv-4"),
        *_steps(1, 1),
        _first_order(default=False),
        _batch_norm(),
        *_outer(),
        *_VECTORISED,
    ),
)

REPTILE: Final = AlgorithmSpec(
    name="reptile",
    version="1",
    factory="medbench_algorithms.optimisation.reptile:Reptile",
    summary="Reptile: a start that moves towards the solution of each task it is trained on",
    family="optimisation",
    traits=_traits("all weights", parallel=False),
    citation=_REPTILE_PAPER,
    licence=LICENCE,
    parameters=(
        _inner_lr(1e-3, "Adam's learning rate without momentum; the paper's in all settings"),
        count("inner_steps", 5, "inner steps in training", stage="train"),
        count("inner_batch", 10, "images an inner step in training", stage="train"),
        # Validation adapts as the test does, so these two change what is kept.
        count("inner_steps_test", 50, "inner steps at validation and test", least=0, stage="both"),
        count("inner_batch_test", 5, "images an inner step at validation and test", stage="both"),
        _batch_norm(),
        positive(
            "meta_lr",
            1.0,
            "share of the way to the tasks' solutions that an outer step goes; falls to zero",
            stage="train",
        ),
        count("meta_batch", 5, "tasks an outer step", stage="train"),
        *training_shape(),
    ),
)

META_SGD: Final = AlgorithmSpec(
    name="meta-sgd",
    version="1",
    factory="medbench_algorithms.optimisation.meta_sgd:MetaSGD",
    summary="Meta-SGD: MAML that learns an inner rate for every single weight",
    family="optimisation",
    traits=_traits("all weights"),
    citation=Citation(
        title="Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
        authors="Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li",
        venue="arXiv",
        year=2017,
        url="https://arxiv.org/abs/1707.09835",
    ),
    licence=LICENCE,
    parameters=(
        number("inner_lr_min", 0.005, "least first value of the learned rates", stage="train"),
        number("inner_lr_max", 0.1, "greatest first value of the learned rates", stage="train"),
        *_steps(1, 1),
        _first_order(default=False),
        _HEAD,
        _batch_norm(),
        *_outer(),
        *_VECTORISED,
    ),
)

MAML_PLUS_PLUS: Final = AlgorithmSpec(
    name="maml-plus-plus",
    version="1",
    factory="medbench_algorithms.optimisation.maml_plus_plus:MAMLPlusPlus",
    summary="MAML++: MAML with five stabilisers: losses, norms and rates by step, two annealings",
    family="optimisation",
    traits=_traits("all weights"),
    citation=Citation(
        title="How to train your MAML",
        authors="Antreas Antoniou, Harrison Edwards, Amos Storkey",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1810.09502",
    ),
    licence=LICENCE,
    parameters=(
        _inner_lr(0.01, "where the learned rates start; the authors' for miniImageNet"),
        *_steps(5, 5),
        share(
            "multi_step_share",
            0.15,
            "share of training in which the query losses after all inner steps count; 0 for none",
            stage="train",
        ),
        share(
            "first_order_share",
            0.33,
            "share of training, at its beginning, that is first-order; 0 for none",
            stage="train",
        ),
        switch(
            "per_step_norm",
            default=True,
            text="scales and shifts of BatchNorm are learned for each inner step apart",
            stage="train",
        ),
        switch(
            "learned_rates",
            default=True,
            text="an inner rate is learned for each tensor of weights and each inner step",
            stage="train",
        ),
        switch("cosine", default=True, text="meta_lr falls along half a cosine", stage="train"),
        positive("meta_lr_min", 1e-5, "where the cosine ends", stage="train"),
        _HEAD,
        _batch_norm(),
        *_outer(),
        *_VECTORISED,
    ),
)

IMAML: Final = AlgorithmSpec(
    name="imaml",
    version="1",
    factory="medbench_algorithms.optimisation.imaml:IMAML",
    summary="iMAML: MAML held near its start, with an implicit outer gradient",
    family="optimisation",
    traits=_traits("all weights"),
    citation=Citation(
        title="Meta-Learning with Implicit Gradients",
        authors="Aravind Rajeswaran, Chelsea Finn, Sham Kakade, Sergey Levine",
        venue="NeurIPS",
        year=2019,
        url="https://arxiv.org/abs/1909.04630",
    ),
    licence=LICENCE,
    parameters=(
        _inner_lr(0.1, "the authors' for Omniglot"),
        *_steps(16, 16),
        positive("proximal", 2.0, "how strongly weights are held near the start", stage="both"),
        count("cg_steps", 5, "conjugate-gradient steps of the outer gradient", stage="train"),
        _HEAD,
        _batch_norm(),
        *_outer(),
    ),
)

PROTOMAML: Final = AlgorithmSpec(
    name="protomaml",
    version="1",
    factory="medbench_algorithms.optimisation.protomaml:ProtoMAML",
    summary="Proto-MAML: MAML whose head starts as the prototypes of the support set",
    family="optimisation",
    traits=_traits("all weights"),
    citation=Citation(
        title="Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
        authors="Eleni Triantafillou, Tyler Zhu, Vincent Dumoulin, Pascal Lamblin, Utku Evci, "
        "Kelvin Xu, Ross Goroshin, Carles Gelada, Kevin Swersky, Pierre-Antoine Manzagol, "
        "Hugo Larochelle",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1903.03096",
    ),
    licence=LICENCE,
    parameters=(
        _inner_lr(0.0054, "the authors' for ImageNet"),
        *_steps(6, 6),
        _first_order(default=True),
        _batch_norm("support"),
        *_decay(0.65, 2500),
        *_outer(3.6e-4, 1),
        *_VECTORISED,
    ),
)

CAVIA: Final = AlgorithmSpec(
    name="cavia",
    version="1",
    factory="medbench_algorithms.optimisation.cavia:CAVIA",
    summary="CAVIA: a short context vector is adapted, which scales and shifts one layer",
    family="optimisation",
    traits=_traits("context parameters"),
    citation=Citation(
        title="Fast Context Adaptation via Meta-Learning",
        authors="Luisa Zintgraf, Kyriacos Shiarlis, Vitaly Kurin, Katja Hofmann, Shimon Whiteson",
        venue="ICML",
        year=2019,
        url="https://arxiv.org/abs/1810.03642",
    ),
    licence=LICENCE,
    parameters=(
        count("n_context", 100, "context parameters", stage="train"),
        _inner_lr(1.0, "the paper's for miniImageNet"),
        *_steps(2, 2),
        _first_order(default=False),
        _batch_norm(),
        *_decay(0.9, 5000),
        *_outer(),
        *_VECTORISED,
    ),
)

SPECS: Final = (
    MAML,
    FOMAML,
    ANIL,
    BOIL,
    REPTILE,
    META_SGD,
    MAML_PLUS_PLUS,
    IMAML,
    PROTOMAML,
    CAVIA,
)
