"""Parameters that several algorithms have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from medbench.api import Parameter

LICENCE: Final = "Apache-2.0"
SUPERVISED_TRAINER: Final = "medbench_algorithms.pretrain:Supervised"


def training_shape() -> tuple[Parameter, ...]:
    """The shape of training tasks; the core reads these three names to draw the source's tasks."""
    return (
        Parameter(
            "train_way",
            None,
            "classes of a training task; null takes the protocol's",
            "int",
            minimum=2,
            optional=True,
            stage="train",
        ),
        Parameter(
            "train_shot",
            None,
            "support images a class of a training task; null takes the protocol's",
            "int",
            minimum=1,
            optional=True,
            stage="train",
        ),
        Parameter(
            "train_query",
            None,
            "query images a class of a training task; null takes the protocol's",
            "int",
            minimum=1,
            optional=True,
            stage="train",
        ),
    )


_SUPERVISED: Final = (
    Parameter(
        "pretrain",
        "supervised",
        "how the backbone learns from the source: supervised (cross-entropy over all source "
        "classes), or none (it stays as it is)",
        "str",
        choices=("supervised", "none"),
        stage="train",
    ),
    Parameter("lr", 1e-3, "Adam's learning rate", "float", above=0.0, stage="train"),
    Parameter("batch_size", 64, "images a training step", "int", minimum=2, stage="train"),
)


def supervised_pretraining(default: Literal["supervised", "none"]) -> tuple[Parameter, ...]:
    """The parameters of the shared `Supervised` trainer.

    They are the same for every algorithm that names it, so that those algorithms share one
    training where the values agree too.
    """
    return tuple(replace(p, default=default) if p.name == "pretrain" else p for p in _SUPERVISED)
