"""Multinomial logistic regression in the span of the support set, many problems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from medbench.api import NonFinite

_MAX_ITERATIONS = 100
# A full Newton step that moves no logit by more leaves an error of about its square.
_LAST_STEP = 1e-7
_SMALLEST_STEP = 2.0**-30
# Numbers in one (b, c, n, n) array: a processor's cache holds a few such, a GPU wants more work.
_BLOCK_CPU, _BLOCK_GPU = 2**18, 2**25

Cost = float | Tensor
"""What an example's log loss is multiplied with: one C, or ``(b, n, 1)``."""


def solve(
    gram: Tensor, targets: Tensor, C: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Minimise ``||W||^2 / 2 + C * sum_i -log p(y_i)`` with logits ``W x_i + b``, b unpenalised.

    `gram` is ``(..., n, n)``, the inner products of the (centred) examples; `targets`
    ``(..., n, c)`` one-hot rows; `weights` ``(..., n)``, if given, multiply the examples' losses,
    and one of weight 0 counts as absent (every class needs one that is present); all float64.
    Returns ``dual (..., n, c)`` with ``W = dual^T X`` and ``b (..., c)``.

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
    numbers = _BLOCK_CPU if gram.device.type == "cpu" else _BLOCK_GPU
    at_once = max(1, numbers // (c * n * n))
    blocks = [torch.split(gram, at_once), torch.split(targets, at_once)]
    if weights is None:
        solved = [_solve_block(g, y, C) for g, y in zip(*blocks, strict=True)]
    else:
        blocks.append(torch.split(C * weights.reshape(-1, n, 1), at_once))
        solved = [_solve_block(g, y, cost) for g, y, cost in zip(*blocks, strict=True)]
    dual, bias = (torch.cat(parts) for parts in zip(*solved, strict=True))
    return dual.reshape(*lead, n, c), bias.reshape(*lead, c)


def _solve_block(gram: Tensor, targets: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
    dual, bias = torch.zeros_like(targets), torch.zeros_like(targets[:, 0])
    # Problems drop out as they converge: a few hard ones do not hold up the rest.
    active = torch.arange(len(targets), device=gram.device)
    for _ in range(_MAX_ITERATIONS):
        g, y, a, b = gram[active], targets[active], dual[active], bias[active]
        k = cost[active] if isinstance(cost, Tensor) else cost
        step_a, step_b = _newton(g, y, a, b, k)
        moved = (g @ step_a + step_b.unsqueeze(-2)).abs().amax((-2, -1))
        size = (g @ a + b.unsqueeze(-2)).abs().amax((-2, -1))
        done = moved <= _LAST_STEP * (1 + size)
        share = _step_size(g, y, k, (a, b), (step_a, step_b)).masked_fill(done, 1.0)
        dual[active] = a + share[:, None, None] * step_a
        bias[active] = b + share[:, None] * step_b
        active = active[~done]
        if not len(active):
            break
    return dual, bias


def _objective(gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, cost: Cost) -> Tensor:
    span = gram @ dual
    log_p = (span + bias.unsqueeze(-2)).log_softmax(-1)
    if isinstance(cost, Tensor):
        fit = (cost * targets * log_p).sum((-2, -1))
    else:
        fit = cost * (targets * log_p).sum((-2, -1))
    return 0.5 * (dual * span).sum((-2, -1)) - fit


def _step_size(
    gram: Tensor,
    targets: Tensor,
    cost: Cost,
    start: tuple[Tensor, Tensor],
    step: tuple[Tensor, Tensor],
) -> Tensor:
    """The largest of 1, 1/2, 1/4, ... that does not raise a problem's objective, ``(b,)``."""
    before = _objective(gram, targets, *start, cost)
    # Close to the optimum rounding may raise it by a few units in the last place.
    allowed = before + 1e-11 * before.abs()
    size = torch.ones_like(before)
    while True:
        dual = start[0] + size[:, None, None] * step[0]
        bias = start[1] + size[:, None] * step[1]
        rising = ~(_objective(gram, targets, dual, bias, cost) <= allowed)
        rising &= size > _SMALLEST_STEP
        if not rising.any():
            return size
        size = torch.where(rising, size / 2, size)


def _newton(
    gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, cost: Cost
) -> tuple[Tensor, Tensor]:
    """The full Newton step of `dual` and `bias`.

    With C the `cost`, curvature W = C (diag(p) - p p^T) and residual ``r = C (y - p) - dual``, the
    step (u, v) solves ``u + W (gram u + 1 v^T) = r`` under ``1^T (dual + u) = 0``. With
    B = W (I + gram W)^-1 that is ``u = r - B (gram r + 1 v^T)``, and v follows from
    ``1^T B 1 v = 1^T (r - B gram r) + 1^T dual``. Solving for the step, whose right-hand side goes
    to zero, and not for the next iterate, keeps the digits that badly scaled features cost.
    """
    n = gram.shape[-1]
    p = (gram @ dual + bias.unsqueeze(-2)).softmax(-1)
    r = cost * (targets - p) - dual
    # E_k = D_k^1/2 (I + D_k^1/2 gram D_k^1/2)^-1 D_k^1/2 with D_k = C diag(p_k): (b, c, n, n).
    root = (cost * p).sqrt().mT
    inner = root.unsqueeze(-1) * gram.unsqueeze(-3) * root.unsqueeze(-2)
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factor = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(factor, torch.diag_embed(root), upper=False)
    total = (half.mT @ half).sum(-3)
    if isinstance(cost, Tensor):
        # The rows and columns of absent examples are null, and stay so whatever is put here.
        total = total + torch.diag_embed((cost.squeeze(-1) == 0).to(total.dtype))
    total = torch.linalg.cholesky(total)

    def within_classes(v: Tensor) -> Tensor:
        # Solved anew for each v: multiplying with the inverse would lose twice the digits.
        return root.unsqueeze(-1) * torch.cholesky_solve(root.unsqueeze(-1) * v, factor)

    def curve(v: Tensor) -> Tensor:
        """B v for v ``(b, c, n, m)``: blocks E, less what they share (R&W Eq. 3.47)."""
        blocks = within_classes(v)
        common = torch.cholesky_solve(blocks.sum(-3), total).unsqueeze(-3)
        return blocks - within_classes(common)

    # One right-hand side for gram r, and one for the intercept of each class: (b, c, n, 1 + c).
    c = targets.shape[-1]
    ones = torch.eye(c, dtype=gram.dtype, device=gram.device).unsqueeze(-2)
    rhs = torch.cat([(gram @ r).mT.unsqueeze(-1), ones.expand(len(gram), c, n, c)], dim=-1)
    solved = curve(rhs)
    u, by_intercept = r - solved[..., 0].mT, solved[..., 1:]
    M = by_intercept.sum(-2)
    # Adding one number to all intercepts changes nothing: pin their mean to zero.
    M = M + M.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    v = torch.linalg.solve(M, u.sum(-2) + dual.sum(-2))
    return u - (by_intercept @ v[:, None, :, None]).squeeze(-1).mT, v
