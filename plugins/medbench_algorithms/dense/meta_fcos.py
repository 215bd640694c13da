"""A small FCOS whose start is meta-trained, first order (Finn et al. 2017)."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn
from torch.func import functional_call

from medbench.api import Backbone, Boxes, Detector, Support, Task
from medbench_algorithms.dense.fcos import PointNet, Points, aims_of, point_loss
from medbench_algorithms.dense.learned_start import LearnedStart, Weights


@final
class MetaFCOS(LearnedStart):
    """First-order MAML (section 5.2) with FCOS's loss on boxes, inside and outside.

    The outer loop follows the queries' gradient at the adapted weights. Layers are normalised over
    each image by itself. Rates, steps and the size of a meta-batch are MAML's for miniImageNet
    (appendix A.1).
    """

    class_rows: ClassVar[tuple[str, ...]] = ("classes.weight", "classes.bias")

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        inner_steps_test: int = 10,
        width: int = 8,
        meta_lr: float = 1e-3,
        meta_batch: int = 4,
        nms_iou: float = 0.5,
        most: int = 50,
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
            first_order=True,
            meta_lr=meta_lr,
            meta_batch=meta_batch,
        )
        self.width = width
        self.nms_iou = nms_iou
        self.most = most

    def network(self, backbone: Backbone) -> nn.Module:
        """A network for one class."""
        return PointNet(backbone.input.channels, 1, self.width)

    def support_loss(self, network: nn.Module, weights: Weights, support: Support) -> Tensor:
        """See `point_loss`."""
        return _loss(network, weights, support.inputs, support.boxes, support.n_way)

    def query_loss(self, network: nn.Module, weights: Weights, task: Task) -> Tensor:
        """See `point_loss`."""
        return _loss(network, weights, task.query, task.query_boxes, task.support.n_way)

    def fitted(self, network: nn.Module, weights: Weights, n_way: int) -> Detector:
        """The network with these weights, and boxes where it is sure."""
        n_adapted = sum(value.numel() for value in weights.values())
        return Points(_Given(network, weights), n_way, n_adapted, self.nms_iou, self.most)


def _loss(
    network: nn.Module,
    weights: Weights,
    images: Tensor,
    boxes: tuple[Boxes, ...] | None,
    n_way: int,
) -> Tensor:
    assert boxes is not None
    size = (images.shape[-2], images.shape[-1])
    found = functional_call(network, weights, (images,))
    return point_loss(found, aims_of(boxes, n_way, size, images))


@final
class _Given(nn.Module):
    """A network with other weights than its own."""

    def __init__(self, network: nn.Module, weights: Weights) -> None:
        super().__init__()
        self.network = [network]  # in a list, so that its own weights are not this module's
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives with the weights."""
        found: Tensor = functional_call(self.network[0], self.weights, (images,))
        return found
