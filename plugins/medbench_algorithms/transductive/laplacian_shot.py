"""LaplacianShot (Ziko, Dolz, Granger and Ben Ayed, ICML 2020).

"Laplacian Regularized Few-Shot Learning".
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from medbench_algorithms.metric.simpleshot import Normalize
from medbench_algorithms.transductive.joint import Joint, Points
from medbench_algorithms.transductive.shifted import Shifted, nearest_class

_TOLERANCE = 1e-6
_EPSILON = 10.0
# So many searches for the nearest take less time than a partial sort.
_FEW = 3


def affinities(distances: Tensor, n_neighbours: int) -> Tensor:
    """``(e, n, n)``: 1 where the column is among the row's nearest `n_neighbours` others.

    `distances` ``(e, n, n)`` need their order along rows alone, and are overwritten. Not symmetric,
    as in the authors' code. Asking for more neighbours than there are gives all.
    """
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    found = torch.zeros_like(distances)
    k = min(n_neighbours, distances.shape[-1] - 1)
    if k > _FEW:
        return found.scatter_(-1, distances.topk(k, dim=-1, largest=False).indices, 1.0)
    for _ in range(k):
        nearest = distances.argmin(-1, keepdim=True)
        found.scatter_(-1, nearest, 1.0)
        distances.scatter_(-1, nearest, torch.inf)
    return found


def bound_updates(unary: Tensor, kernel: Tensor, strength: float, n_steps: int) -> Tensor:
    """Log assignments ``(e, k, q)`` after at most `n_steps` bound updates (Eq. 12, algorithm 1).

    `unary` ``(e, k, q)`` are the distances a, `kernel` ``(e, q, q)`` the affinities w. As in the
    authors' code an episode stops where ``sum y log y + a y - strength y (w y)`` changes by less
    than a millionth of itself, from the third update on.
    """
    log_y = (-unary).log_softmax(-2)
    pull = strength * (log_y.exp() @ kernel.mT)
    energy = unary.new_full(unary.shape[:-2], torch.inf)
    going = torch.ones_like(energy, dtype=torch.bool)
    for step in range(n_steps):
        updated = (pull - unary).log_softmax(-2)
        # Converged episodes rest, so that one does not depend on how long others take.
        log_y = updated if going.all() else torch.where(going[..., None, None], updated, log_y)
        y = log_y.exp()
        pull = strength * (y @ kernel.mT)
        found = (y * (log_y + unary - pull)).sum((-2, -1))
        if step > 1:
            going &= (found - energy).abs() > _TOLERANCE * energy.abs()
            if not going.any():
                break
        energy = found
    return log_y


def rectified(shifted: Shifted) -> Tensor:
    """Prototypes ``(e, k, d)`` from plain class means, as the authors' code does it.

    Unlike in BD-CSPN support images too count for the class of the nearest plain mean, and a
    class's members are averaged with its probability as weight, not divided by the sum of
    weights. A class without members, which that code drops, keeps its plain mean.
    """
    logits = _EPSILON * shifted.cosines
    members = nearest_class(logits).to(logits.dtype)
    counts = members.sum(-1, keepdim=True)
    means = shifted.sums(members * logits.softmax(-2) / counts.clamp_min(1))
    return torch.where(counts > 0, means, shifted.plain)


@final
class LaplacianShot(Joint):
    """Nearest prototypes, under a penalty for neighbouring queries that disagree.

    Assignments start from the squared distances to the prototypes and are updated in closed form
    (Eq. 12), at most ``steps`` times. The graph joins each query to its nearest two: ``knn`` is 3
    and counts the query itself, as in the authors' code. ``strength`` is lambda, which the paper
    tunes on validation classes; the default is the code's without tuning.

    ``rectify``: prototypes and queries are corrected first, much as in BD-CSPN, in the form of the
    authors' code (`rectified`), which does so everywhere but on iNat. Features are centred by the
    mean source feature and of unit length (``cl2``).
    """

    def __init__(
        self,
        *,
        knn: int = 3,
        strength: float = 1.0,
        rectify: bool = True,
        steps: int = 20,
        normalize: Normalize = "cl2",
    ) -> None:
        super().__init__(normalize=normalize)
        self.knn = knn
        self.strength = strength
        self.rectify = rectify
        self.steps = steps

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Log-probabilities ``(e, q, k)``."""
        shifted = Shifted(points, targets, move=self.rectify)
        prototypes = rectified(shifted) if self.rectify else shifted.plain
        unary = shifted.squares[..., targets.shape[-1] :] - 2 * shifted.products_of_queries(
            prototypes
        )
        unary = unary + prototypes.square().sum(-1, keepdim=True)
        kernel = affinities(shifted.distances_among_queries(), self.knn - 1)
        return bound_updates(unary, kernel, self.strength, self.steps).mT
