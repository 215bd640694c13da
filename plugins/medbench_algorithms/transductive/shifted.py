"""Features of an episode whose queries are moved onto the support set."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F


@final
class Shifted:
    """Features ``(e, s + q, d)``, the queries' mean moved to the support set's (Liu et al. 2020).

    That takes the cross-class bias away (section 3.3). A single query stays where it is: moved
    onto the support set's mean it would say nothing. Nothing is moved in memory; products and sums
    are corrected, at a fraction of the time.
    """

    def __init__(self, features: Tensor, n_support: int, *, move: bool = True) -> None:
        self.features = features
        self.n_support = n_support
        support, query = features[..., :n_support, :], features[..., n_support:, :]
        move = move and query.shape[-2] > 1
        start, end = query.mean(-2, keepdim=True), support.mean(-2, keepdim=True)
        self.move = end - start if move else torch.zeros_like(end)
        squares = torch.linalg.vector_norm(features, dim=-1).square_().unsqueeze(-2)
        if move:
            along = 2 * (self.move @ query.mT)
            squares[..., n_support:] += along + self.move.square().sum(-1, keepdim=True)
        self.squares = squares
        """Squared lengths ``(e, 1, s + q)``."""

    def products(self, vectors: Tensor) -> Tensor:
        """Inner products with vectors ``(e, k, d)``: ``(e, k, s + q)``."""
        found: Tensor = vectors @ self.features.mT
        found[..., self.n_support :] += vectors @ self.move.mT
        return found

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines with vectors ``(e, k, d)``: ``(e, k, s + q)``; 0 for null features."""
        inverse = self.squares.clamp_min(1e-24).rsqrt()
        return self.products(F.normalize(vectors, dim=-1)).mul_(inverse)

    def sums(self, weights: Tensor) -> Tensor:
        """Sums ``(e, k, d)`` of features with `weights` ``(e, k, s + q)``."""
        moved = weights[..., self.n_support :].sum(-1, keepdim=True)
        return torch.baddbmm(moved @ self.move, weights, self.features)


def nearest_class(scores: Tensor) -> Tensor:
    """True where a column of scores ``(e, k, n)`` is largest, at the first of equals."""
    # The last dimension is the one that argmax is fast along.
    best: Tensor = scores.mT.contiguous().argmax(-1).unsqueeze(-2)
    return best == torch.arange(scores.shape[-2], device=scores.device).unsqueeze(-1)
