"""What `medbench list` shows of the bundled algorithms: no torch is imported here."""

from __future__ import annotations

from medbench.api import AlgorithmSpec
from medbench_algorithms.specs import (
    augmentation,
    conformance,
    detection,
    feature_maps,
    fine_tuning,
    metric,
    optimisation,
    pretraining,
    references,
    segmentation,
    solvers,
    transductive,
)

__all__ = ["ALL"]

_SPECS: tuple[AlgorithmSpec, ...] = (
    *metric.SPECS,
    *feature_maps.SPECS,
    *optimisation.SPECS,
    *solvers.SPECS,
    *augmentation.SPECS,
    *transductive.SPECS,
    *fine_tuning.SPECS,
    *pretraining.SPECS,
    *segmentation.SPECS,
    *detection.SPECS,
    *references.SPECS,
)

ALL = tuple(conformance.with_conformance(spec) for spec in _SPECS)
