"""Source-only for masks: a U-Net with an output for each source class, as it is, elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, ContractError, Predictor, Source, Support, Task, TrainingRun
from medbench_algorithms.dense.episodic import OwnNetwork
from medbench_algorithms.dense.unet import UNet, mask_loss
from medbench_algorithms.references.asked import asked_classes


@final
class SourceUNet(OwnNetwork):
    """Trains a U-Net on the masks of all source tasks, and asks it about a new site.

    Each source class has an output, of which a task's loss takes those that it shows masks of; its
    support and query images count alike. The state that is best at the queries of validation tasks
    is kept. Support sets are not looked at.
    """

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
        self._n_classes = 0

    def network(self, backbone: Backbone) -> nn.Module:
        """A U-Net with as many outputs as the source has classes."""
        return UNet(backbone.input.channels, self._n_classes, self.width)

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """See `DenseEpisodic.meta_train`."""
        self._n_classes = source.n_classes
        return super().meta_train(backbone, source, run)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned network. Raises `ContractError` when a part of it is missing."""
        last = learned.get("network.last.bias")
        if last is None:
            raise ContractError(
                "source-only-unet needs the network that its training learns, and was given "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        self._n_classes = len(last)
        super().prepare(backbone, learned)

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The loss of all masks of a task, its support images' and its queries'."""
        assert task.support.masks is not None
        assert task.query_masks is not None
        images = torch.cat([task.support.inputs, task.query])
        truth = torch.cat([task.support.masks, task.query_masks]).to(images.dtype)
        classes = asked_classes(task.support, "source-only-unet")
        return mask_loss(network(images)[:, classes], truth)

    def answers(self, network: nn.Module, support: Support) -> Predictor:
        """The outputs of the task's classes."""
        return _Outputs(network, asked_classes(support, "source-only-unet"))


@final
class _Outputs(Predictor):
    def __init__(self, network: nn.Module, classes: Tensor) -> None:
        self.network = network
        self.classes = classes

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, H, W)``."""
        # One image at a time: a convolution may round a batch in another way.
        return torch.cat([self.network(image[None])[:, self.classes] for image in query])
