"""Specs of methods whose inner solver is convex, closed-form, amortised or learned."""

from __future__ import annotations

from dataclasses import replace
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
)

_TRAITS: Final = Traits(
    works_on="features",
    adapts="linear head",
    batched=True,
    meta_trains=True,
    task_kinds=WITH_FINDINGS,
)

METAOPTNET: Final = AlgorithmSpec(
    name="metaoptnet",
    version="1",
    factory="medbench_algorithms.optimisation.metaoptnet:MetaOptNet",
    summary="MetaOptNet: a support vector machine, trained through its optimality conditions",
    family="optimisation",
    traits=_TRAITS,
    citation=Citation(
        title="Meta-Learning with Differentiable Convex Optimization",
        authors="Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1904.03758",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "head",
            "svm",
            "multi-class support vector machine, or ridge regression",
            "svm",
            "ridge",
            stage="both",
        ),
        positive("C", 0.1, "the SVM's weight of errors against the norm", stage="both"),
        positive("ridge_lambda", 50.0, "ridge regression's weight of the norm", stage="both"),
        number(
            "label_smoothing",
            0.1,
            "probability that training labels give to the other classes",
            most=0.5,
            stage="train",
        ),
        *episodic_training(),
    ),
)

R2D2: Final = AlgorithmSpec(
    name="r2d2",
    version="1",
    factory="medbench_algorithms.optimisation.r2d2:R2D2",
    summary="R2-D2: ridge regression in closed form (or LR-D2: logistic), trained through",
    family="optimisation",
    traits=_TRAITS,
    citation=Citation(
        title="Meta-learning with differentiable closed-form solvers",
        authors="Luca Bertinetto, Joao F. Henriques, Philip H. S. Torr, Andrea Vedaldi",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1805.08136",
    ),
    licence=LICENCE,
    parameters=(
        choice(
            "head",
            "ridge",
            "ridge regression (R2-D2), or logistic regression of each class against the rest "
            "(LR-D2)",
            "ridge",
            "logistic",
            stage="both",
        ),
        positive("ridge_lambda", 50.0, "the penalty's value before it is learned", stage="train"),
        count("newton_steps", 5, "steps of Newton's method, with head: logistic", stage="both"),
        *episodic_training(),
    ),
)

LEO: Final = AlgorithmSpec(
    name="leo",
    version="1",
    factory="medbench_algorithms.optimisation.leo:LEO",
    summary="LEO: gradient steps in a learned latent space of classifiers",
    family="optimisation",
    traits=_TRAITS,
    citation=Citation(
        title="Meta-Learning with Latent Embedding Optimization",
        authors="Andrei A. Rusu, Dushyant Rao, Jakub Sygnowski, Oriol Vinyals, Razvan Pascanu, "
        "Simon Osindero, Raia Hadsell",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1807.05960",
    ),
    licence=LICENCE,
    parameters=(
        count("latents", 64, "numbers in a class's code", stage="both"),
        count("inner_steps", 5, "gradient steps on the codes", least=0, stage="both"),
        count("finetuning_steps", 5, "gradient steps on the weights", least=0, stage="both"),
        positive("inner_lr", 1.0, "the codes' learning rates at first", stage="train"),
        positive(
            "finetuning_lr",
            0.001,
            "the weights' learning rates at first",
            stage="train",
        ),
        number("dropout", 0.3, "share of features dropped in training", most=0.9, stage="train"),
        number("kl_weight", 0.001, "weight of the codes' divergence from a normal", stage="train"),
        number(
            "encoder_penalty", 1e-9, "weight of the distance that codes are moved", stage="train"
        ),
        number("l2_penalty", 1e-8, "weight of the squared size of all matrices", stage="train"),
        number(
            "orthogonality_penalty",
            0.1,
            "weight of the correlation between the decoder's rows",
            stage="train",
        ),
        *episodic_training(pretrain_share=0.5),
    ),
)

VERSA: Final = AlgorithmSpec(
    name="versa",
    version="1",
    factory="medbench_algorithms.optimisation.versa:Versa",
    summary="VERSA: a network that infers the distribution of a task's linear head in one pass",
    family="optimisation",
    traits=_TRAITS,
    citation=Citation(
        title="Meta-Learning Probabilistic Inference For Prediction",
        authors="Jonathan Gordon, John Bronskill, Matthias Bauer, Sebastian Nowozin, "
        "Richard E. Turner",
        venue="ICLR",
        year=2019,
        url="https://arxiv.org/abs/1805.09921",
    ),
    licence=LICENCE,
    parameters=(
        count("samples", 10, "heads drawn, whose probabilities are averaged", stage="both"),
        count("width", 256, "width of the inference network's hidden layers", stage="both"),
        *(replace(p, default=1e-4) if p.name == "lr" else p for p in episodic_training()),
    ),
)

LSTM_OPTIMISER: Final = AlgorithmSpec(
    name="lstm-optimiser",
    version="1",
    factory="medbench_algorithms.optimisation.lstm_optimiser:LSTMOptimiser",
    summary="Learned optimiser: an LSTM that reads gradients and writes the steps of a linear head",
    family="optimisation",
    traits=_TRAITS,
    citation=Citation(
        title="Learning to learn by gradient descent by gradient descent",
        authors="Marcin Andrychowicz, Misha Denil, Sergio Gomez, Matthew W. Hoffman, David Pfau, "
        "Tom Schaul, Brendan Shillingford, Nando de Freitas",
        venue="NeurIPS",
        year=2016,
        url="https://arxiv.org/abs/1606.04474",
    ),
    licence=LICENCE,
    parameters=(
        count("inner_steps", 8, "steps in training and validation", stage="train"),
        count("inner_steps_test", 8, "steps at test"),
        positive("p", 10.0, "sizes of gradients are told apart down to e^-p", stage="both"),
        positive("update_scale", 0.1, "factor of the network's output", stage="both"),
        *episodic_training(),
    ),
)

SPECS: Final = (METAOPTNET, R2D2, LEO, VERSA, LSTM_OPTIMISER)
