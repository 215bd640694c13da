"""A small FCOS whose start is meta-trained, first order (Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medbench.api import Backbone, Boxes, Detector, Support, Task
from medbench_algorithms.dense.episodic import OwnNetwork
from medbench_algorithms.dense.fcos import PointNet, Points, aims_of, point_loss
from medbench_algorithms.optimisation.inner_loop import descend_inner

_ROWS = ("classes.weight", "classes.bias")


@final
class MetaFCOS(OwnNetwork):
    """First-order MAML (section 5.2) with FCOS's loss on boxes, inside and outside.

    The inner loop takes plain gradient steps on the support set, the outer one is Adam on the
    queries' gradient at the adapted weights. One class's row is learned and is every class's start.
    Layers are normalised over each image by itself. Rates, steps and the size of a meta-batch are
    MAML's for miniImageNet (appendix A.1).
    """

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
        super().__init__(lr=meta_lr, meta_batch=meta_batch)
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        self.width = width
        self.nms_iou = nms_iou
        self.most = most

    def network(self, backbone: Backbone) -> nn.Module:
        """A network for one class."""
        return PointNet(backbone.input.channels, 1, self.width)

    def fit(self, network: nn.Module, support: Support, n_steps: int) -> dict[str, Tensor]:
        """The inner loop; weights by name, whose gradient is that of the start."""
        names: list[str] = []
        start: list[Tensor] = []
        for name, own in network.named_parameters():
            # A loop that starts at frozen weights has to differentiate by something.
            value: Tensor = own if own.requires_grad else own.detach().clone().requires_grad_()
            names.append(name)
            rows = value.expand(support.n_way, *value.shape[1:]) if name in _ROWS else value
            start.append(rows)

        def loss(values: Sequence[Tensor]) -> Tensor:
            weights = dict(zip(names, values, strict=True))
            return _loss(network, weights, support.inputs, support.boxes, support.n_way)

        end = descend_inner(loss, start, self.inner_lr, n_steps, second_order=False)
        return dict(zip(names, end, strict=True))

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The queries' loss after adaptation."""
        weights = self.fit(network, task.support, self.inner_steps)
        return _loss(network, weights, task.query, task.query_boxes, task.support.n_way)

    def answers(self, network: nn.Module, support: Support) -> Detector:
        """Run the inner loop as in training: what is kept must not depend on the test's steps."""
        return self._adapted(network, support, self.inner_steps)

    def adapt(self, support: Support) -> Detector:
        """Run the inner loop on images ``(n, C, H, W)`` and their boxes."""
        return self._adapted(self.prepared, support, self.inner_steps_test)

    def _adapted(self, network: nn.Module, support: Support, n_steps: int) -> Detector:
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            usable = Support(
                support.inputs.clone(),
                support.labels,
                support.n_way,
                support.seeds,
                support.size,
                boxes=support.boxes,
            )
            weights = {k: v.detach() for k, v in self.fit(network, usable, n_steps).items()}
        n_adapted = sum(value.numel() for value in weights.values())
        return Points(_Given(network, weights), support.n_way, n_adapted, self.nms_iou, self.most)


def _loss(
    network: nn.Module,
    weights: dict[str, Tensor],
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

    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.network = [network]  # in a list, so that its own weights are not this module's
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives with the weights."""
        found: Tensor = functional_call(self.network[0], self.weights, (images,))
        return found
