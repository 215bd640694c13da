"""Projections onto the span of a few examples, whose gradients stay finite."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Eigenvalues that differ by less, relative to the greatest, are equal up to rounding.
_EQUAL = 1e-12


@final
class _TruncatedInverse(torch.autograd.Function):
    """The inverse of a symmetric matrix on its leading eigenvectors, null elsewhere.

    Torch differentiates an eigendecomposition through every pair of eigenvalues and divides by
    their differences, which vanish among the many null ones here. A function of a matrix needs
    but the pairs that it tells apart: its derivative in the eigenbasis is the divided difference
    ``(f(a) - f(b)) / (a - b)`` (Daleckii and Krein), finite unless the cut falls between equals.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor, kept: Tensor, floor: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(gram)  # ascending
        places = torch.arange(gram.shape[-1], 0, -1, device=gram.device)
        keeps = (places <= kept.unsqueeze(-1)) & (values > floor.unsqueeze(-1))
        inverse = torch.where(keeps, 1 / torch.where(keeps, values, 1.0), 0.0)
        ctx.save_for_backward(values, vectors, inverse, keeps)
        result: Tensor = (vectors * inverse.unsqueeze(-2)) @ vectors.mT
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, vectors, inverse, keeps = ctx.saved_tensors
        # Among the kept (1/a - 1/b) / (a - b) is -1 / (a b), also where a = b.
        within = -inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        gap = (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()
        # Equal values across the cut: any choice of directions is as good, so none is moved.
        gap = gap.masked_fill(gap <= _EQUAL * values[..., -1:, None], math.inf)
        # A dropped value's inverse is null here, and the kept one is the greater of the two.
        across = (inverse.unsqueeze(-1) + inverse.unsqueeze(-2)) / gap
        divided = torch.where(keeps.unsqueeze(-1) == keeps.unsqueeze(-2), within, across)
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        return vectors @ (divided * inner) @ vectors.mT, None, None


def truncated_inverse(gram: Tensor, kept: Tensor, floor: Tensor) -> Tensor:
    """Inverse of symmetric `gram` ``(..., k, k)`` on its `kept` ``(...)`` leading eigenvectors.

    Directions with eigenvalues up to `floor` ``(...)`` are left out too. For the Gram matrix
    ``X X^T`` of rows X, ``X^T f(X X^T) X`` is then the projector onto the leading right-singular
    vectors of X.
    """
    result: Tensor = _TruncatedInverse.apply(gram, kept, floor)
    return result
