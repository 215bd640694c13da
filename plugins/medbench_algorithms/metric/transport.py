"""Optimal transport between small weighted sets, many problems at a time: exact, or by Sinkhorn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from medbench.api import MedbenchError, Unavailable

Solver = Literal["exact", "linprog", "sinkhorn"]

_SAFE_EXPONENT = 300.0
"""Kernels ``exp(-x)`` up to here, and the scalings they lead to, stay in float64's range."""


@final
@dataclass(frozen=True)
class Plan:
    """How mass moves, and at what prices.

    ``flow`` is ``(..., n, m)``, prices are ``f`` ``(..., n)`` and ``g`` ``(..., m)``. They solve
    the dual problem: they are the derivatives of the least cost by the weights, up to a
    constant. Nothing here carries gradients.
    """

    flow: Tensor
    f: Tensor
    g: Tensor


def transport_cost(cost: Tensor, a: Tensor, b: Tensor, plan: Plan) -> Tensor:
    """The cost ``(...)`` of a plan, with the derivatives of the *least* cost.

    By the envelope theorem the least cost changes with the cost matrix as the flow does, and with
    the weights as the prices do, so that no gradient passes the solver.
    """
    moved = (cost * plan.flow).sum((-2, -1))
    # Zero in value; the prices are what the weights' gradients should be.
    by_a = ((a - a.detach()) * plan.f).sum(-1)
    by_b = ((b - b.detach()) * plan.g).sum(-1)
    return moved + by_a + by_b


@torch.no_grad()
def sinkhorn(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Plan:
    """Plans of least cost minus `epsilon` times entropy (Cuturi 2013), after `iterations` rounds.

    `cost` is ``(..., n, m)``, weights ``a`` ``(..., n)`` and ``b`` ``(..., m)`` are positive and
    sum to one. Every problem gets the same number of rounds, so that it does not depend on its
    batch. The last round fits ``b``, hence flows sum to one. Computed in float64: as scalings of
    a kernel where that is safe, else, more slowly, on logarithms (Peyre and Cuturi 2019, section
    4.4).
    """
    wide, log_a, log_b = cost.double(), a.double().log(), b.double().log()
    # A constant taken from a row of costs changes its price and no flow.
    least = wide.amin(-1, keepdim=True)
    exponent = (least - wide) / epsilon
    if exponent.numel() == 0 or float(-exponent.min()) <= _SAFE_EXPONENT:
        kernel, target_a, target_b = exponent.exp(), a.double(), b.double()
        v = torch.ones_like(target_b)
        for _ in range(iterations):
            u = target_a / (kernel @ v.unsqueeze(-1)).squeeze(-1)
            v = target_b / (u.unsqueeze(-2) @ kernel).squeeze(-2)
        f, g = u.log(), v.log()
        flow = u.unsqueeze(-1) * kernel * v.unsqueeze(-2)
    else:
        g = torch.zeros_like(log_b)
        for _ in range(iterations):
            f = log_a - (exponent + g.unsqueeze(-2)).logsumexp(-1)
            g = log_b - (exponent + f.unsqueeze(-1)).logsumexp(-2)
        flow = (exponent + f.unsqueeze(-1) + g.unsqueeze(-2)).exp()
    f = epsilon * f + least.squeeze(-1)
    return Plan(flow.to(cost), f.to(cost), (epsilon * g).to(cost))


def exact(cost: Tensor, a: Tensor, b: Tensor, solver: Literal["exact", "linprog"]) -> Plan:
    """Plans of least cost, one problem after the other on the CPU.

    ``exact`` is POT's network simplex, ``linprog`` SciPy's HiGHS: the same cost, but some fifty
    times slower. Shapes are `sinkhorn`'s. Raises `Unavailable` when POT is missing.
    """
    n, m = cost.shape[-2:]
    problems = cost.detach().double().cpu().reshape(-1, n, m).numpy()
    weights_a = a.detach().double().cpu().reshape(-1, n).numpy()
    weights_b = b.detach().double().cpu().reshape(-1, m).numpy()
    solve = _simplex() if solver == "exact" else _linear_program(n, m)
    flows, prices_a, prices_b = (np.empty_like(t) for t in (problems, weights_a, weights_b))
    for i, (c, x, y) in enumerate(zip(problems, weights_a, weights_b, strict=True)):
        flows[i], prices_a[i], prices_b[i] = solve(c, x / x.sum(), y / y.sum())

    def back(values: Any, like: Tensor) -> Tensor:
        return torch.from_numpy(values).reshape(like.shape).to(like.device, like.dtype)

    return Plan(back(flows, cost), back(prices_a, a), back(prices_b, b))


def check_solver(solver: Solver) -> None:
    """Raise `Unavailable` when the solver needs a package that is not installed."""
    if solver == "exact":
        _pot()


def _pot() -> Any:
    try:
        import ot.lp
    except ImportError as error:
        raise Unavailable(
            "solver: exact needs POT, which cannot be imported. Run 'pip install POT', or use "
            "solver: linprog (the same plans, slower) or solver: sinkhorn (approximate)."
        ) from error
    return ot.lp


def _simplex() -> Any:
    emd = _pot().emd

    def solve(c: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        flow, log = emd(x, y, c, numItermax=1_000_000, log=True)
        if log["warning"]:
            raise MedbenchError(f"POT's network simplex did not finish: {log['warning']}")
        return flow, log["u"], log["v"]

    return solve


def _linear_program(n: int, m: int) -> Any:
    rows = sparse.kron(sparse.eye(n), np.ones((1, m)))
    columns = sparse.kron(np.ones((1, n)), sparse.eye(m))
    constraints = sparse.vstack([rows, columns]).tocsc()

    def solve(c: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        with warnings.catch_warnings():
            # The constraints hold one that follows from the others; HiGHS minds it not.
            warnings.simplefilter("ignore")
            found = linprog(
                c.ravel(), A_eq=constraints, b_eq=np.concatenate([x, y]), method="highs-ds"
            )
        if found.status != 0:
            raise MedbenchError(
                f"SciPy's linprog did not solve a transport problem: {found.message}"
            )
        prices = found.eqlin.marginals
        return found.x.reshape(n, m), prices[:n], prices[n:]

    return solve
