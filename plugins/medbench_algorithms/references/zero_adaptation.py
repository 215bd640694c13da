"""Zero adaptation: the nearest class mean, where the means are those of source images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Support
from medbench_algorithms.metric.protonet import Distance, PrototypePredictor
from medbench_algorithms.references.asked import asked_classes


@final
class ZeroAdaptation(Algorithm):
    """Gives a query the class whose mean feature over all source images is nearest.

    It is `NearestCentroid` (Mensink et al. 2013) with the source's images in place of the support
    set, which is not looked at: what support images of the new site change, on the same backbone,
    is the difference between the two. The backbone comes from the shared `Supervised` trainer.
    """

    def __init__(self, *, distance: Distance = "euclidean") -> None:
        self.distance: Distance = distance
        self._means: Tensor | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the means ``base_means (c, d)``. Raises `ContractError` when they are missing."""
        if "base_means" not in learned:
            raise ContractError(
                "zero-adaptation needs the mean features of the source's classes, and training "
                f"gave {', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        self._means = learned["base_means"]

    def adapt(self, support: Support) -> PrototypePredictor:
        """The means of the task's classes. Raises `ContractError` before `prepare`."""
        if self._means is None:
            raise ContractError("zero-adaptation: adapt was called before prepare.")
        classes = asked_classes(support, "zero-adaptation")
        return PrototypePredictor(self._means.to(support.inputs)[classes], self.distance)
