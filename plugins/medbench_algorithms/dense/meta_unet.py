"""MAML on a small U-Net: a start from which a few steps on the support masks segment a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medbench.api import Backbone, Predictor, Support, Task
from medbench_algorithms.dense.episodic import OwnNetwork
from medbench_algorithms.dense.unet import UNet, mask_loss
from medbench_algorithms.optimisation.inner_loop import descend_inner

_ROWS = ("last.weight", "last.bias")


@final
class MetaUNet(OwnNetwork):
    """Finn et al. 2017, algorithm 1, with masks for labels; first order or second.

    The inner loop descends on the support's `mask_loss` (Eq. 1 of the paper), the outer one on the
    queries' with Adam. One output is learned and serves every class of a task as its start, so any
    number of classes can be asked for and their order says nothing. Layers are normalised over each
    image by itself (group norm of one group): no statistics pass from one task or query to another.

    Rates, steps and the size of a meta-batch are MAML's for miniImageNet (appendix A.1).
    """

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        inner_steps_test: int = 10,
        first_order: bool = False,
        width: int = 8,
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        recompute: bool = False,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=meta_lr, meta_batch=meta_batch)
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        self.first_order = first_order
        self.width = width
        self.recompute = recompute

    def network(self, backbone: Backbone) -> nn.Module:
        """A U-Net with one output."""
        return UNet(backbone.input.channels, 1, self.width)

    def fit(
        self, network: nn.Module, support: Support, n_steps: int, *, second_order: bool
    ) -> dict[str, Tensor]:
        """The inner loop; weights by name, which depend differentiably on the start."""
        assert support.masks is not None
        images, truth = support.inputs, support.masks.to(support.inputs.dtype)
        names: list[str] = []
        start: list[Tensor] = []
        for name, own in network.named_parameters():
            # A loop that starts at frozen weights has to differentiate by something.
            value: Tensor = own if own.requires_grad else own.detach().clone().requires_grad_()
            names.append(name)
            start.append(_repeated(value, support.n_way) if name in _ROWS else value)

        def loss(values: Sequence[Tensor]) -> Tensor:
            return mask_loss(_call(network, dict(zip(names, values, strict=True)), images), truth)

        end = descend_inner(
            loss,
            start,
            self.inner_lr,
            n_steps,
            second_order=second_order,
            recompute=self.recompute,
        )
        return dict(zip(names, end, strict=True))

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The queries' loss after adaptation, by the start (algorithm 1, line 8)."""
        assert task.query_masks is not None
        weights = self.fit(
            network, task.support, self.inner_steps, second_order=not self.first_order
        )
        return mask_loss(_call(network, weights, task.query), task.query_masks.to(task.query.dtype))

    def answers(self, network: nn.Module, support: Support) -> Predictor:
        """Run the inner loop as in training: what is kept must not depend on the test's steps."""
        return self._adapted(network, support, self.inner_steps)

    def adapt(self, support: Support) -> Predictor:
        """Run the inner loop on images ``(n, C, H, W)`` and masks ``(n, n_way, H, W)``."""
        return self._adapted(self.prepared, support, self.inner_steps_test)

    def _adapted(self, network: nn.Module, support: Support, n_steps: int) -> Predictor:
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            assert support.masks is not None
            usable = Support(
                support.inputs.clone(),
                support.labels,
                support.n_way,
                support.seeds,
                support.size,
                support.masks.clone(),
            )
            weights = self.fit(network, usable, n_steps, second_order=False)
        return _Fitted(cast("UNet", network), {k: v.detach() for k, v in weights.items()})


def _repeated(rows: Tensor, n_way: int) -> Tensor:
    return rows.expand(n_way, *rows.shape[1:]).contiguous()


def _call(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    found: Tensor = functional_call(network, weights, (images,))
    return found


@final
class _Fitted(Predictor):
    def __init__(self, network: UNet, weights: dict[str, Tensor]) -> None:
        self.network = network
        self.weights = weights
        self.n_adapted = sum(value.numel() for value in weights.values())

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, H, W)``."""
        # One image at a time: a convolution may round a batch in another way.
        return torch.cat([_call(self.network, self.weights, image[None]) for image in query])
