"""Multinomial logistic regression in the span of the support set, many problems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from medbench.api import NonFinite

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-10
_SMALLEST_STEP = 2.0**-30


def solve(gram: Tensor, targets: Tensor, C: float) -> tuple[Tensor, Tensor]:
    """Minimise ``||W||^2 / 2 + C * sum_i -log p(y_i)`` with logits ``W x_i + b``, b unpenalised.

    `gram` is ``(..., n, n)``, the inner products of the (centred) examples; `targets`
    ``(..., n, c)`` one-hot rows; both float64. Returns ``dual (..., n, c)`` with
    ``W = dual^T X`` and ``b (..., c)``.

    Newton's method in the n-dimensional span of the examples rather than in d dimensions (the
    representer theorem). A step costs c Cholesky factorisations of ``(n, n)`` instead of one of
    ``(n c, n c)``, as in Rasmussen and Williams 2006, algorithm 3.3, with D scaled by C and the
    free intercept eliminated last. Steps that do not decrease the objective are halved.

    Raises `NonFinite` when the examples are not finite.
    """
    lead, (n, c) = targets.shape[:-2], targets.shape[-2:]
    gram, targets = gram.reshape(-1, n, n), targets.reshape(-1, n, c)
    if not torch.isfinite(gram).all():
        raise NonFinite("Support features are not finite, or too large to square.")
    dual, bias = torch.zeros_like(targets), targets.new_zeros(len(targets), c)
    # Problems drop out as they converge: a few hard ones do not hold up the rest.
    active = torch.arange(len(targets), device=gram.device)
    for _ in range(_MAX_ITERATIONS):
        g, y, a, b = gram[active], targets[active], dual[active], bias[active]
        new_a, new_b = _newton(g, y, a, b, C)
        new_a, new_b = _shorten(g, y, C, (a, b), (new_a, new_b))
        dual[active], bias[active] = new_a, new_b
        active = active[_residual(g, y, new_a, new_b, C) > _TOLERANCE]
        if not len(active):
            break
    return dual.reshape(*lead, n, c), bias.reshape(*lead, c)


def _residual(gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, C: float) -> Tensor:
    """How far each problem is from its optimum, ``(b,)``: there dual = C (y - p), sums zero."""
    p = (gram @ dual + bias.unsqueeze(-2)).softmax(-1)
    # Scaled by the kernel's size it bounds the error of a logit.
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1.0)
    off = (dual - C * (targets - p)).abs().amax((-2, -1)) * scale
    return torch.maximum(off, (targets - p).sum(-2).abs().amax(-1))


def _objective(gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, C: float) -> Tensor:
    span = gram @ dual
    log_p = (span + bias.unsqueeze(-2)).log_softmax(-1)
    return 0.5 * (dual * span).sum((-2, -1)) - C * (targets * log_p).sum((-2, -1))


def _shorten(
    gram: Tensor,
    targets: Tensor,
    C: float,
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Halve the steps of the problems whose objective would rise."""
    before = _objective(gram, targets, *old, C)
    # At the optimum rounding may raise it by a few units in the last place.
    allowed = before + 1e-13 * before.abs()
    size = torch.ones_like(before)
    while True:
        dual = torch.lerp(old[0], new[0], size[:, None, None])
        bias = torch.lerp(old[1], new[1], size[:, None])
        rising = ~(_objective(gram, targets, dual, bias, C) <= allowed)
        rising &= size > _SMALLEST_STEP
        if not rising.any():
            return dual, bias
        size = torch.where(rising, size / 2, size)


def _newton(
    gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, C: float
) -> tuple[Tensor, Tensor]:
    """The full Newton step from `dual`, `bias`.

    With f = gram dual + 1 b^T, curvature W = C (diag(p) - p p^T) and gradient C (p - y), the next
    dual solves ``dual + W (gram dual + 1 b^T) = W f - C (p - y) =: r`` under ``1^T dual = 0``.
    With B = W (I + gram W)^-1 that is ``dual = r - B (gram r + 1 b^T)``, and b follows from
    ``1^T B 1 b = 1^T (r - B gram r)``.
    """
    n = gram.shape[-1]
    f = gram @ dual + bias.unsqueeze(-2)
    p = f.softmax(-1)
    r = C * (p * f - p * (p * f).sum(-1, keepdim=True) - (p - targets))
    # E_k = D_k^1/2 (I + D_k^1/2 gram D_k^1/2)^-1 D_k^1/2 with D_k = C diag(p_k): (b, c, n, n).
    root = (C * p).sqrt().mT
    inner = root.unsqueeze(-1) * gram.unsqueeze(-3) * root.unsqueeze(-2)
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    E = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    E = root.unsqueeze(-1) * E * root.unsqueeze(-2)
    total = torch.linalg.cholesky(E.sum(-3))

    def apply_B(v: Tensor) -> Tensor:
        """B v for v ``(b, n, c, m)``: blocks E, less what they share (R&W Eq. 3.47)."""
        blocks = (E @ v.transpose(-3, -2)).transpose(-3, -2)
        common = torch.cholesky_solve(blocks.sum(-2), total).unsqueeze(-3)
        return blocks - (E @ common).transpose(-3, -2)

    # One right-hand side for gram r, and one for each class's intercept.
    c = targets.shape[-1]
    eye = torch.eye(c, dtype=gram.dtype, device=gram.device).expand(len(gram), n, c, c)
    rhs = torch.cat([(gram @ r).unsqueeze(-1), eye], dim=-1)
    solved = apply_B(rhs)
    particular = r - solved[..., 0]
    M = solved[..., 1:].sum(-3)
    # Adding one number to all intercepts changes nothing: pin their mean to zero.
    M = M + M.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    new_bias = torch.linalg.solve(M, particular.sum(-2))
    return particular - (solved[..., 1:] @ new_bias[:, None, :, None]).squeeze(-1), new_bias
