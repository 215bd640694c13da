"""Multinomial logistic regression by dense Newton steps: slow, and sure when badly scaled."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ITERATIONS = 100
# A full Newton step that moves no logit by more leaves an error of about its square.
_LAST_STEP = 1e-7
_SMALLEST_STEP = 2.0**-30


# Numbers in one (b, c, n, n) array: a processor's cache holds a few such, a GPU wants more work.
_BLOCK_CPU, _BLOCK_GPU = 2**18, 2**25


def solve_dense(
    gram: Tensor, targets: Tensor, cost: Tensor, start: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`common.logistic.solve` for ``b`` problems: `gram` ``(b, n, n)``, `targets` ``(b, n, c)``.

    `cost` ``(b, n, 1)`` is what each log loss is multiplied with; `start` the dual ``(b, n, c)``
    and bias ``(b, c)`` to begin with, as what is returned.

    A Newton step costs c Cholesky factorisations of ``(n, n)`` instead of one of ``(n c, n c)``,
    as in Rasmussen and Williams 2006, algorithm 3.3, with D scaled by C and the free intercept
    eliminated last. Steps that do not decrease the objective are halved.
    """
    n, c = targets.shape[1:]
    at_once = max(1, (_BLOCK_CPU if gram.device.type == "cpu" else _BLOCK_GPU) // (c * n * n))
    parts = zip(*(torch.split(t, at_once) for t in (gram, targets, cost, *start)), strict=True)
    solved = [_solve_block(*part) for part in parts]
    dual, bias = (torch.cat(found) for found in zip(*solved, strict=True))
    return dual, bias


def _solve_block(
    gram: Tensor, targets: Tensor, cost: Tensor, dual: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    dual, bias = dual.clone(), bias.clone()
    # Problems drop out as they converge: a few hard ones do not hold up the rest.
    active = torch.arange(len(targets), device=gram.device)
    for _ in range(_MAX_ITERATIONS):
        g, y, a, b = gram[active], targets[active], dual[active], bias[active]
        k = cost[active]
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


def _objective(gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, cost: Tensor) -> Tensor:
    span = gram @ dual
    log_p = (span + bias.unsqueeze(-2)).log_softmax(-1)
    return 0.5 * (dual * span).sum((-2, -1)) - (cost * targets * log_p).sum((-2, -1))


def _step_size(
    gram: Tensor,
    targets: Tensor,
    cost: Tensor,
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
    gram: Tensor, targets: Tensor, dual: Tensor, bias: Tensor, cost: Tensor
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
