"""Gradient descent on a support set, of a head and of whatever a method tunes in the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.fine_tuning.change import Change, Values
from medbench_algorithms.fine_tuning.head import Head, HeadStart, start_head

Optimiser = Literal["adam", "adamw", "sgd"]
# Images whose graph of gradients is held at a time. Every image's loss is its own, so a batch of
# any size takes no more memory than this.
_AT_ONCE = 64


@final
@dataclass(frozen=True)
class Descent:
    """How the support set's cross-entropy is descended; ``batch_size`` None is all of it."""

    optimiser: Optimiser
    lr: float
    head_lr: float
    epochs: int
    batch_size: int | None
    weight_decay: float
    momentum: float = 0.0

    def of(self, tuned: list[Tensor], head: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of these tensors."""
        groups = [{"params": tuned, "lr": self.lr}, {"params": head, "lr": self.head_lr}]
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(groups, weight_decay=self.weight_decay)

    def batches(self, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Indices of the support images of each step."""
        for _ in range(self.epochs):
            if self.batch_size is None or self.batch_size >= n:
                yield torch.arange(n)
            else:
                yield from torch.split(torch.randperm(n, generator=generator), self.batch_size)


@final
class TunedNetwork(Predictor):
    """A network with what was tuned for one task; it scores each query alone."""

    def __init__(self, change: Change, tuned: Values, head: Head) -> None:
        self.change = change
        self.tuned = tuned
        self.head = head
        tensors = [*tuned.values(), head.weight, head.bias]
        self.n_adapted = sum(tensor.numel() for tensor in tensors)

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(n_query, n_way)`` of images ``(n_query, C, H, W)``."""
        pieces = torch.split(query, _AT_ONCE)
        return torch.cat([self.head(self.change.features(self.tuned, x)) for x in pieces])


class Tuning(Algorithm, ABC):
    """Tunes something in a pretrained network, and a linear head with it, on each support set.

    The network keeps its weights: the tuned tensors are copies, or beside them. It stays in eval
    mode: BatchNorm uses its running statistics in adaptation and prediction, without dropout, so
    that predictions are inductive.
    """

    def __init__(self, descent: Descent, head: HeadStart) -> None:
        self.descent = descent
        self.head: HeadStart = head
        self._change: Change | None = None

    @abstractmethod
    def change(self, backbone: Backbone) -> Change:
        """What is tuned in this network. Raises `ContractError` where it does not fit."""

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Look where the network can be tuned. Raises `ContractError` where it cannot."""
        self._change = self.change(backbone)

    def adapt(self, support: Support) -> TunedNetwork:
        """Tune on images ``(n_support, C, H, W)``."""
        if self._change is None:
            raise ContractError(f"{type(self).__name__}.adapt was called before prepare.")
        # Whoever calls may have switched gradients off, and tensors made in inference mode cannot
        # enter a graph.
        with torch.inference_mode(mode=False), torch.enable_grad():
            support = usable(support)
            generator = support.generator()
            tuned = leaves(self._change.start(generator))
            with torch.no_grad():
                pieces = torch.split(support.inputs, _AT_ONCE)
                features = torch.cat([self._change.features(tuned, x) for x in pieces])
                head = start_head(self.head, features, support, generator)
            head.weight.requires_grad_()
            head.bias.requires_grad_()
            self._descend(self._change, tuned, head, support, generator)
        tuned = {name: value.detach() for name, value in tuned.items()}
        return TunedNetwork(self._change, tuned, head.detached())

    def _descend(
        self,
        change: Change,
        tuned: Values,
        head: Head,
        support: Support,
        generator: torch.Generator,
    ) -> None:
        optimiser = self.descent.of([*tuned.values()], [head.weight, head.bias])
        for batch in self.descent.batches(len(support.labels), generator):
            optimiser.zero_grad()
            for piece in torch.split(batch.to(support.labels.device), _AT_ONCE):
                logits = head(change.features(tuned, support.inputs[piece]))
                total = F.cross_entropy(logits, support.labels[piece], reduction="sum")
                torch.autograd.backward(total / len(batch))
            optimiser.step()


def usable(support: Support) -> Support:
    """The same support set in tensors that may enter a graph of gradients."""
    inputs, labels = (
        t.clone() if t.is_inference() else t for t in (support.inputs, support.labels)
    )
    return Support(inputs, labels, support.n_way, support.seeds)


def leaves(values: Values) -> Values:
    """The same tensors, for an optimiser to change."""
    return {name: value.requires_grad_() for name, value in values.items()}
