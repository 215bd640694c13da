"""Multinomial logistic regression on more examples than features, many problems at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medbench.api import NonFinite

_MAX_ITERATIONS = 100
_MAX_INNER = 200
# A step that moves no logit by more leaves an error far below it.
_LAST_STEP = 1e-5
_SMALLEST_STEP = 2.0**-30
# Numbers in one (b, n, d) array.
_BLOCK_CPU, _BLOCK_GPU = 2**22, 2**26


def solve_primal(x: Tensor, targets: Tensor, C: float) -> tuple[Tensor, Tensor]:
    """Minimise ``||W||^2 / 2 + C * sum_i -log p(y_i)`` with logits ``W x_i + b``, b unpenalised.

    `x` is ``(b, n, d)``, best centred; `targets` ``(b, n, c)`` rows that sum to one; both float64.
    Returns W ``(b, c, d)`` and b ``(b, c)``.

    Newton's method whose linear systems are solved by conjugate gradients (Nocedal and Wright
    2006, algorithm 7.1), so that a step costs a few products with x and one Cholesky
    factorisation of ``(d, d)``, where `common.logistic` needs c of ``(n, n)``. That factor
    preconditions: it is of the Hessian's blocks on the diagonal, with the classes' curvatures
    replaced by their mean.

    Raises `NonFinite` when the examples are not finite.
    """
    if not torch.isfinite(x).all():
        raise NonFinite("Features are not finite, or too large to square.")
    # A column of ones turns the intercepts into weights; they alone have no penalty.
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    numbers = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_GPU
    at_once = max(1, numbers // (x.shape[1] * x.shape[2]))
    pairs = zip(torch.split(x, at_once), torch.split(targets, at_once), strict=True)
    weight = torch.cat([_solve_block(part, y, C) for part, y in pairs])
    return weight[..., :-1], weight[..., -1]


class _Problem(NamedTuple):
    x: Tensor  # (b, n, d + 1)
    targets: Tensor  # (b, n, c)
    C: float

    def objective(self, weight: Tensor) -> Tensor:
        log_p = (self.x @ weight.mT).log_softmax(-1)
        penalty = 0.5 * weight[..., :-1].square().sum((-2, -1))
        return penalty - self.C * (self.targets * log_p).sum((-2, -1))


def _penalised(weight: Tensor) -> Tensor:
    return torch.cat([weight[..., :-1], torch.zeros_like(weight[..., -1:])], -1)


def _solve_block(x: Tensor, targets: Tensor, C: float) -> Tensor:
    weight = x.new_zeros(len(x), targets.shape[-1], x.shape[-1])
    # Problems drop out as they converge: a few hard ones do not hold up the rest.
    active = torch.arange(len(x), device=x.device)
    for _ in range(_MAX_ITERATIONS):
        problem = _Problem(x[active], targets[active], C)
        w = weight[active]
        logits = problem.x @ w.mT
        step = _newton(problem, w, logits.softmax(-1))
        moved = (problem.x @ step.mT).abs().amax((-2, -1))
        done = moved <= _LAST_STEP * (1 + logits.abs().amax((-2, -1)))
        share = _step_size(problem, w, step).masked_fill(done, 1.0)
        weight[active] = w + share[:, None, None] * step
        active = active[~done]
        if not len(active):
            break
    return weight


def _step_size(problem: _Problem, weight: Tensor, step: Tensor) -> Tensor:
    """The largest of 1, 1/2, 1/4, ... that does not raise a problem's objective, ``(b,)``."""
    before = problem.objective(weight)
    # Close to the optimum rounding may raise it by a few units in the last place.
    allowed = before + 1e-11 * before.abs()
    size = torch.ones_like(before)
    while True:
        rising = ~(problem.objective(weight + size[:, None, None] * step) <= allowed)
        rising &= size > _SMALLEST_STEP
        if not rising.any():
            return size
        size = torch.where(rising, size / 2, size)


def _newton(problem: _Problem, weight: Tensor, p: Tensor) -> Tensor:
    """The Newton step ``(b, c, d + 1)``: roughly at first, precisely near the optimum."""
    x, C = problem.x, problem.C

    def hessian(v: Tensor) -> Tensor:
        """Products with the Hessian: ``penalty v + C ((diag(p) - p p^T) (x v^T))^T x``."""
        along = p * (x @ v.mT)
        along = along - p * along.sum(-1, keepdim=True)
        return _penalised(v) + C * along.mT @ x

    curvature = C * (p * (1 - p)).mean(-1, keepdim=True)
    block = x.mT @ (curvature * x)
    diagonal = block.diagonal(dim1=-2, dim2=-1)
    diagonal[..., :-1] += 1.0
    diagonal[..., -1] += 1e-12 * C * x.shape[1]
    factor = torch.linalg.cholesky(block)

    def precondition(v: Tensor) -> Tensor:
        return torch.cholesky_solve(v.mT, factor).mT

    step = torch.zeros_like(weight)
    residual = C * (problem.targets - p).mT @ x - _penalised(weight)
    ahead = precondition(residual)
    direction = ahead
    size = (residual * ahead).sum((-2, -1), keepdim=True)
    # Squared, in the norm of the preconditioner; the closer to the optimum, the better.
    enough = size * (size / (C * x.shape[1])).clamp(1e-6, 1e-2)
    for _ in range(_MAX_INNER):
        going = size > enough
        if not going.any():
            break
        bent = hessian(direction)
        curve = (direction * bent).sum((-2, -1), keepdim=True)
        going &= curve > 0
        length = torch.where(going, size / curve, 0.0)
        step = step + length * direction
        residual = residual - length * bent
        ahead = precondition(residual)
        new = (residual * ahead).sum((-2, -1), keepdim=True)
        direction = ahead + torch.where(going, new / size, 0.0) * direction
        size = torch.where(going, new, 0.0)
    return step
