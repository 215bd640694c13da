"""MAML on a network of its own: a start from which a few steps on marked images fit a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from medbench.api import Detector, Predictor, Support, Task
from medbench_algorithms.dense.episodic import OwnNetwork
from medbench_algorithms.optimisation.inner_loop import descend_inner

Weights = dict[str, Tensor]


class LearnedStart(OwnNetwork, ABC):
    """Finn et al. 2017, algorithm 1, with marks for labels; first order or second.

    The inner loop takes plain gradient steps on the support set's loss (Eq. 1 of the paper), the
    outer one is Adam on the queries'. The rows of one class are learned and are every class's
    start, so any number of classes can be asked for and their order says nothing.
    """

    class_rows: ClassVar[tuple[str, ...]]
    """Parameters of the network with one row, which is repeated for every class."""
    recompute: bool = False

    def __init__(
        self,
        *,
        inner_lr: float,
        inner_steps: int,
        inner_steps_test: int,
        first_order: bool,
        meta_lr: float,
        meta_batch: int,
    ) -> None:
        super().__init__(lr=meta_lr, meta_batch=meta_batch)
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        self.first_order = first_order

    @abstractmethod
    def support_loss(self, network: nn.Module, weights: Weights, support: Support) -> Tensor:
        """What the inner loop descends on, with these weights in place of the network's."""

    @abstractmethod
    def query_loss(self, network: nn.Module, weights: Weights, task: Task) -> Tensor:
        """The same of a training task's queries."""

    @abstractmethod
    def fitted(self, network: nn.Module, weights: Weights, n_way: int) -> Predictor | Detector:
        """What answers with the adapted weights."""

    def fit(
        self, network: nn.Module, support: Support, n_steps: int, *, second_order: bool
    ) -> Weights:
        """The inner loop; weights by name, which depend differentiably on the start."""
        names: list[str] = []
        start: list[Tensor] = []
        for name, own in network.named_parameters():
            # A loop that starts at frozen weights has to differentiate by something.
            value: Tensor = own if own.requires_grad else own.detach().clone().requires_grad_()
            names.append(name)
            if name in self.class_rows:
                value = value.expand(support.n_way, *value.shape[1:]).contiguous()
            start.append(value)

        def loss(values: Sequence[Tensor]) -> Tensor:
            return self.support_loss(network, dict(zip(names, values, strict=True)), support)

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
        weights = self.fit(
            network, task.support, self.inner_steps, second_order=not self.first_order
        )
        return self.query_loss(network, weights, task)

    def answers(self, network: nn.Module, support: Support) -> Predictor | Detector:
        """Run the inner loop as in training: what is kept must not depend on the test's steps."""
        return self._adapted(network, support, self.inner_steps)

    def adapt(self, support: Support) -> Predictor | Detector:
        """Run the inner loop on images ``(n, C, H, W)`` and their marks."""
        return self._adapted(self.prepared, support, self.inner_steps_test)

    def _adapted(self, network: nn.Module, support: Support, n_steps: int) -> Predictor | Detector:
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            masks = None if support.masks is None else support.masks.clone()
            usable = replace(support, inputs=support.inputs.clone(), masks=masks)
            weights = self.fit(network, usable, n_steps, second_order=False)
        return self.fitted(network, {k: v.detach() for k, v in weights.items()}, support.n_way)
