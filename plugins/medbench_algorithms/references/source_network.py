"""A network with an output for each class of the source, asked about tasks as it is."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from medbench.api import Backbone, ContractError, Source, TrainingRun
from medbench_algorithms.dense.episodic import OwnNetwork


class SourceNetwork(OwnNetwork, ABC):
    """Knows how many classes its source has: when it is trained, and from what was learned."""

    name: ClassVar[str]
    class_bias: ClassVar[str]
    """The network's parameter with one number for each class."""
    n_classes: int = 0

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """See `DenseEpisodic.meta_train`."""
        self.n_classes = source.n_classes
        return super().meta_train(backbone, source, run)

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned network. Raises `ContractError` when a part of it is missing."""
        last = learned.get(f"network.{self.class_bias}")
        if last is None:
            raise ContractError(
                f"{self.name} needs the network that its training learns, and was given "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        self.n_classes = len(last)
        super().prepare(backbone, learned)
