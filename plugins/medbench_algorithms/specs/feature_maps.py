"""Specs of methods that compare feature maps, place by place."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    WITH_FINDINGS,
    choice,
    count,
    episodic_training,
    number,
    positive,
    switch,
)

_TRAITS: Final = Traits(
    works_on="maps", adapts="nothing", batched=True, meta_trains=True, task_kinds=WITH_FINDINGS
)

DN4: Final = AlgorithmSpec(
    name="dn4",
    version="1",
    factory="medbench_algorithms.metric.dn4:DN4",
    summary="DN4: the nearest local descriptors of a class, for every place of a query",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="Revisiting Local Descriptor based Image-to-Class Measure for Few-shot Learning",
        authors="Wenbin Li, Lei Wang, Jinglin Xu, Jing Huo, Yang Gao, Jiebo Luo",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1903.12290",
    ),
    licence=LICENCE,
    parameters=(
        count(
            "k",
            3,
            "nearest descriptors of a class that count; all, where it has fewer",
            stage="both",
        ),
        *episodic_training(),
    ),
)

FRN: Final = AlgorithmSpec(
    name="frn",
    version="1",
    factory="medbench_algorithms.metric.frn:FRN",
    summary="Feature Map Reconstruction Networks: the class whose descriptors rebuild a query best",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="Few-Shot Classification with Feature Map Reconstruction Networks",
        authors="Davis Wertheimer, Luming Tang, Bharath Hariharan",
        venue="CVPR",
        year=2021,
        url="https://arxiv.org/abs/2012.01506",
    ),
    licence=LICENCE,
    parameters=(
        switch(
            "rescale",
            default=False,
            text="divide maps by the root of their channels, as the authors do for ResNet-12",
            stage="both",
        ),
        number(
            "auxiliary",
            0.03,
            "weight of the loss that sets the descriptors of two classes at right angles",
            stage="train",
        ),
        choice(
            "auxiliary_norm",
            "all",
            "in that loss, scale a support set to unit length as a whole (the authors' code), or "
            "each descriptor (the paper's text)",
            "all",
            "rows",
            stage="train",
        ),
        *episodic_training(),
    ),
)

DEEPEMD: Final = AlgorithmSpec(
    name="deepemd",
    version="1",
    factory="medbench_algorithms.metric.deepemd:DeepEMD",
    summary="DeepEMD: the Earth Mover's Distance between the places of a query and of a class",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="DeepEMD: Few-Shot Image Classification with Differentiable Earth Mover's Distance "
        "and Structured Classifiers",
        authors="Chi Zhang, Yujun Cai, Guosheng Lin, Chunhua Shen",
        venue="CVPR",
        year=2020,
        url="https://arxiv.org/abs/2003.06777",
    ),
    licence=LICENCE,
    parameters=(
        positive("temperature", 12.5, "similarities are multiplied by this", stage="both"),
        choice(
            "solver",
            "exact",
            "plans at test: exact by POT's network simplex or by "
            "SciPy's linprog (slower), or Sinkhorn's",
            "exact",
            "linprog",
            "sinkhorn",
        ),
        choice(
            "train_solver",
            "sinkhorn",
            "plans in training and validation; exact ones are found on the CPU",
            "exact",
            "linprog",
            "sinkhorn",
            stage="train",
        ),
        positive("epsilon", 0.05, "weight of the entropy in Sinkhorn's plans", stage="both"),
        count("iterations", 100, "rounds of Sinkhorn's iteration", stage="both"),
        count(
            "sfc_steps",
            0,
            "passes over a support set of several shots that fit the class maps (the paper's "
            "structured fully connected layer: 100); 0 keeps mean maps",
            least=0,
        ),
        positive("sfc_lr", 0.1, "learning rate of that fit"),
        *episodic_training(pretrain_share=0.5),
    ),
)

DEEPBDC: Final = AlgorithmSpec(
    name="deepbdc",
    version="1",
    factory="medbench_algorithms.metric.deepbdc:MetaDeepBDC",
    summary="Meta DeepBDC: Brownian distance covariance between the channels of two images",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot "
        "Classification",
        authors="Jiangtao Xie, Fei Long, Jiaming Lv, Qilong Wang, Peihua Li",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2204.04567",
    ),
    licence=LICENCE,
    parameters=(
        count(
            "reduce_dim",
            256,
            "channels that maps with more are reduced to, by a learned 1x1 convolution",
            least=2,
            stage="both",
        ),
        choice(
            "metric",
            "auto",
            "inner product, minus the squared Euclidean distance, or (auto) the former after "
            "training on one image a class and the latter after training on more",
            "auto",
            "inner",
            "euclidean",
            stage="both",
        ),
        *episodic_training(pretrain_share=0.5),
    ),
)

CAN: Final = AlgorithmSpec(
    name="can",
    version="1",
    factory="medbench_algorithms.metric.can:CAN",
    summary="Cross Attention Network: query and class tell each other which places matter",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="Cross Attention Network for Few-shot Classification",
        authors="Ruibing Hou, Hong Chang, Bingpeng Ma, Shiguang Shan, Xilin Chen",
        venue="NeurIPS",
        year=2019,
        url="https://arxiv.org/abs/1910.07677",
    ),
    licence=LICENCE,
    parameters=(
        count("reduction", 6, "places over hidden units of the meta-learner", stage="both"),
        positive(
            "attention_temperature",
            0.025,
            "the softmax over places divides by this",
            stage="both",
        ),
        positive("scale", 7.0, "cosines are multiplied by this", stage="both"),
        *episodic_training(pretrain_share=0.5),
    ),
)

CTX: Final = AlgorithmSpec(
    name="ctx",
    version="1",
    factory="medbench_algorithms.metric.ctx:CTX",
    summary="CrossTransformers: a class prototype assembled by attention for each query place",
    family="metric",
    traits=_TRAITS,
    citation=Citation(
        title="CrossTransformers: spatially-aware few-shot transfer",
        authors="Carl Doersch, Ankush Gupta, Andrew Zisserman",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2007.11498",
    ),
    licence=LICENCE,
    parameters=(
        count("dim", 128, "length of keys and values", stage="both"),
        *episodic_training(),
    ),
)

SPECS: Final = (DN4, FRN, DEEPEMD, DEEPBDC, CAN, CTX)
