"""BD-CSPN (Liu, Song and Qin, "Prototype Rectification for Few-Shot Learning", ECCV 2020)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from medbench_algorithms.metric.simpleshot import Normalize
from medbench_algorithms.transductive.joint import Joint, Points
from medbench_algorithms.transductive.shifted import Shifted, nearest_class


@final
class BDCSPN(Joint):
    """The nearest rectified class mean by cosine, queries helping to place the means.

    Queries are shifted (`Shifted`) and pseudo-labelled by their cosines to the class means; a
    class's rectified mean is the average of its support images and its pseudo-labelled queries,
    weighted by a softmax over those members of ``epsilon`` times their cosine to the plain mean
    (section 3.3). The same cosines to the rectified means, times ``epsilon``, are the scores.

    ``epsilon`` is 10, as in the code of LaplacianShot, which includes this method. ``confident``
    limits a class to its so many surest queries (the paper's Z); None takes all, as other
    implementations do.
    """

    def __init__(
        self,
        *,
        epsilon: float = 10.0,
        confident: int | None = None,
        normalize: Normalize = "l2",
    ) -> None:
        super().__init__(normalize=normalize)
        self.epsilon = epsilon
        self.confident = confident

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Scores ``(e, q, k)``."""
        shifted = Shifted(points, targets)
        logits = self.epsilon * shifted.cosines
        chosen = self._pseudo_labelled(logits[..., targets.shape[-1] :])
        members = torch.cat([targets > 0, chosen], dim=-1)
        rectified = shifted.sums(logits.masked_fill_(~members, -math.inf).softmax(-1))
        return (self.epsilon * shifted.cosines_of_queries(rectified)).mT

    def _pseudo_labelled(self, logits: Tensor) -> Tensor:
        """Which query helps which class, bool ``(e, k, q)``."""
        chosen = nearest_class(logits)
        if self.confident is None or self.confident >= logits.shape[-1]:
            return chosen
        sureness = logits.softmax(-2).masked_fill(~chosen, -1.0)
        first = sureness.topk(self.confident, dim=-1).indices
        return chosen & torch.zeros_like(chosen).scatter(-1, first, value=True)
