"""Specs of methods that look at all queries of an episode together."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    choice,
    count,
    episodic_training,
    number,
    positive,
    share,
    supervised_pretraining,
    switch,
)


def _traits(adapts: str) -> Traits:
    return Traits(
        works_on="features", adapts=adapts, transductive=True, batched=True, meta_trains=True
    )


def _optional_count(name: str, text: str) -> Parameter:
    return replace(count(name, 1, text), default=None, optional=True)


def _normalize(default: str) -> Parameter:
    return choice(
        "normalize",
        default,
        "features as they are, of unit length (l2), or centred on the source images' mean and then "
        "of unit length (cl2)",
        "none",
        "l2",
        "cl2",
    )


_TAU: Final = positive("tau", 15.0, "logits are minus half of this times the squared distance")
_HEAD_LR: Final = positive("head_lr", 1e-4, "Adam's learning rate for class weights (solver gd)")


def _information(support: float, conditional: float) -> tuple[Parameter, ...]:
    return (
        positive("support_weight", support, "weight of the support set's cross-entropy"),
        number("marginal_weight", 1.0, "weight of the entropy of all predictions together"),
        number("conditional_weight", conditional, "weight of the entropy of each prediction"),
    )


TIM: Final = AlgorithmSpec(
    name="tim",
    version="1",
    factory="medbench_algorithms.transductive.tim:TIM",
    trainer=SUPERVISED_TRAINER,
    summary="TIM: class weights that maximise information between queries and their predictions",
    family="transductive",
    traits=_traits("linear head"),
    citation=Citation(
        title="Transductive Information Maximization For Few-Shot Learning",
        authors="Malik Boudiaf, Imtiaz Masud Ziko, Jérôme Rony, Jose Dolz, Pablo Piantanida, "
        "Ismail Ben Ayed",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2008.11297",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "solver",
            "gd",
            "Adam (gd), or closed-form updates in turn (adm), which are several times as fast",
            "gd",
            "adm",
        ),
        _optional_count("steps", "steps of the solver; null takes 1000 of gd, 150 of adm"),
        _TAU,
        *_information(0.1, 0.1),
        _HEAD_LR,
        *supervised_pretraining("supervised"),
    ),
)

ALPHA_TIM: Final = AlgorithmSpec(
    name="alpha-tim",
    version="1",
    factory="medbench_algorithms.transductive.tim:AlphaTIM",
    trainer=SUPERVISED_TRAINER,
    summary="alpha-TIM: TIM with Tsallis entropies, for queries of unequal class frequencies",
    family="transductive",
    traits=_traits("linear head"),
    citation=Citation(
        title="Realistic Evaluation of Transductive Few-Shot Learning",
        authors="Olivier Veilleux, Malik Boudiaf, Pablo Piantanida, Ismail Ben Ayed",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2204.11181",
    ),
    licence=LICENCE,
    parameters=(
        replace(
            positive(
                "alpha",
                1.0,
                "order of the entropies, 1 is Shannon's; null takes 2 for one shot, 7 for five or "
                "more, 5 between",
            ),
            default=None,
            optional=True,
        ),
        count("steps", 1000, "steps of Adam"),
        _TAU,
        *_information(1.0, 1.0),
        _HEAD_LR,
        *supervised_pretraining("supervised"),
    ),
)

LAPLACIAN_SHOT: Final = AlgorithmSpec(
    name="laplacian-shot",
    version="1",
    factory="medbench_algorithms.transductive.laplacian_shot:LaplacianShot",
    trainer=SUPERVISED_TRAINER,
    summary="LaplacianShot: nearest prototypes, with neighbouring queries made to agree",
    family="transductive",
    traits=_traits("nothing"),
    citation=Citation(
        title="Laplacian Regularized Few-Shot Learning",
        authors="Imtiaz Masud Ziko, Jose Dolz, Eric Granger, Ismail Ben Ayed",
        venue="ICML",
        year=2020,
        url="https://arxiv.org/abs/2006.15486",
    ),
    licence=LICENCE,
    parameters=(
        count("knn", 3, "a query is joined to its nearest so many queries, itself counted"),
        number("strength", 1.0, "lambda: how much neighbours pull"),
        switch(
            "rectify",
            default=True,
            text="correct prototypes and shift queries first, as the authors' code does",
        ),
        count("steps", 20, "bound updates at most"),
        _normalize("cl2"),
        *supervised_pretraining("supervised"),
    ),
)

BD_CSPN: Final = AlgorithmSpec(
    name="bd-cspn",
    version="1",
    factory="medbench_algorithms.transductive.bd_cspn:BDCSPN",
    trainer=SUPERVISED_TRAINER,
    summary="BD-CSPN: cosine prototypes corrected by shifted and pseudo-labelled queries",
    family="transductive",
    traits=_traits("nothing"),
    citation=Citation(
        title="Prototype Rectification for Few-Shot Learning",
        authors="Jinlu Liu, Liang Song, Yongqiang Qin",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/1911.10713",
    ),
    licence=LICENCE,
    parameters=(
        positive("epsilon", 10.0, "what cosines are multiplied by"),
        _optional_count("confident", "a class takes its so many surest queries; null takes all"),
        _normalize("l2"),
        *supervised_pretraining("supervised"),
    ),
)

PT_MAP: Final = AlgorithmSpec(
    name="pt-map",
    version="1",
    factory="medbench_algorithms.transductive.pt_map:PTMAP",
    trainer=SUPERVISED_TRAINER,
    summary="PT-MAP: power-transformed features, class centres by balanced optimal transport",
    family="transductive",
    traits=_traits("class centres"),
    citation=Citation(
        title="Leveraging the Feature Distribution in Transfer-based Few-Shot Learning",
        authors="Yuqing Hu, Vincent Gripon, Stéphane Pateux",
        venue="ICANN",
        year=2021,
        url="https://arxiv.org/abs/2006.03806",
    ),
    licence=LICENCE,
    parameters=(
        count("steps", 20, "moves of the centres"),
        positive("beta", 0.5, "features are raised to this power"),
        positive("sharpness", 10.0, "lambda: what squared distances are multiplied by"),
        share("centre_rate", 0.2, "alpha: the share of the way that centres move"),
        choice(
            "negatives",
            "clip",
            "negative features count as zero (clip), or keep their sign (sign)",
            "clip",
            "sign",
        ),
        *supervised_pretraining("supervised"),
    ),
)

TRANSDUCTIVE_FINE_TUNING: Final = AlgorithmSpec(
    name="transductive-fine-tuning",
    version="1",
    factory="medbench_algorithms.transductive.transductive_fine_tuning:TransductiveFineTuning",
    trainer=SUPERVISED_TRAINER,
    summary="Transductive fine-tuning: a head right on the support set and sure of the queries",
    family="transductive",
    traits=_traits("linear head"),
    citation=Citation(
        title="A Baseline for Few-Shot Image Classification",
        authors="Guneet S. Dhillon, Pratik Chaudhari, Avinash Ravichandran, Stefano Soatto",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1909.02729",
    ),
    licence=LICENCE,
    parameters=(
        count("epochs", 25, "epochs, of two Adam steps each"),
        positive("head_lr", 5e-5, "Adam's learning rate"),
        number("entropy_weight", 1.0, "weight of the queries' entropy"),
        *supervised_pretraining("supervised"),
    ),
)

LABEL_PROPAGATION: Final = AlgorithmSpec(
    name="label-propagation",
    version="1",
    factory="medbench_algorithms.transductive.label_propagation:LabelPropagation",
    trainer=SUPERVISED_TRAINER,
    summary="Label propagation: support labels spread over a graph of all images of an episode",
    family="transductive",
    traits=_traits("nothing"),
    citation=Citation(
        title="Learning with Local and Global Consistency",
        authors="Dengyong Zhou, Olivier Bousquet, Thomas Navin Lal, Jason Weston, "
        "Bernhard Schölkopf",
        venue="NeurIPS",
        year=2004,
        url="https://papers.nips.cc/paper/2506-learning-with-local-and-global-consistency",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "kernel",
            "gaussian",
            "affinity of two images: a Gaussian of their distance, or their cosine if positive",
            "gaussian",
            "cosine",
        ),
        positive("sigma", 0.25, "the Gaussian's width"),
        number(
            "alpha",
            0.8,
            "how much an image takes from its neighbours; the paper's is 0.99",
            most=0.9999,
        ),
        _optional_count("neighbours", "neighbours an image is joined to; null joins all"),
        _normalize("cl2"),
        *supervised_pretraining("supervised"),
    ),
)

TPN: Final = AlgorithmSpec(
    name="tpn",
    version="1",
    factory="medbench_algorithms.transductive.tpn:TPN",
    summary="TPN: label propagation over a graph whose construction is learned",
    family="transductive",
    traits=_traits("nothing"),
    citation=Citation(
        title="Learning to Propagate Labels: Transductive Propagation Network for Few-shot "
        "Learning",
        authors="Yanbin Liu, Juho Lee, Minseop Park, Saehoon Kim, Eunho Yang, Sung Ju Hwang, "
        "Yi Yang",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1805.10002",
    ),
    licence=LICENCE,
    parameters=(
        count("k", 20, "neighbours an image is joined to, itself counted", stage="both"),
        number(
            "alpha", 0.99, "how much an image takes from its neighbours", most=0.9999, stage="both"
        ),
        *(
            replace(p, default=10_000) if p.name == "lr_halve_every" else p
            for p in episodic_training()
        ),
    ),
)

GAUSSIAN_MIXTURE: Final = AlgorithmSpec(
    name="gaussian-mixture",
    version="1",
    factory="medbench_algorithms.transductive.gaussian_mixture:GaussianMixture",
    trainer=SUPERVISED_TRAINER,
    summary="Gaussian mixture: a Gaussian a class, by EM on labelled and unlabelled images",
    family="transductive",
    traits=_traits("Gaussian mixture"),
    citation=Citation(
        title="Text Classification from Labeled and Unlabeled Documents using EM",
        authors="Kamal Nigam, Andrew Kachites McCallum, Sebastian Thrun, Tom Mitchell",
        venue="Machine Learning",
        year=2000,
        url="https://doi.org/10.1023/A:1007692713085",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "covariance",
            "spherical",
            "one variance for all dimensions, or one for each",
            "spherical",
            "diag",
        ),
        switch("shared", default=True, text="all classes have the same covariance"),
        switch("learn_weights", default=True, text="classes need not be equally frequent"),
        share("query_weight", 1.0, "weight of a query beside a support image"),
        count("steps", 100, "EM steps at most"),
        number("tolerance", 1e-4, "EM ends where the log-likelihood an image gains less"),
        _normalize("cl2"),
        *supervised_pretraining("supervised"),
    ),
)

SPECS: Final = (
    TIM,
    ALPHA_TIM,
    LAPLACIAN_SHOT,
    BD_CSPN,
    PT_MAP,
    TRANSDUCTIVE_FINE_TUNING,
    LABEL_PROPAGATION,
    TPN,
    GAUSSIAN_MIXTURE,
)
