"""RFS (Tian, Wang, Krishnan, Tenenbaum and Isola, "Rethinking Few-Shot Image Classification")."""

from __future__ import annotations

from typing import final

from medbench.api import Algorithm, Support
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe


@final
class RFS(Algorithm):
    """Logistic regression on unit-length features of a self-distilled backbone.

    Section 3 and the authors' code: features scaled to length one, scikit-learn's
    ``LogisticRegression`` with C = 1. Their code also adds five augmented copies of each support
    image, which is left out here (`SupportAugmentation` does that). The backbone comes from the
    `SelfDistillation` trainer; with ``generations`` 0 this is the paper's simple variant.
    """

    def __init__(self, *, C: float = 1.0) -> None:
        self._head = LinearProbe(C=C, normalize="l2")

    def adapt(self, support: Support) -> LinearPredictor:
        """Fit one classifier an episode on support features ``(..., n_support, d)``."""
        return self._head.adapt(support)
