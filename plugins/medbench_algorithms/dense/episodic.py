"""Meta-training on tasks with masks, for methods whose network learns from whole episodes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medbench.api import (
    Algorithm,
    Backbone,
    ContractError,
    Detections,
    Detector,
    Predictor,
    Source,
    Support,
    Task,
    TrainingRun,
)
from medbench_algorithms.common.training import set_lr


class DenseEpisodic(Algorithm, ABC):
    """Learns a network from the losses of source episodes, whose queries have masks or boxes too.

    Every step takes the mean loss of ``meta_batch`` episodes, which processes share. A subclass
    says what network is learned (`network`), what an episode's loss is (`loss`) and how the
    network answers a task (`answers`).
    """

    def __init__(self, *, lr: float, meta_batch: int) -> None:
        self.lr = lr
        self.meta_batch = meta_batch

    @abstractmethod
    def network(self, backbone: Backbone) -> nn.Module:
        """What is learned: the backbone itself, or a network for images such as it takes."""

    @abstractmethod
    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """The loss of one episode, in training mode."""

    @abstractmethod
    def answers(self, network: nn.Module, support: Support) -> Predictor | Detector:
        """Adapt to one support set of images, in eval mode."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What follows the losses."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of one step of `n_steps`."""
        del step, n_steps
        return self.lr

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train the network; keeps the state that does best at validation episodes."""
        network = self.network(backbone).to(run.device)
        learned = list(network.parameters())
        optimiser = self.optimiser(learned)
        name = "backbone" if network is backbone else "network"
        per_step = source.images_per_task * self.meta_batch
        n_steps = max(1, math.ceil(run.budget.images / per_step))

        def validate(support: Support, query: Tensor) -> Tensor | list[Detections]:
            with torch.no_grad():
                return self.answers(network, support).predict(query)

        state: dict[str, Any] = {name: network, "optimiser": optimiser}
        for step in run.steps(state, images_per_step=per_step, validate=validate):
            network.train()
            optimiser.zero_grad()
            set_lr(optimiser, self.rate(step, n_steps))
            total = 0.0
            for number in run.share(self.meta_batch):
                run.reseed(number)
                (task,) = source.tasks(step, self.meta_batch, [number])
                loss = self.loss(network, task) / self.meta_batch
                total += loss.item()
                torch.autograd.backward(loss)
            # Reported first: a loss that is not finite must not reach weights that are kept.
            run.log(run.together(learned, total))
            optimiser.step()
        return run.best()


class OwnNetwork(DenseEpisodic, ABC):
    """A method with a network of its own, which uses of the backbone how it wants its images."""

    _network: nn.Module | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned network. Raises `ContractError` when a part of it is missing."""
        network = self.network(backbone)
        own = {k.removeprefix("network."): v for k, v in learned.items() if k[:8] == "network."}
        missing = sorted(network.state_dict().keys() - own.keys())
        if missing:
            raise ContractError(
                f"{type(self).__name__} needs what meta-training learns, and {', '.join(missing)} "
                f"is not among {', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        network.load_state_dict(own)
        device = next(iter(own.values())).device
        self._network = network.to(device).eval().requires_grad_(requires_grad=False)

    def adapt(self, support: Support) -> Predictor | Detector:
        """See `answers`; images ``(n_support, C, H, W)``."""
        return self.answers(self.prepared, support)

    @property
    def prepared(self) -> nn.Module:
        """The learned network. Raises `ContractError` before `prepare`."""
        if self._network is None:
            raise ContractError(f"{type(self).__name__}.adapt was called before prepare.")
        return self._network
