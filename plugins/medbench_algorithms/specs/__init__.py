"""What `medbench list` shows of the bundled algorithms: no torch is imported here."""

from __future__ import annotations

from medbench.api import AlgorithmSpec
from medbench_algorithms.specs import fine_tuning, metric, optimisation

__all__ = ["ALL"]

ALL: tuple[AlgorithmSpec, ...] = (*metric.SPECS, *fine_tuning.SPECS, *optimisation.SPECS)
