"""Ridge and logistic regression in the span of a support set, differentiable, many at once.

Both solve an ``(n, n)`` system for n support examples instead of a ``(d, d)`` one (Woodbury), which
for few examples of many features is the small one (Bertinetto et al. 2019, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Smaller curvatures of the logistic loss than this (its greatest is 1/4) count as this.
_LEAST_CURVATURE = 1e-10


def ridge_dual(gram: Tensor, targets: Tensor, penalty: Tensor) -> Tensor:
    """Minimise ``||X W - Y||^2 + penalty ||W||^2``: returns A ``(..., n, c)``, ``W = X^T A``.

    `gram` is ``(..., n, n)``, `targets` ``(..., n, c)``; `penalty` is above zero.
    """
    factor = torch.linalg.cholesky(_plus_diagonal(gram, penalty))
    return torch.cholesky_solve(targets, factor)


def logistic_dual(gram: Tensor, targets: Tensor, penalty: Tensor, n_steps: int) -> Tensor:
    """Steps of Newton's method for a logistic regression of each column of `targets`.

    Minimises ``penalty ||w||^2 / 2 + sum_i log(1 + exp(-+ w x_i))`` from w = 0, separately for
    every class against the rest. `gram` is ``(..., n, n)``, `targets` ``(..., n, c)`` zeros and
    ones. Returns A ``(..., n, c)`` with ``W = X^T A``.

    Iteratively reweighted least squares, Bertinetto et al. 2019, section 3:
    ``w = X^T (X X^T + penalty S^-1)^-1 z`` with ``z = eta + (y - mu) / s``.
    """
    gram, y = gram.unsqueeze(-3), targets.mT.unsqueeze(-1)  # (..., 1, n, n), (..., c, n, 1)
    eta = torch.zeros_like(y)
    dual = eta
    for _ in range(n_steps):
        mu = eta.sigmoid()
        root = (mu * (1 - mu)).clamp_min(_LEAST_CURVATURE).sqrt()
        # Scaled by S^(1/2) from both sides: the inverse of S may be large, its root is harmless.
        factor = torch.linalg.cholesky(_plus_diagonal(root * gram * root.mT, penalty))
        dual = root * torch.cholesky_solve(root * eta + (y - mu) / root, factor)
        eta = gram @ dual
    return dual.squeeze(-1).mT


def _plus_diagonal(matrix: Tensor, value: Tensor) -> Tensor:
    n = matrix.shape[-1]
    return matrix + value * torch.eye(n, dtype=matrix.dtype, device=matrix.device)
