"""iMAML (Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medbench.api import Support, Task
from medbench_algorithms.common.twice_differentiable import CheapSecondDerivatives
from medbench_algorithms.optimisation.adapted import Adapted, support_loss
from medbench_algorithms.optimisation.gradient_based import (
    BatchNorm,
    HeadKind,
    PlainStart,
    Start,
)
from medbench_algorithms.optimisation.inner_loop import descend_inner

Loss = Callable[[Sequence[Tensor]], Tensor]


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, n_steps: int) -> Tensor:
    """Approximate ``x`` with ``A x = b`` by `n_steps` of conjugate gradient from zero.

    `product` multiplies a vector ``(n,)`` by the symmetric ``A``. Stops where it meets a direction
    along which ``A`` is not positive: beyond it the method has no meaning, and steps no bound.
    """
    x = torch.zeros_like(b)
    residual = direction = b
    squared = residual @ residual
    for _ in range(n_steps):
        along = product(direction)
        curvature = direction @ along
        if not (curvature > 0 and squared > 0):
            break
        length = squared / curvature
        x = x + length * direction
        residual = residual - length * along
        squared, before = residual @ residual, squared
        direction = residual + squared / before * direction
    return x


def implicit_gradient(
    train_loss: Loss, test_loss: Loss, at: Sequence[Tensor], strength: float, n_steps: int
) -> tuple[list[Tensor], Tensor]:
    """The gradient of the test loss by the centre of a proximal problem, and the test loss.

    `at` is where ``train_loss(w) + strength / 2 * |w - centre|^2`` is least. The gradient solves
    ``(I + H / strength) g = grad test_loss(at)`` with ``H`` the Hessian of the train loss there
    (Eq. 6 and lemma 1), by conjugate gradient with Hessian-vector products (section 3.1).
    """
    weights = [value.detach().requires_grad_() for value in at]
    test = test_loss(weights)
    wanted = _flat(_gradients(test, weights), weights)
    with CheapSecondDerivatives():
        train = train_loss(weights)
    slopes = _gradients(train, weights, create_graph=True)
    shapes = [value.shape for value in weights]

    def product(vector: Tensor) -> Tensor:
        parts = _parts(vector, shapes)
        inner = torch.stack(
            [(s * p).sum() for s, p in zip(slopes, parts, strict=True) if s is not None]
        ).sum()
        curved = _flat(_gradients(inner, weights, retain_graph=True), weights)
        return vector + curved / strength

    return _parts(conjugate_gradient(product, wanted, n_steps), shapes), test.detach()


@final
class IMAML(PlainStart):
    """MAML whose inner loop is held near the start, and whose outer gradient is implicit.

    The inner loop descends the support loss plus ``proximal / 2 * |w - start|^2`` (Eq. 3). The
    outer gradient depends on where it ends, not on the way (Eq. 6; algorithms 1 and 2), so memory
    does not grow with the inner steps; the linear system is solved by ``cg_steps`` of conjugate
    gradient. The same inner loop serves at test.

    Defaults are those of the authors' command for Omniglot 5-way: 16 inner steps of 0.1,
    ``proximal`` 2, 5 conjugate-gradient steps, Adam at 0.001, there with 32 tasks an outer step.
    Their code damps the linear system further, and pulls back to the start once, at the end of the
    inner loop, and not at test; this is the algorithm of the paper.
    """

    vectorises: ClassVar[bool] = False  # conjugate gradient stops where each task says

    def __init__(
        self,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 16,
        inner_steps_test: int = 16,
        proximal: float = 2.0,
        cg_steps: int = 5,
        head: HeadKind = "auto",
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            head=head,
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
        self.proximal = proximal
        self.cg_steps = cg_steps

    def fit(
        self, start: Start[nn.Identity], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Descend the proximal problem; the way there is forgotten."""
        del second_order
        begin = start.for_each(support)
        centre = [v.detach() for v in (*begin.body.values(), begin.weight, begin.bias)]

        def loss(values: Sequence[Tensor]) -> Tensor:
            away = [(v - c).square().sum() for v, c in zip(values, centre, strict=True)]
            pull = 0.5 * self.proximal * torch.stack(away).sum()
            return support_loss(start.body, _at(begin, values), support) + pull

        end = descend_inner(
            loss,
            [c.clone().requires_grad_() for c in centre],
            self.inner_lr,
            n_steps,
            second_order=False,
        )
        return _at(begin, end).detached()

    def accumulate(self, start: Start[nn.Identity], task: Task, progress: float) -> float:
        """Add the implicit gradient of one task (algorithm 2) to the gradients of the start."""
        del progress
        begin = start.for_each(task.support)
        end = self.fit(start, task.support, self.inner_steps, second_order=False)
        gradients, loss = implicit_gradient(
            lambda w: support_loss(start.body, _at(begin, w), task.support),
            lambda w: self.query_loss(start.body, _at(begin, w), task),
            [*end.body.values(), end.weight, end.bias],
            self.proximal,
            self.cg_steps,
        )
        # The head's rows are slices or copies of what is learned: autograd leads there.
        torch.autograd.backward(
            [*begin.body.values(), begin.weight, begin.bias],
            [gradient / self.meta_batch for gradient in gradients],
        )
        return loss.item()


def _at(like: Adapted, values: Sequence[Tensor]) -> Adapted:
    *weights, weight, bias = values
    return Adapted(dict(zip(like.body, weights, strict=True)), weight, bias)


def _gradients(
    value: Tensor,
    weights: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(
        value, weights, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )


def _flat(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    parts = (torch.zeros_like(w) if g is None else g for g, w in zip(gradients, like, strict=True))
    return torch.cat([part.reshape(-1) for part in parts])


def _parts(vector: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    pieces = torch.split(vector, [shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
