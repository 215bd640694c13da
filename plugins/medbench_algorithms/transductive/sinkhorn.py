"""Entropic optimal transport between queries and classes."""

from __future__ import annotations

import torch
from torch import Tensor

# A Newton step counts if it takes the error below this share of itself, and is cut to this size.
_SHARE, _LONGEST = 0.7, 20.0


def transport(
    log_kernel: Tensor,
    totals: Tensor,
    start: Tensor,
    *,
    tolerance: float = 1e-6,
    n_steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Log plan ``(e, k, q)`` whose columns sum to one and whose rows sum to `totals` ``(e, k)``.

    `log_kernel` ``(e, k, q)`` is minus the cost over the temperature; `totals` sum to q. Returned
    are the plan and its row potentials; `start` ``(e, k)`` are potentials to begin with, those of
    a similar problem if there is one. An episode stops where no row is off by more than
    `tolerance` of its total, or after `n_steps`; columns are exact.

    Sinkhorn's iteration, on logarithms, takes thousands of steps where classes are far apart. The
    potentials are the maximiser of a concave function of few variables, so a Newton step is tried
    first, and Sinkhorn's, which never adds to the rows' absolute errors, taken where it fails.
    """
    potentials = start.clone()
    active = torch.arange(len(log_kernel), device=log_kernel.device)
    kernel, goal, at = log_kernel, totals, start
    log_plan, log_rows = _plan(kernel, at)
    for _ in range(n_steps):
        potentials[active] = at
        far = (log_rows.exp() / goal - 1).abs().amax(-1) > tolerance
        if not far.all():
            active, kernel, goal, at, log_plan, log_rows = (
                part[far] for part in (active, kernel, goal, at, log_plan, log_rows)
            )
            if not len(active):
                break
        error = (log_rows.exp() - goal).abs().sum(-1)
        tried = at + _newton(log_plan.exp(), log_rows.exp(), goal)
        better = (_plan(kernel, tried)[1].exp() - goal).abs().sum(-1) < _SHARE * error
        at = torch.where(better.unsqueeze(-1), tried, at + goal.log() - log_rows)
        log_plan, log_rows = _plan(kernel, at)
    return _plan(log_kernel, potentials)[0], potentials


def _plan(log_kernel: Tensor, potentials: Tensor) -> tuple[Tensor, Tensor]:
    """The plan of these potentials, and the logarithms of its row sums."""
    log_plan = (log_kernel + potentials.unsqueeze(-1)).log_softmax(-2)
    return log_plan, log_plan.logsumexp(-1)


def _newton(plan: Tensor, rows: Tensor, goal: Tensor) -> Tensor:
    """The step of the potentials ``(e, k)`` that is best to second order."""
    curvature = torch.diag_embed(rows) - plan @ plan.mT
    # One number added to all potentials changes nothing; plans without doubt hardly curve.
    scale = goal.mean(-1)[:, None, None]
    ridge = 1e-12 * torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    curvature = curvature + scale * (ridge + 1 / rows.shape[-1])
    step: Tensor = torch.linalg.solve(curvature, goal - rows)
    return step * (_LONGEST / step.abs().amax(-1, keepdim=True).clamp_min(_LONGEST))
