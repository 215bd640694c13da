"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from medbench.api import Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.adapted import Adapted, support_loss
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import BatchNorm, GradientBased, Start
from medbench_algorithms.optimisation.inner_loop import descend_inner


@final
class CAVIA(GradientBased[nn.Linear]):
    """Adapts a short vector of context parameters to each task; all weights are shared by tasks.

    The vector starts at zero, takes ``inner_steps`` gradient steps, and scales and shifts the
    channels of one layer by a learned linear map of it (FiLM; sections 3.2 and 5.3, algorithm 1).
    The layer is the BatchNorm three quarters through the network: the third of Conv-4's four, as
    in the paper. A network without BatchNorm has its final features scaled and shifted. Scale and
    shift are applied before pooling, and by ``1 + `` the linear map, without its constant: at zero
    context the network is the plain one (the authors apply them after pooling, and learn the
    constant). The head is learned, not adapted, and needs a row for each class; it serves tasks of
    up to as many classes as those of training.

    Defaults are the paper's for miniImageNet: 100 context parameters, 2 inner steps of 1.0 in
    training and test, 4 tasks an outer step, Adam at 0.001 that falls to 0.9 of that every 5000
    steps. Gradients are not clipped, as they are there at 10.
    """

    def __init__(
        self,
        *,
        n_context: int = 100,
        inner_lr: float = 1.0,
        inner_steps: int = 2,
        inner_steps_test: int = 2,
        first_order: bool = False,
        batch_norm: BatchNorm = "query",
        meta_lr: float = 1e-3,
        meta_lr_decay: float = 0.9,
        meta_lr_decay_every: int = 5000,
        meta_batch: int = 4,
        tasks_at_once: int | None = None,
        recompute: bool = False,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=first_order,
            head="per_class",
            batch_norm=batch_norm,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
            tasks_at_once=tasks_at_once,
            recompute=recompute,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
        )
        self.n_context = n_context
        self.meta_lr_decay = meta_lr_decay
        self.meta_lr_decay_every = meta_lr_decay_every

    def build(self, body: FunctionalBody, head: EpisodicHead) -> nn.Linear:
        """The map from the context to a scale and a shift for each channel."""
        layer = _conditioned(body)
        shape = head.weight.shape[1:] if layer is None else body.parameters()[layer[0]].shape
        film = nn.Linear(self.n_context, 2 * shape.numel(), bias=False).to(head.weight.dtype)
        nn.init.kaiming_uniform_(film.weight, nonlinearity="linear")
        return film

    def meta_rate(self, step: int, n_steps: int) -> float:
        """Falls in steps."""
        del n_steps
        return self.meta_lr * self.meta_lr_decay ** (step // self.meta_lr_decay_every)

    def fit(
        self, start: Start[nn.Linear], support: Support, n_steps: int, *, second_order: bool
    ) -> Adapted:
        """Adapt the context."""
        plain = start.weights(support.n_way)

        def at(values: Sequence[Tensor]) -> Adapted:
            (context,) = values
            return _condition(start, plain, context)

        film = start.parts.weight
        nothing = film.new_zeros((*support.labels.shape[:-1], self.n_context), requires_grad=True)
        return at(
            descend_inner(
                lambda values: support_loss(start.body, at(values), support),
                [nothing],
                self.inner_lr,
                n_steps,
                second_order=second_order,
                recompute=self.recompute,
            )
        )

    def count_adapted(self, start: Start[nn.Linear], adapted: Adapted) -> int:
        """The context."""
        del start, adapted
        return self.n_context


def _conditioned(body: FunctionalBody) -> tuple[str, str] | None:
    layers = body.affine()
    return layers[max(0, 3 * len(layers) // 4 - 1)] if layers else None


def _condition(start: Start[nn.Linear], plain: Adapted, context: Tensor) -> Adapted:
    """`plain` with one layer's output scaled by ``1 + gamma`` and shifted by ``beta``."""
    gamma, beta = start.parts(context).chunk(2, -1)
    scale = 1 + gamma
    layer = _conditioned(start.body)
    if layer is None:
        # The head is linear: what happens to its inputs can happen to its rows instead.
        shift = (plain.weight @ beta.unsqueeze(-1)).squeeze(-1)
        return Adapted(plain.body, plain.weight * scale.unsqueeze(-2), plain.bias + shift)
    weight, bias = layer
    # BatchNorm ends in a scale and a shift, which take the others in.
    own = {weight: plain.body[weight] * scale, bias: plain.body[bias] * scale + beta}
    return Adapted({**plain.body, **own}, plain.weight, plain.bias)
