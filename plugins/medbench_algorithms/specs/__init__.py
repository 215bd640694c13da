"""What `medbench list` shows of the bundled algorithms: no torch is imported here."""

from __future__ import annotations

from medbench.api import AlgorithmSpec
from medbench_algorithms.specs import (
    augmentation,
    fine_tuning,
    metric,
    optimisation,
    transductive,
)

__all__ = ["ALL"]

ALL: tuple[AlgorithmSpec, ...] = (
    *metric.SPECS,
    *optimisation.SPECS,
    *augmentation.SPECS,
    *transductive.SPECS,
    *fine_tuning.SPECS,
)
