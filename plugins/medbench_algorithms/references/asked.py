"""Which of the source's classes a task asks about."""

from __future__ import annotations

from torch import Tensor

from medbench.api import ContractError, Support


def asked_classes(support: Support, name: str) -> Tensor:
    """Numbers ``(..., n_way)`` of a task's classes in the source.

    Raises `ContractError` where nobody told them.
    """
    if support.classes is None:
        raise ContractError(
            f"{name} answers with the classes of its source, and this task does not say which of "
            "them it asks about. Its spec must have the trait knows_classes."
        )
    return support.classes
