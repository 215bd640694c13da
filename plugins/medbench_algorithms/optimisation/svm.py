"""The multi-class support vector machine of Crammer and Singer (2001), many at once.

With one-hot targets Y ``(n, c)`` and ``W = C X^T A`` the dual problem is to find rows of
``P = Y - A`` on the simplex that minimise ``C tr(A^T K A) / 2 - sum_i A[i, y_i]``: the dual in Lee
et al. 2019, section 3, with ``alpha = C A``. A primal-dual interior-point method solves it, as in
OptNet (Amos and Kolter 2017) but on the structure of this problem: the bounds of a class touch its
own column, so a step costs c factorisations of ``(n, n)`` instead of one of ``(n c, n c)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from medbench.api import NonFinite

_MAX_ITERATIONS = 60
# The gap bounds the squared error of W: stop at a relative 1e-13, for an error of some 1e-7 at
# worst and usually far below.
_GAP = 1e-13
_NULL = 1e-100  # ends the search where every kernel value is zero
_TO_BOUNDARY = 0.995
# Free variables have an ever smaller barrier; below this share of the kernel it counts as this.
_LEAST_BARRIER = 1e-12
_LEAST_BARRIER_OF_GRADIENT = 1e-9
# Numbers in one (b, c, n, n) array: a processor's cache holds a few such, a GPU wants more work.
_BLOCK_CPU, _BLOCK_GPU = 2**18, 2**25


def dual(gram: Tensor, targets: Tensor) -> Tensor:
    """The optimal A ``(..., n, c)``; its gradient with respect to `gram` is that of the optimum.

    `gram` is ``(..., n, n)`` and already multiplied by C, `targets` ``(..., n, c)`` one-hot; both
    float64. Raises `NonFinite` when the examples are not finite.
    """
    lead, (n, c) = targets.shape[:-2], targets.shape[-2:]
    gram, targets = gram.reshape(-1, n, n), targets.reshape(-1, n, c)
    if not torch.isfinite(gram).all():
        raise NonFinite("Support features are not finite, or too large to square.")
    at_once = max(1, (_BLOCK_CPU if gram.device.type == "cpu" else _BLOCK_GPU) // (c * n * n))
    pairs = zip(torch.split(gram, at_once), torch.split(targets, at_once), strict=True)
    found: list[Tensor] = [_Optimum.apply(g, y) for g, y in pairs]
    return torch.cat(found).reshape(*lead, n, c)


@final
class _Optimum(torch.autograd.Function):
    """The solution as a function of the kernel: forward solves, backward differentiates.

    The optimality conditions hold for every kernel; differentiating them gives a linear system
    like that of a Newton step (Amos and Kolter 2017, Eq. 6). Nothing is unrolled.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor, targets: Tensor) -> Tensor:
        p, slack = _interior_point(gram, targets)
        a = _coefficients(p, targets)
        ctx.save_for_backward(gram, a, p, slack)
        return a

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gram, a, p, slack = ctx.saved_tensors
        # K dP + dnu + (slack / P) dP = dK A, rows of dP sum to zero, and dA = -dP.
        v = _Newton.at(gram, p, slack, _LEAST_BARRIER_OF_GRADIENT).solve(grad)[0]
        outer = v @ a.mT
        return -(outer + outer.mT) / 2, None


@final
@dataclass(frozen=True)
class _Newton:
    """The factorised system of a Newton step: ``K + diag(slack / P)`` for every class."""

    root: Tensor
    """Square roots of ``P / slack``, ``(b, c, n, 1)``."""
    factor: Tensor
    """Cholesky factors of ``1 + root K root``, ``(b, c, n, n)``: well conditioned at bounds."""
    total: Tensor
    """Cholesky factor of the classes' summed inverses, ``(b, n, n)``."""

    @staticmethod
    def at(gram: Tensor, p: Tensor, slack: Tensor, least: float) -> _Newton:
        """The system at a point; `least` is the least barrier, as a share of the kernel."""
        size = gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(gram.dtype).tiny)
        barrier = (slack / p).mT
        barrier = torch.maximum(barrier, least * size[:, None, None])
        root = barrier.rsqrt().unsqueeze(-1)
        inner = root * gram.unsqueeze(-3) * root.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor = torch.linalg.cholesky(inner)
        half = torch.linalg.solve_triangular(
            factor, torch.diag_embed(root.squeeze(-1)), upper=False
        )
        return _Newton(root, factor, torch.linalg.cholesky((half.mT @ half).sum(-3)))

    def solve(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """The step ``(b, n, c)``, whose rows sum to zero, and its nu ``(b, n)``."""
        of_right = self._inverse(right.mT.unsqueeze(-1))
        nu = torch.cholesky_solve(of_right.sum(-3), self.total)
        step = of_right - self._inverse(nu.unsqueeze(-3))
        return step.squeeze(-1).mT, nu.squeeze(-1)

    def _inverse(self, v: Tensor) -> Tensor:
        return self.root * torch.cholesky_solve(self.root * v, self.factor)


def _coefficients(p: Tensor, targets: Tensor) -> Tensor:
    """``A = Y - P``; the entry of the own class from the others', so that no digit cancels."""
    others = p * (1 - targets)
    return targets * others.sum(-1, keepdim=True) - others


def _interior_point(gram: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Optimal P ``(b, n, c)`` and the multipliers of ``P >= 0``, by Mehrotra's method.

    Conditions: ``K (P - Y) + Y + nu = slack``, ``P slack = 0``, rows of P sum to one, both not
    negative (Nocedal and Wright 2006, algorithm 16.4).
    """
    n, c = targets.shape[-2:]
    p = torch.full_like(targets, 1.0 / c)
    slope = targets - gram @ _coefficients(p, targets)
    nu = 1.0 + slope.abs().mean(-1) - slope.amin(-1)  # slack begins above zero
    slack = slope + nu.unsqueeze(-1)
    active = torch.arange(len(targets), device=gram.device)
    for _ in range(_MAX_ITERATIONS):
        g, y, p_, s_, nu_ = gram[active], targets[active], p[active], slack[active], nu[active]
        a = _coefficients(p_, y)
        product = g @ a
        mu = (p_ * s_).sum((-2, -1)) / (n * c)
        done = mu * n * c <= _GAP * (a * product).sum((-2, -1)) + _NULL
        active, keep = active[~done], ~done
        if not len(active):
            break
        g, y, p_, s_, nu_, mu = (t[keep] for t in (g, y, p_, s_, nu_, mu))
        residual = (y - product[keep] + nu_.unsqueeze(-1)) - s_
        system = _Newton.at(g, p_, s_, _LEAST_BARRIER)
        # First straight for the bounds, to see how far that leads; then with what that taught.
        dp, ds, _ = _step(system, p_, s_, residual, torch.zeros_like(p_))
        share = torch.minimum(_room(p_, dp), _room(s_, ds)).clamp_max(1.0)[:, None, None]
        after = ((p_ + share * dp) * (s_ + share * ds)).sum((-2, -1)) / (n * c)
        centre = (after / mu).pow(3) * mu
        dp, ds, dnu = _step(system, p_, s_, residual, centre[:, None, None] - dp * ds)
        share = torch.minimum(_room(p_, dp), _room(s_, ds)).mul(_TO_BOUNDARY).clamp_max(1.0)
        p[active] = p_ + share[:, None, None] * dp
        slack[active] = s_ + share[:, None, None] * ds
        nu[active] = nu_ + share[:, None] * dnu
    return p, slack


def _step(
    system: _Newton, p: Tensor, slack: Tensor, residual: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of P, slack and nu after which P times slack is `target`, to first order."""
    ratio = target / p
    dp, dnu = system.solve(ratio - slack - residual)
    return dp, ratio - slack - slack / p * dp, dnu


def _room(value: Tensor, step: Tensor) -> Tensor:
    """How many steps ``(b,)`` a positive value can take before one of its numbers is zero."""
    fall = torch.where(step < 0, -value / step, torch.inf)
    return fall.amin((-2, -1))
