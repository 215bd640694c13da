"""Source-only for boxes: a detector with an output for each source class, as it is, elsewhere."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, Detector, Support, Task
from medbench_algorithms.dense.fcos import PointNet, Points, aims_of, point_loss
from medbench_algorithms.references.asked import asked_classes
from medbench_algorithms.references.source_network import SourceNetwork

_PLACES = 5  # outputs of a `PointNet` that all classes share


@final
class SourceFCOS(SourceNetwork):
    """Trains a small FCOS on the boxes of all source tasks, and asks it about a new site.

    Each source class has an output, of which a task's loss takes its own; its support and query
    images count alike. The state that is best at the queries of validation tasks is kept. Support
    sets are not looked at.
    """

    name: ClassVar[str] = "source-only-fcos"
    class_bias: ClassVar[str] = "classes.bias"

    def __init__(
        self,
        *,
        width: int = 8,
        lr: float = 1e-3,
        meta_batch: int = 4,
        nms_iou: float = 0.5,
        most: int = 50,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, meta_batch=meta_batch)
        self.width = width
        self.nms_iou = nms_iou
        self.most = most

    def network(self, backbone: Backbone) -> nn.Module:
        """A network for as many classes as the source has."""
        return PointNet(backbone.input.channels, self.n_classes, self.width)

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The loss of all boxes of a task, its support images' and its queries'."""
        assert task.support.boxes is not None
        assert task.query_boxes is not None
        images = torch.cat([task.support.inputs, task.query])
        size = (images.shape[-2], images.shape[-1])
        aims = aims_of((*task.support.boxes, *task.query_boxes), task.support.n_way, size, images)
        return point_loss(self._asked(network, task.support)(images), aims)

    def answers(self, network: nn.Module, support: Support) -> Detector:
        """What the outputs of the task's classes find."""
        return Points(self._asked(network, support), support.n_way, 0, self.nms_iou, self.most)

    def _asked(self, network: nn.Module, support: Support) -> _Outputs:
        return _Outputs(network, asked_classes(support, self.name))


@final
class _Outputs(nn.Module):
    """Of a network's outputs those of some classes, and those that all share."""

    def __init__(self, network: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.network = [network]  # in a list, so that its weights are not this module's
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """``(b, n_way + 5, h, w)``."""
        found: Tensor = self.network[0](images)
        return torch.cat([found[:, self.classes], found[:, -_PLACES:]], dim=1)
