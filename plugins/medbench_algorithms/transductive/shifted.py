"""Features of an episode whose queries are moved onto the support set."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from medbench_algorithms.transductive.joint import SHORTEST, Points


@final
class Shifted:
    """Normalised features ``(e, s + q, d)``, the queries' mean moved to the support set's.

    That takes the cross-class bias away (Liu et al. 2020, section 3.3). A single query stays where
    it is: moved onto the support set's mean it would say nothing.

    Nothing is scaled or moved in memory; products and sums are corrected instead. Features are a
    hundred times the size of what is computed from them, and to read them is what takes the time:
    here once for the class means and the move, and once for products with both.
    """

    def __init__(self, points: Points, targets: Tensor, *, move: bool = True) -> None:
        self._rows = rows = points.rows
        self.n_support = n_support = targets.shape[-1]
        (e, n, _), n_way, n_query = rows.shape, targets.shape[-2], rows.shape[-2] - n_support
        if points.lengths is None:
            self._scale = rows.new_ones(e, 1, n)
            squares = torch.linalg.vector_norm(rows, dim=-1).square_().unsqueeze(-2)
        else:
            squares = (points.lengths.mT > SHORTEST).to(rows.dtype)
            self._scale = squares / points.lengths.mT
        self._at_first = squares[..., n_support:].clone()

        weights = rows.new_zeros(e, n_way + 1, n)
        weights[:, :n_way, :n_support] = targets / targets.sum(-1, keepdim=True)
        if move and n_query > 1:
            weights[:, n_way, :n_support] = 1 / n_support
            weights[:, n_way, n_support:] = -1 / n_query
        found = torch.bmm(weights.mul_(self._scale), rows)
        self.plain, self._move = found[:, :n_way], found[:, n_way:]
        """Class means ``(e, k, d)`` of the support set."""

        products = torch.bmm(found, rows.mT).mul_(self._scale)
        # |x + m|^2 = |x|^2 + x m + (x + m) m, whose products stand in the row of the move m.
        along = products[:, n_way:, n_support:]
        squares[..., n_support:] += along
        products[..., n_support:] += torch.bmm(found, self._move.mT)
        squares[..., n_support:] += along
        self.squares = squares
        """Squared lengths ``(e, 1, s + q)``."""
        self._inverse = squares.clamp_min(SHORTEST**2).rsqrt_()
        self.cosines = products[:, :n_way] * inverse_lengths(self.plain) * self._inverse
        """Cosines ``(e, k, s + q)`` with the class means; 0 for null features."""

    def products_of_queries(self, vectors: Tensor) -> Tensor:
        """Inner products of the queries with vectors ``(e, k, d)``: ``(e, k, q)``."""
        found = torch.bmm(vectors, self._rows[:, self.n_support :].mT)
        return found.mul_(self._scale[..., self.n_support :]).add_(vectors @ self._move.mT)

    def cosines_of_queries(self, vectors: Tensor) -> Tensor:
        """Cosines of the queries with vectors ``(e, k, d)``: ``(e, k, q)``; 0 for null features."""
        products = self.products_of_queries(vectors).mul_(inverse_lengths(vectors))
        return products.mul_(self._inverse[..., self.n_support :])

    def sums(self, weights: Tensor) -> Tensor:
        """Sums ``(e, k, d)`` of features with `weights` ``(e, k, s + q)``."""
        moved = weights[..., self.n_support :].sum(-1, keepdim=True)
        return torch.baddbmm(moved @ self._move, weights * self._scale, self._rows)

    def distances_among_queries(self) -> Tensor:
        """Squared distances ``(e, q, q)``, less each row's own squared length.

        That changes no order along a row, and moving all queries alike changes none at all.
        """
        query, scale = self._rows[:, self.n_support :], self._scale[..., self.n_support :]
        products = torch.bmm(query, query.mT).mul_(scale.mT).mul_(-2 * scale)
        return products.add_(self._at_first)


def inverse_lengths(vectors: Tensor) -> Tensor:
    """One over the lengths of vectors ``(..., d)``, ``(..., 1)``; finite for null vectors."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return lengths.clamp_min_(SHORTEST).reciprocal_()


def nearest_class(scores: Tensor) -> Tensor:
    """True where a column of scores ``(e, k, n)`` is largest, at the first of equals."""
    # The last dimension is the one that argmax is fast along.
    best: Tensor = scores.mT.contiguous().argmax(-1).unsqueeze(-2)
    return best == torch.arange(scores.shape[-2], device=scores.device).unsqueeze(-1)
