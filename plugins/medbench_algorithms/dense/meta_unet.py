"""MAML on a small U-Net: a start from which a few steps on the support masks segment a task."""

from __future__ import annotations

from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medbench.api import Backbone, Predictor, Support, Task
from medbench_algorithms.dense.learned_start import LearnedStart, Weights
from medbench_algorithms.dense.unet import UNet, mask_loss


@final
class MetaUNet(LearnedStart):
    """MAML with `mask_loss`: Finn et al. 2017, algorithm 1, with masks for labels.

    Layers are normalised over each image by itself (group norm of one group): no statistics pass
    from one task or query to another. Rates, steps and the size of a meta-batch are MAML's for
    miniImageNet (appendix A.1).
    """

    class_rows: ClassVar[tuple[str, ...]] = ("last.weight", "last.bias")

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
        super().__init__(
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            first_order=first_order,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
        )
        self.width = width
        self.recompute = recompute

    def network(self, backbone: Backbone) -> nn.Module:
        """A U-Net with one output."""
        wants = backbone.input
        return UNet(wants.channels, 1, self.width, wants.n_dims)

    def support_loss(self, network: nn.Module, weights: Weights, support: Support) -> Tensor:
        """See `mask_loss`."""
        assert support.masks is not None
        found = _call(network, weights, support.inputs)
        return mask_loss(found, support.masks.to(support.inputs.dtype))

    def query_loss(self, network: nn.Module, weights: Weights, task: Task) -> Tensor:
        """See `mask_loss`."""
        assert task.query_masks is not None
        found = _call(network, weights, task.query)
        return mask_loss(found, task.query_masks.to(task.query.dtype))

    def fitted(self, network: nn.Module, weights: Weights, n_way: int) -> Predictor:
        """The U-Net with these weights."""
        del n_way
        return _Fitted(cast("UNet", network), weights)


def _call(network: nn.Module, weights: Weights, images: Tensor) -> Tensor:
    found: Tensor = functional_call(network, weights, (images,))
    return found


@final
class _Fitted(Predictor):
    def __init__(self, network: UNet, weights: Weights) -> None:
        self.network = network
        self.weights = weights
        self.n_adapted = sum(value.numel() for value in weights.values())

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, *size)``."""
        # One image at a time: a convolution may round a batch in another way.
        return torch.cat([_call(self.network, self.weights, image[None]) for image in query])
