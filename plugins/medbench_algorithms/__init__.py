"""The bundled algorithms: one method a file, described as data in ``specs``."""

from __future__ import annotations

from medbench.api import AlgorithmSpec, hookimpl
from medbench_algorithms.specs import ALL

__all__ = ["medbench_algorithms"]


@hookimpl
def medbench_algorithms() -> list[AlgorithmSpec]:
    """The algorithms this plugin brings."""
    return list(ALL)
