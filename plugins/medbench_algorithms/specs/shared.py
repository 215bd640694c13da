"""Short ways to write parameters, and the parameters that several algorithms have in common."""

from __future__ import annotations

from typing import Final, Literal

from medbench.api import Parameter, Stage, TaskKind

LICENCE: Final = "Apache-2.0"
# What medbench can ask of any method that tells two classes apart, label by label.
WITH_FINDINGS: Final[tuple[TaskKind, ...]] = ("classification", "multilabel")
# With it the shared trainer leaves the network as it is, and only collects statistics.
WITHOUT_PRETRAINING: Final = {"pretrain": ("none",)}
SUPERVISED_TRAINER: Final = "medbench_algorithms.common.pretrain:Supervised"


def count(
    name: str, default: int, text: str, *, least: int = 1, stage: Stage = "adapt"
) -> Parameter:
    """A whole number that is at least `least`."""
    return Parameter(name, default, text, "int", minimum=least, stage=stage)


def positive(name: str, default: float, text: str, *, stage: Stage = "adapt") -> Parameter:
    """A number above zero."""
    return Parameter(name, default, text, "float", above=0.0, stage=stage)


def number(
    name: str,
    default: float,
    text: str,
    *,
    least: float = 0.0,
    most: float | None = None,
    stage: Stage = "adapt",
) -> Parameter:
    """A number between `least` and `most`, both allowed."""
    return Parameter(name, default, text, "float", minimum=least, maximum=most, stage=stage)


def share(name: str, default: float, text: str, *, stage: Stage = "adapt") -> Parameter:
    """A number between 0 and 1, both allowed."""
    return number(name, default, text, most=1.0, stage=stage)


def choice(name: str, default: str, text: str, *choices: str, stage: Stage = "adapt") -> Parameter:
    """One word of several."""
    return Parameter(name, default, text, "str", choices=choices, stage=stage)


def switch(name: str, *, default: bool, text: str, stage: Stage = "adapt") -> Parameter:
    """On or off."""
    return Parameter(name, default, text, "bool", stage=stage)


def _of_training_task(name: str, text: str, least: int) -> Parameter:
    return Parameter(
        name,
        None,
        f"{text} of a training task; null takes the protocol's",
        "int",
        minimum=least,
        optional=True,
        stage="train",
    )


def training_shape(least_way: int = 2) -> tuple[Parameter, ...]:
    """The shape of training tasks; the core reads these three names to draw the source's tasks."""
    return (
        _of_training_task("train_way", "classes", least_way),
        _of_training_task("train_shot", "support images a class", 1),
        _of_training_task("train_query", "query images a class", 1),
    )


def episodic_training(
    pretrain_share: float = 0.0, lr_halve_every: int = 2000
) -> tuple[Parameter, ...]:
    """The parameters of `common.episodic.Episodic`."""
    return (
        positive("lr", 1e-3, "Adam's learning rate", stage="train"),
        count(
            "lr_halve_every",
            lr_halve_every,
            "training steps after which the learning rate is halved",
            stage="train",
        ),
        share(
            "pretrain_share",
            pretrain_share,
            "share of the training budget that goes into classifying all source classes first",
            stage="train",
        ),
        *training_shape(),
    )


def supervised_pretraining(default: Literal["supervised", "none"]) -> tuple[Parameter, ...]:
    """The parameters of the shared `Supervised` trainer.

    They are the same for every algorithm that names it, so that those algorithms share one
    training where the values agree too.
    """
    return (
        choice(
            "pretrain",
            default,
            "how the backbone learns from the source: supervised (cross-entropy over all source "
            "classes), or none (it stays as it is)",
            "supervised",
            "none",
            stage="train",
        ),
        positive("lr", 1e-3, "Adam's learning rate", stage="train"),
        count("batch_size", 64, "images a training step", least=2, stage="train"),
    )
