"""What a linear head predicts, for one episode or many."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from medbench.api import Predictor
from medbench_algorithms.common.geometry import few_at_a_time


@final
class LinearPredictor(Predictor):
    """A linear head for each episode.

    ``weight`` is ``(..., n_way, d)``, ``bias`` ``(..., n_way)``, ``centre`` ``(..., 1, d)`` or
    None: what is subtracted from features first; with ``unit_length`` they are scaled to length
    one before that. Scores are computed in the weight's precision.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        centre: Tensor | None = None,
        *,
        unit_length: bool = False,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.centre = centre
        self.unit_length = unit_length
        n_way, d = weight.shape[-2:]
        self.n_adapted = n_way * d + n_way

    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        weight = self.weight
        bias = self.bias.unsqueeze(-2)
        if self.centre is not None:
            # The weights' precision bears this; a pass over the queries would cost more.
            bias = bias - self.centre @ weight.mT

        def logits(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            features = F.normalize(query, dim=-1) if self.unit_length else query
            return (features.to(weight.dtype) @ weight.mT + bias).to(query.dtype)

        return few_at_a_time(logits, query, weight, bias)


def one_hot(labels: Tensor, n_way: int) -> Tensor:
    """Labels ``(..., n)`` as float64 rows ``(..., n, n_way)``."""
    return F.one_hot(labels, n_way).double()
