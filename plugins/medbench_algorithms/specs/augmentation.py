"""Specs of methods that make more of few images."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    WITH_FINDINGS,
    choice,
    count,
    episodic_training,
    number,
    positive,
    share,
    supervised_pretraining,
    switch,
)

_ON_FEATURES: Final = Traits(
    works_on="features",
    adapts="linear head",
    batched=True,
    meta_trains=True,
    task_kinds=WITH_FINDINGS,
)
_ON_IMAGES: Final = Traits(
    works_on="images", adapts="linear head", meta_trains=True, task_kinds=WITH_FINDINGS
)
_C: Final = positive("C", 1.0, "inverse strength of the L2 penalty, as in scikit-learn")

DISTRIBUTION_CALIBRATION: Final = AlgorithmSpec(
    name="distribution-calibration",
    version="1",
    factory="medbench_algorithms.augmentation.distribution_calibration:DistributionCalibration",
    trainer=SUPERVISED_TRAINER,
    summary="Distribution Calibration: logistic regression on features drawn with the spread of "
    "near source classes",
    family="augmentation",
    traits=_ON_FEATURES,
    citation=Citation(
        title="Free Lunch for Few-shot Learning: Distribution Calibration",
        authors="Shuo Yang, Lu Liu, Min Xu",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2101.06395",
    ),
    licence=LICENCE,
    parameters=(
        positive("power", 0.5, "power that features are raised to (Tukey's ladder)"),
        count("k", 2, "nearest source classes that lend a support example their spread"),
        number("alpha", 0.21, "added to every entry of a calibrated covariance"),
        count("n_sampled", 750, "features drawn a class, over all its shots"),
        _C,
        *supervised_pretraining("supervised"),
    ),
)

FEATURE_HALLUCINATION: Final = AlgorithmSpec(
    name="feature-hallucination",
    version="1",
    factory="medbench_algorithms.augmentation.hallucination:FeatureHallucination",
    trainer="medbench_algorithms.augmentation.analogy_training:AnalogyTraining",
    summary="Feature hallucination: new features by analogy to how source classes vary",
    family="augmentation",
    traits=_ON_FEATURES,
    citation=Citation(
        title="Low-shot Visual Recognition by Shrinking and Hallucinating Features",
        authors="Bharath Hariharan, Ross Girshick",
        venue="ICCV",
        year=2017,
        url="https://arxiv.org/abs/1606.02819",
    ),
    licence=LICENCE,
    parameters=(
        count("n_generated", 5, "examples that classes with fewer are filled up to"),
        positive("weight_decay", 0.001, "weight decay of the linear classifier"),
        count("n_clusters", 30, "clusters a source class (100 in the paper)", stage="train"),
        count("generator_epochs", 20, "passes of the generator over all analogies", stage="train"),
        positive("lr", 1e-3, "Adam's learning rate in pretraining", stage="train"),
        count("batch_size", 64, "images a training step", least=2, stage="train"),
    ),
)

PROTONET_ROTATIONS: Final = AlgorithmSpec(
    name="protonet-rotations",
    version="1",
    factory="medbench_algorithms.augmentation.task_augmentation:ProtoNetRotations",
    summary="Prototypical Networks trained on tasks in which turned images are classes of their "
    "own",
    family="augmentation",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Task Augmentation by Rotating for Meta-Learning",
        authors="Jialin Liu, Fei Chao, Chih-Min Lin",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2003.00804",
    ),
    licence=LICENCE,
    parameters=(
        share("rotation_p", 0.25, "probability that a class of a task is turned", stage="train"),
        share(
            "ramp_share",
            1 / 6,
            "share of training over which that probability rises from 0",
            stage="train",
        ),
        choice(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "euclidean",
            "cosine",
            stage="both",
        ),
        positive("temperature", 1.0, "scores are divided by this", stage="both"),
        *episodic_training(),
    ),
)

MIXUP_SUPPORT: Final = AlgorithmSpec(
    name="mixup-support",
    version="1",
    factory="medbench_algorithms.augmentation.mixup_support:MixupSupport",
    trainer=SUPERVISED_TRAINER,
    summary="mixup and CutMix of the support images, then logistic regression on unit features",
    family="augmentation",
    traits=_ON_IMAGES,
    citation=Citation(
        title="mixup: Beyond Empirical Risk Minimization; CutMix: Regularization Strategy to "
        "Train Strong Classifiers with Localizable Features",
        authors="Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz; Sangdoo Yun, "
        "Dongyoon Han, Seong Joon Oh, Sanghyuk Chun, Junsuk Choe, Youngjoon Yoo",
        venue="ICLR 2018; ICCV 2019",
        year=2018,
        url="https://arxiv.org/abs/1710.09412",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "mix",
            "both",
            "weighted sums (mixup), boxes from another image (cutmix), or either at random",
            "mixup",
            "cutmix",
            "both",
        ),
        positive("alpha", 1.0, "shares of mixing are drawn from Beta(alpha, alpha)"),
        count("n_mixed", 5, "mixtures a support image"),
        _C,
        *supervised_pretraining("supervised"),
    ),
)

SUPPORT_AUGMENTATION: Final = AlgorithmSpec(
    name="support-augmentation",
    version="1",
    factory="medbench_algorithms.augmentation.support_augmentation:SupportAugmentation",
    trainer=SUPERVISED_TRAINER,
    summary="Support augmentation: a head on support images and slightly changed copies of them",
    family="augmentation",
    traits=_ON_IMAGES,
    citation=Citation(
        title="Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?",
        authors="Yonglong Tian, Yue Wang, Dilip Krishnan, Joshua B. Tenenbaum, Phillip Isola",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/2003.11539",
    ),
    licence=LICENCE,
    parameters=(
        count("n_augmented", 5, "changed copies a support image"),
        choice(
            "head",
            "logistic",
            "logistic regression, or the nearest class mean; of unit features",
            "logistic",
            "prototypes",
        ),
        _C,
        number("rotation", 10.0, "degrees to either side", most=180.0),
        share("shift", 0.05, "share of the image's side"),
        number("zoom", 0.1, "scale of up to 1 +- this", most=0.9),
        number("brightness", 0.1, "factor of up to 1 +- this", most=0.9),
        number("contrast", 0.1, "factor of up to 1 +- this", most=0.9),
        switch("flips", default=False, text="mirror left and right, at random"),
        *supervised_pretraining("supervised"),
    ),
)

SPECS: Final = (
    DISTRIBUTION_CALIBRATION,
    FEATURE_HALLUCINATION,
    PROTONET_ROTATIONS,
    MIXUP_SUPPORT,
    SUPPORT_AUGMENTATION,
)
