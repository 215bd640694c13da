"""Nearest class mean (Mensink, Verbeek, Perronnin and Csurka, TPAMI, 2013)."""

from __future__ import annotations

from typing import final

from medbench.api import Algorithm, Support
from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.metric.protonet import Distance, PrototypePredictor


@final
class NearestCentroid(Algorithm):
    """Gives a query the class whose mean feature is nearest, on features as they are.

    ``distance``: minus the squared Euclidean distance, or the cosine, to the class mean.
    Nothing is learned beyond the means; the backbone comes from the shared `Supervised` trainer,
    which by default leaves it as it is. SimpleShot is this rule on transformed features, and
    ProtoNet is it in a space trained for the purpose.
    """

    def __init__(self, *, distance: Distance = "euclidean") -> None:
        self.distance: Distance = distance

    def adapt(self, support: Support) -> PrototypePredictor:
        """The class means of support features ``(..., n_support, d)``."""
        means = class_means(support.inputs, support.labels, support.n_way)
        return PrototypePredictor(means, self.distance)
