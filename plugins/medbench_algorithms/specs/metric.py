"""Specs of methods that compare distances between features."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits
from medbench_algorithms.specs.shared import (
    LICENCE,
    SUPERVISED_TRAINER,
    WITH_FINDINGS,
    WITHOUT_PRETRAINING,
    choice,
    count,
    episodic_training,
    number,
    positive,
    supervised_pretraining,
    switch,
)

PROTONET: Final = AlgorithmSpec(
    name="protonet",
    version="1",
    factory="medbench_algorithms.metric.protonet:ProtoNet",
    summary="Prototypical Networks: the nearest class mean, in a space trained for that",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        parallel=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Prototypical Networks for Few-shot Learning",
        authors="Jake Snell, Kevin Swersky, Richard Zemel",
        venue="NeurIPS",
        year=2017,
        url="https://arxiv.org/abs/1703.05175",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "euclidean",
            "cosine",
            stage="both",
        ),
        positive(
            "temperature",
            1.0,
            "scores are divided by this; the paper uses none, cosine gains from 0.1",
            stage="both",
        ),
        count("meta_batch", 1, "episodes a training step; the mean of their losses", stage="train"),
        *episodic_training(),
    ),
)

SIMPLESHOT: Final = AlgorithmSpec(
    name="simpleshot",
    version="1",
    factory="medbench_algorithms.metric.simpleshot:SimpleShot",
    trainer=SUPERVISED_TRAINER,
    summary="SimpleShot: the nearest centroid on centred features of unit length",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning",
        authors="Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1911.04623",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "normalize",
            "cl2",
            "features as they are, of unit length (l2), or centred on the source images' mean and "
            "then of unit length (cl2)",
            "none",
            "l2",
            "cl2",
        ),
        *supervised_pretraining("supervised"),
    ),
)

NEAREST_NEIGHBOUR: Final = AlgorithmSpec(
    name="nearest-neighbour",
    version="1",
    factory="medbench_algorithms.metric.nearest_neighbour:NearestNeighbour",
    trainer=SUPERVISED_TRAINER,
    summary="The label of the nearest support image, or a vote of the nearest k",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        sources_optional=WITHOUT_PRETRAINING,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Nearest Neighbor Pattern Classification",
        authors="Thomas M. Cover, Peter E. Hart",
        venue="IEEE Transactions on Information Theory",
        year=1967,
        url="https://doi.org/10.1109/TIT.1967.1053964",
    ),
    licence=LICENCE,
    parameters=(
        count("k", 1, "how many neighbours vote; all, where the support set has fewer"),
        choice(
            "metric",
            "euclidean",
            "squared Euclidean distance, or one minus the cosine",
            "euclidean",
            "cosine",
        ),
        *supervised_pretraining("none"),
    ),
)

MATCHING_NETWORKS: Final = AlgorithmSpec(
    name="matching-networks",
    version="1",
    factory="medbench_algorithms.metric.matching_networks:MatchingNetworks",
    summary="Matching Networks: support images vote for their class by softmax of cosines",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Matching Networks for One Shot Learning",
        authors="Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, "
        "Daan Wierstra",
        venue="NeurIPS",
        year=2016,
        url="https://arxiv.org/abs/1606.04080",
    ),
    licence=LICENCE,
    parameters=(
        positive(
            "scale",
            1.0,
            "cosines are multiplied by this before the softmax; the paper uses none, Chen et al. "
            "2019 use 100",
            stage="both",
        ),
        switch(
            "fce",
            default=False,
            text="full context embeddings: LSTMs over the support set, in the order given",
            stage="both",
        ),
        Parameter(
            "fce_steps",
            None,
            "how often a query reads the support set; null takes its number of images",
            "int",
            minimum=1,
            optional=True,
        ),
        *episodic_training(),
    ),
)

RELATION_NETWORK: Final = AlgorithmSpec(
    name="relation-network",
    version="1",
    factory="medbench_algorithms.metric.relation_network:RelationNetwork",
    summary="Relation Networks: a network learns to compare a query's map with each class's",
    family="metric",
    traits=Traits(
        works_on="maps", adapts="nothing", batched=True, meta_trains=True, task_kinds=WITH_FINDINGS
    ),
    citation=Citation(
        title="Learning to Compare: Relation Network for Few-Shot Learning",
        authors="Flood Sung, Yongxin Yang, Li Zhang, Tao Xiang, Philip H. S. Torr, "
        "Timothy M. Hospedales",
        venue="CVPR",
        year=2018,
        url="https://arxiv.org/abs/1711.06025",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "pooling",
            "mean",
            "a class's map is the mean of its support maps, or their sum (the paper's, which fails "
            "with other shots than those of training)",
            "mean",
            "sum",
            stage="both",
        ),
        *episodic_training(lr_halve_every=100_000),
    ),
)

FEAT: Final = AlgorithmSpec(
    name="feat",
    version="1",
    factory="medbench_algorithms.metric.feat:FEAT",
    summary="FEAT: the nearest class mean, after a Transformer has adapted the means to each other",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions",
        authors="Han-Jia Ye, Hexiang Hu, De-Chuan Zhan, Fei Sha",
        venue="CVPR",
        year=2020,
        url="https://arxiv.org/abs/1812.03664",
    ),
    licence=LICENCE,
    parameters=(
        positive("temperature", 64.0, "squared distances are divided by this", stage="both"),
        number(
            "balance",
            0.1,
            "weight of the loss that adapts each class's own features",
            stage="train",
        ),
        positive(
            "aux_temperature",
            32.0,
            "what squared distances are divided by in that loss",
            stage="train",
        ),
        *episodic_training(pretrain_share=0.5),
    ),
)

NEAREST_CENTROID: Final = AlgorithmSpec(
    name="nearest-centroid",
    version="1",
    factory="medbench_algorithms.metric.nearest_centroid:NearestCentroid",
    trainer=SUPERVISED_TRAINER,
    summary="Nearest class mean: the class whose mean feature is nearest, on features as they are",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        sources_optional=WITHOUT_PRETRAINING,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost",
        authors="Thomas Mensink, Jakob Verbeek, Florent Perronnin, Gabriela Csurka",
        venue="IEEE Transactions on Pattern Analysis and Machine Intelligence",
        year=2013,
        url="https://doi.org/10.1109/TPAMI.2013.83",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "distance",
            "euclidean",
            "minus the squared Euclidean distance, or cosine similarity, to the class mean",
            "euclidean",
            "cosine",
        ),
        *supervised_pretraining("none"),
    ),
)

META_BASELINE: Final = AlgorithmSpec(
    name="meta-baseline",
    version="1",
    factory="medbench_algorithms.metric.meta_baseline:MetaBaseline",
    summary="Meta-Baseline: a source classifier's features, tuned on episodes of cosine to means",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning",
        authors="Yinbo Chen, Zhuang Liu, Huijuan Xu, Trevor Darrell, Xiaolong Wang",
        venue="ICCV",
        year=2021,
        url="https://arxiv.org/abs/2003.04390",
    ),
    licence=LICENCE,
    parameters=(
        positive(
            "initial_scale",
            10.0,
            "where the learned scale of the cosines starts",
            stage="train",
        ),
        *episodic_training(pretrain_share=0.5),
    ),
)

SIMPLE_CNAPS: Final = AlgorithmSpec(
    name="simple-cnaps",
    version="1",
    factory="medbench_algorithms.metric.simple_cnaps:SimpleCNAPS",
    trainer=SUPERVISED_TRAINER,
    summary="Simple CNAPS's Mahalanobis head: class covariances drawn to the task's (no FiLM)",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Improved Few-Shot Visual Classification",
        authors="Peyman Bateni, Raghav Goyal, Vaden Masrani, Frank Wood, Leonid Sigal",
        venue="CVPR",
        year=2020,
        url="https://arxiv.org/abs/1912.03432",
    ),
    licence=LICENCE,
    parameters=(
        positive("beta", 1.0, "how much of the identity is added to each covariance"),
        *supervised_pretraining("supervised"),
    ),
)

DSN: Final = AlgorithmSpec(
    name="dsn",
    version="1",
    factory="medbench_algorithms.metric.dsn:DSN",
    summary="Deep Subspace Networks: the nearest of the subspaces that the classes span",
    family="metric",
    traits=Traits(
        works_on="features",
        adapts="nothing",
        batched=True,
        meta_trains=True,
        task_kinds=WITH_FINDINGS,
    ),
    citation=Citation(
        title="Adaptive Subspaces for Few-Shot Learning",
        authors="Christian Simon, Piotr Koniusz, Richard Nock, Mehrtash Harandi",
        venue="CVPR",
        year=2020,
        url="https://doi.org/10.1109/CVPR42600.2020.00419",
    ),
    licence=LICENCE,
    parameters=(
        Parameter(
            "subspace_dim",
            None,
            "dimensions of a class's subspace at most; null takes one fewer than its shots",
            "int",
            minimum=0,
            optional=True,
        ),
        positive(
            "temperature",
            1.0,
            "squared distances are divided by this; the paper uses none",
            stage="both",
        ),
        number(
            "overlap_weight",
            0.03,
            "weight of the loss that holds subspaces apart, the paper's lambda",
            stage="train",
        ),
        *episodic_training(lr_halve_every=5000),
    ),
)

SPECS: Final = (
    PROTONET,
    SIMPLESHOT,
    NEAREST_NEIGHBOUR,
    MATCHING_NETWORKS,
    RELATION_NETWORK,
    FEAT,
    NEAREST_CENTROID,
    META_BASELINE,
    SIMPLE_CNAPS,
    DSN,
)
