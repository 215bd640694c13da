"""Source-only for masks: a U-Net with an output for each source class, as it is, elsewhere."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Predictor, Support, Task
from medbench_algorithms.dense.unet import UNet, mask_loss
from medbench_algorithms.references.asked import asked_classes
from medbench_algorithms.references.source_network import SourceNetwork


@final
class SourceUNet(SourceNetwork):
    """Trains a U-Net on the masks of all source tasks, and asks it about a new site.

    Each source class has an output, of which a task's loss takes those that it shows masks of; its
    support and query images count alike. The state that is best at the queries of validation tasks
    is kept. Support sets are not looked at.
    """

    name: ClassVar[str] = "source-only-unet"
    class_bias: ClassVar[str] = "last.bias"

    def __init__(
        self,
        *,
        width: int = 8,
        lr: float = 1e-3,
        meta_batch: int = 4,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, meta_batch=meta_batch)
        self.width = width

    def network(self, backbone: Backbone) -> nn.Module:
        """A U-Net with as many outputs as the source has classes."""
        wants = backbone.input
        return UNet(wants.channels, self.n_classes, self.width, wants.n_dims)

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The loss of all masks of a task, its support images' and its queries'."""
        assert task.support.masks is not None
        assert task.query_masks is not None
        images = torch.cat([task.support.inputs, task.query])
        truth = torch.cat([task.support.masks, task.query_masks]).to(images.dtype)
        classes = asked_classes(task.support, self.name)
        return mask_loss(network(images)[:, classes], truth)

    def answers(self, network: nn.Module, support: Support) -> Predictor:
        """The outputs of the task's classes."""
        return _Outputs(network, asked_classes(support, self.name))


@final
class _Outputs(Predictor):
    def __init__(self, network: nn.Module, classes: Tensor) -> None:
        self.network = network
        self.classes = classes

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, *size)``."""
        # One image at a time: a convolution may round a batch in another way.
        return torch.cat([self.network(image[None])[:, self.classes] for image in query])
