"""Multinomial logistic regression in the span of the support set, many problems at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medbench.api import NonFinite
from medbench_algorithms.common.dense_logistic import solve_dense

_MAX_ITERATIONS = 40
_MAX_INNER = 100
# A step that moves no logit by more, relative to the largest, leaves an error far below it.
_LAST_STEP = 1e-7
_SMALLEST_STEP = 2.0**-30
_TINY = 1e-300
# Newton decrements, as a share of the losses' weights, that are nothing but rounding.
_ROUNDING = 1e-26
# Relative to the longest example; far below what a logit's last digits show.
_JITTER = 1e-12
# Numbers in the Gram matrices of one block: what a processor's cache holds, or a GPU wants.
_BLOCK_CPU, _BLOCK_GPU = 2**16, 2**25


class _Problems(NamedTuple):
    """Some Gram matrices, ``m`` problems on each, and where their solutions stand."""

    gram: Tensor  # (e, n, n)
    targets: Tensor  # (e, n, m, c)
    cost: Tensor  # what each log loss is multiplied with, (e, n, m, 1)
    dual: Tensor  # (e, n, m, c)
    bias: Tensor  # (e, 1, m, c)

    def take(self, rows: Tensor) -> _Problems:
        return _Problems(*(t[rows] for t in self))


def solve(
    gram: Tensor,
    targets: Tensor,
    C: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise ``||W||^2 / 2 + C * sum_i -log p(y_i)`` with logits ``W x_i + b``, b unpenalised.

    `gram` is ``(..., n, n)``, the inner products of the (centred) examples; `targets`
    ``(..., n, c)`` one-hot rows; `weights` ``(..., n)``, if given, multiply the examples' losses,
    and one of weight 0 counts as absent (every class needs one that is present); all float64.
    Returns ``dual (..., n, c)`` with ``W = dual^T X`` and ``b (..., c)``.

    Newton's method in the n-dimensional span of the examples rather than in d dimensions (the
    representer theorem). Its linear systems are solved by conjugate gradients, which take a
    product with `gram` a step; near the optimum of a problem that can be separated they are well
    conditioned, as the curvature p (1 - p) of what is fitted well vanishes. What does not
    converge so is left to `solve_dense`. See `solve_many` for problems that share a Gram matrix.

    Raises `NonFinite` when the examples are not finite.
    """
    dual, bias = solve_many(
        gram, targets.unsqueeze(-3), C, None if weights is None else weights.unsqueeze(-2)
    )
    return dual.squeeze(-3), bias.squeeze(-2)


def solve_many(
    gram: Tensor,
    targets: Tensor,
    C: float,
    weights: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `solve`, with m problems on each Gram matrix, which a product then reads once for all.

    `targets` ``(..., m, n, c)``, `weights` ``(..., m, n)``; returns ``(..., m, n, c)`` and
    ``(..., m, c)``. `start`: such a pair to begin with.
    """
    lead, (m, n, c) = targets.shape[:-3], targets.shape[-3:]
    if not torch.isfinite(gram).all():
        raise NonFinite("Support features are not finite, or too large to square.")
    gram = gram.reshape(-1, n, n)
    # Examples first: a product with all problems of a Gram matrix is then one matrix product.
    y = targets.reshape(-1, m, n, c).transpose(1, 2)
    if weights is None:
        cost = torch.full_like(y[..., :1], C)
    else:
        cost = C * weights.reshape(-1, m, n, 1).transpose(1, 2)
    if start is None:
        dual, bias = torch.zeros_like(y), torch.zeros_like(y[:, :1])
    else:
        dual = start[0].reshape(y.shape[0], m, n, c).transpose(1, 2)
        bias = start[1].reshape(y.shape[0], 1, m, c)
    numbers = _BLOCK_CPU if gram.device.type == "cpu" else _BLOCK_GPU
    at_once = max(1, numbers // max(n * n, n * m * c))
    everything = _Problems(gram, y, cost, dual, bias)
    parts = zip(*(torch.split(t, at_once) for t in everything), strict=True)
    solved = [_solve_block(_Problems(*part)) for part in parts]
    dual, bias = (torch.cat(found) for found in zip(*solved, strict=True))
    return dual.transpose(1, 2).reshape(*lead, m, n, c), bias.reshape(*lead, m, c)


def _solve_block(problems: _Problems) -> tuple[Tensor, Tensor]:
    dual, bias = problems.dual.clone(), problems.bias.clone()
    hard = torch.zeros(len(dual), dtype=torch.bool, device=dual.device)
    # Gram matrices drop out when their problems have converged: few slow ones do not hold up all.
    active = torch.arange(len(dual), device=dual.device)
    now = problems
    for _ in range(_MAX_ITERATIONS):
        span = _product(now.gram, now.dual)
        logits = span + now.bias
        step, precise = _newton(now, logits.softmax(-1))
        u, of_u, v = step
        moved = (of_u + v).abs().amax((1, 3), keepdim=True)
        done = precise & (moved <= _LAST_STEP * (1 + logits.abs().amax((1, 3), keepdim=True)))
        share = _step_size(now, span, step).masked_fill(done, 1.0)
        dual[active] = torch.where(precise, now.dual + share * u, now.dual)
        bias[active] = torch.where(precise, now.bias + share * v, now.bias)
        hard[active] = ~precise.all(2).flatten()
        going = ~(done.all(2).flatten() | hard[active])
        active = active[going]
        if not len(active):
            break
        now = problems.take(active)._replace(dual=dual[active], bias=bias[active])
    hard[active] = True
    rows = torch.nonzero(hard).squeeze(-1)
    if len(rows):
        dual[rows], bias[rows] = _surely(
            problems.take(rows)._replace(dual=dual[rows], bias=bias[rows])
        )
    return dual, bias


def _surely(problems: _Problems) -> tuple[Tensor, Tensor]:
    """What dense Newton steps make of problems on which conjugate gradients did not converge."""
    gram, y, cost, dual, bias = problems
    e, n, m, c = y.shape

    def apart(t: Tensor) -> Tensor:
        return t.transpose(1, 2).flatten(0, 1)

    start = apart(dual), apart(bias).squeeze(1)
    dual, bias = solve_dense(gram.repeat_interleave(m, 0), apart(y), apart(cost), start)
    return dual.view(e, m, n, c).transpose(1, 2), bias.view(e, 1, m, c)


def _product(gram: Tensor, v: Tensor) -> Tensor:
    """``gram v`` for v ``(e, n, m, c)``."""
    return (gram @ v.flatten(2)).view(v.shape)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sums over examples and classes, ``(e, 1, m, 1)``."""
    return (a * b).sum((1, 3), keepdim=True)


def _newton(problems: _Problems, p: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The Newton step u of the dual, ``gram u``, v of the bias; and whether it is precise.

    With curvature ``A f = cost (diag(p) - p p^T) f`` it solves
    ``u + A (gram u + 1 v^T) = cost (y - p) - dual`` and ``1^T A (gram u + 1 v^T) =
    1^T cost (y - p)`` by conjugate gradients in the weights ``X^T u`` and v, whose inner products
    are taken through the Gram matrix (Nocedal and Wright 2006, algorithm 5.3). v is
    preconditioned by its mean curvature. Bias and dual share arrays, the bias being the last row,
    and each array its image under the Gram matrix: the work is small, and calls cost more than it.
    """
    cost, gram = problems.cost, problems.gram
    e, n, m, c = p.shape
    pull, bent = cost * (problems.targets - p), cost * p
    wide = gram.new_zeros(e, n + 1, n + 1)
    wide[:, :n, :n] = gram
    # Without it the dual grows unseen in the null space of the Gram matrix, until it is all noise.
    diagonal = wide[:, :n, :n].diagonal(dim1=1, dim2=2)
    diagonal += _JITTER * diagonal.amax(1, keepdim=True)
    wide[:, n, n] = m * c / (bent * (1 - p)).sum((1, 2, 3)).clamp_min(_TINY)
    ahead, image = left = p.new_empty(2, e, n + 1, m, c)
    torch.sub(pull, problems.dual, out=ahead[:, :n])
    torch.sum(pull, 1, keepdim=True, out=ahead[:, n:])
    torch.bmm(wide, ahead.flatten(2), out=image.view(e, n + 1, -1))
    size = _inner(ahead, image)
    # Roughly at first, precisely near the optimum.
    total = _inner(cost, cost.new_ones(1))
    enough = (size * (size / total).clamp(1e-8, 1e-2)).clamp_min(_ROUNDING * total)
    direction, step = left.clone(), torch.zeros_like(left)
    bends = torch.empty_like(ahead)
    going = size > enough
    for _ in range(_MAX_INNER):
        if not going.any():
            break
        along = direction[1, :, :n] + direction[1, :, n:]
        along *= bent
        along = torch.addcmul(along, p, along.sum(-1, keepdim=True), value=-1)
        torch.add(direction[0, :, :n], along, out=bends[:, :n])
        torch.sum(along, 1, keepdim=True, out=bends[:, n:])
        # Problems that are done stand still, whatever others they share a block with.
        length = going * size / _inner(direction[1], bends).clamp_min(_TINY)
        step.addcmul_(length, direction)
        ahead.addcmul_(length, bends, value=-1)
        torch.bmm(wide, ahead.flatten(2), out=image.view(e, n + 1, -1))
        new = _inner(ahead, image)
        direction = torch.addcmul(left, new / size.clamp_min(_TINY), direction)
        size = new
        going = size > enough
    return (step[0, :, :n], step[1, :, :n], step[1, :, n:]), size <= enough


def _step_size(problems: _Problems, span: Tensor, step: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The largest of 1, 1/2, 1/4, ... that does not raise a problem's objective.

    Shaped ``(e, 1, m, 1)``.
    """
    u, of_u, v = step
    weighted = problems.cost * problems.targets
    logits, change = span + problems.bias, of_u + v
    constant, linear, square = (
        _inner(problems.dual, span),
        _inner(problems.dual, of_u),
        _inner(u, of_u),
    )

    def objective(size: Tensor | float) -> Tensor:
        penalty = 0.5 * (constant + 2 * size * linear + size * size * square)
        return penalty - _inner(weighted, (logits + size * change).log_softmax(-1))

    before = objective(0.0)
    # Close to the optimum rounding may raise it by a few units in the last place.
    allowed = before + 1e-11 * before.abs()
    size = torch.ones_like(before)
    while True:
        rising = ~(objective(size) <= allowed) & (size > _SMALLEST_STEP)
        if not rising.any():
            return size
        size = torch.where(rising, size / 2, size)
