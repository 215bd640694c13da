"""Tukey's ladder of powers."""

from __future__ import annotations

from typing import final

from torch import Tensor

from medbench.api import Predictor


def tukey(features: Tensor, power: float) -> Tensor:
    """Features to a power, which makes skewed ones more like a Gaussian's (Tukey 1977).

    Those below zero keep their sign, ``-(-x)^power``: the ladder itself is not defined there.
    """
    return features.sign() * features.abs().pow(power)


@final
class OfPowers(Predictor):
    """What another predictor says of features to a power."""

    def __init__(self, inner: Predictor, power: float) -> None:
        self.inner = inner
        self.power = power
        self.n_adapted = inner.n_adapted

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        return self.inner.predict(tukey(query, self.power))
