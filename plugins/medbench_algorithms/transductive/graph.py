"""Propagation of labels over a graph of examples (Zhou, Bousquet, Lal, Weston, Schoelkopf 2004)."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric(products: Tensor) -> Tensor:
    """The same ``(..., n, n)``, without what rounding tells apart in the two directions."""
    return (products + products.mT) / 2


def distances_among(features: Tensor) -> Tensor:
    """Squared distances ``(..., n, n)`` of features ``(..., n, d)``; symmetric, 0 to themselves.

    From one matrix product, about the mean: features with a large common part would cancel.
    """
    features = features - features.mean(-2, keepdim=True)
    products = symmetric(features @ features.mT)
    squares = products.diagonal(dim1=-2, dim2=-1).clone()
    # Added one by one the squares would round differently in the two directions.
    both = squares.unsqueeze(-1) + squares.unsqueeze(-2)
    return both.sub(products, alpha=2).clamp_min(0)


def nearest_only(affinity: Tensor, k: int) -> Tensor:
    """Affinities ``(..., n, n)`` of pairs one of which is among the other's largest `k`."""
    top = affinity.topk(min(k, affinity.shape[-1]), dim=-1).indices
    keep = torch.zeros_like(affinity, dtype=torch.bool).scatter_(-1, top, value=True)
    return affinity * (keep | keep.mT)


def propagate(affinity: Tensor, known: Tensor, alpha: float) -> Tensor:
    """``(I - alpha S)^-1 Y`` for symmetric affinities ``(..., n, n)``, ``(..., n, k)``.

    S is the affinities scaled by the square roots of their row sums on both sides; Y is `known`
    ``(..., s, k)`` for the first s examples and zero for the others (section 2, step 3 and Eq. 3).
    An example without neighbours keeps what it knows.
    """
    n, s = affinity.shape[-1], known.shape[-2]
    degree = affinity.sum(-1)
    root = degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt()
    spread = alpha * root.unsqueeze(-1) * affinity * root.unsqueeze(-2)
    system = torch.eye(n, dtype=spread.dtype, device=spread.device) - spread
    labels = torch.nn.functional.pad(known, (0, 0, 0, n - s))
    # The eigenvalues of S lie in -1 ... 1: the system is positive definite.
    return torch.cholesky_solve(labels, torch.linalg.cholesky(system))
