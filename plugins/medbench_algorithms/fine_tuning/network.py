"""Fine-tuning of a pretrained network, or of some of its own parameters, on each support set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final

from medbench.api import Backbone
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.fine_tuning.change import Replaced
from medbench_algorithms.fine_tuning.head import HeadStart
from medbench_algorithms.fine_tuning.parts import (
    all_parameters,
    bias_parameters,
    last_block_parameters,
    norm_parameters,
)
from medbench_algorithms.fine_tuning.tuning import Descent, Tuning


class PartTuning(Tuning, ABC):
    """Fine-tunes a head and a named part of the network by cross-entropy on the support set.

    Defaults are those of Dhillon, Chaudhari, Ravichandran and Soatto 2020 ("A Baseline for
    Few-Shot Image Classification"), section 4 and their code, for inductive fine-tuning: a linear
    head on features of unit length that starts as the unit-length class means (section 3.1), then
    25 steps of Adam with learning rate 5e-5 on the whole support set, without regularisation.
    Differences: their head stands on the logits of the source classifier after a ReLU, ours on
    the features (the source classifier is not kept); they augment the support images, we do not;
    their BatchNorm layers are in training mode while the weights are tuned, ours never.

    ``optimiser: sgd``, ``head: random``, ``tune_batch_size: 4``, ``tune_epochs: 100`` and rates of
    0.01 give the fine-tuning of Guo et al. 2020 ("A Broader Study of Cross-Domain Few-Shot
    Learning"), but for their momentum and weight decay, which are on the head alone.
    """

    def __init__(
        self,
        *,
        optimiser: Literal["adam", "sgd"] = "adam",
        tune_lr: float = 5e-5,
        head_lr: float = 5e-5,
        tune_epochs: int = 25,
        tune_batch_size: int | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        head: HeadStart = "normalised",
    ) -> None:
        descent = Descent(
            optimiser=optimiser,
            lr=tune_lr,
            head_lr=head_lr,
            epochs=tune_epochs,
            batch_size=tune_batch_size,
            weight_decay=weight_decay,
            momentum=momentum,
        )
        super().__init__(descent, head)

    @abstractmethod
    def part(self, backbone: Backbone) -> Sequence[str]:
        """The names of the parameters to tune."""

    def change(self, backbone: Backbone) -> Replaced:
        """The part's own values, tuned as copies."""
        return Replaced(FunctionalBody(backbone), self.part(backbone))


class FewParametersTuning(PartTuning, ABC):
    """`PartTuning` for parts of so few parameters that they need, and bear, larger steps."""

    def __init__(
        self,
        *,
        optimiser: Literal["adam", "sgd"] = "adam",
        tune_lr: float = 1e-3,
        head_lr: float = 1e-3,
        tune_epochs: int = 25,
        tune_batch_size: int | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        head: HeadStart = "normalised",
    ) -> None:
        super().__init__(
            optimiser=optimiser,
            tune_lr=tune_lr,
            head_lr=head_lr,
            tune_epochs=tune_epochs,
            tune_batch_size=tune_batch_size,
            momentum=momentum,
            weight_decay=weight_decay,
            head=head,
        )


@final
class FullFineTuning(PartTuning):
    """Fine-tunes all weights (Dhillon et al. 2020; "Ft all" in Guo et al. 2020)."""

    def part(self, backbone: Backbone) -> Sequence[str]:
        """Every parameter."""
        return all_parameters(backbone)


@final
class LastBlockFineTuning(PartTuning):
    """Fine-tunes the last block of layers, and the normalisation after it.

    "Ft last-k" in Guo et al. 2020, section 4.2, who find the earlier layers best left alone where
    the target is near the source. What counts as the last block: `parts.last_block_parameters`.
    """

    def part(self, backbone: Backbone) -> Sequence[str]:
        """Parameters of the last block."""
        return last_block_parameters(backbone)


@final
class NormTuning(FewParametersTuning):
    """Fine-tunes the scales and shifts of the normalisation layers, and nothing else inside.

    Frankle, Schwab and Morcos 2021 ("Training BatchNorm and Only BatchNorm"), who train a random
    network so; here the network is pretrained, and LayerNorm and GroupNorm count as well. The
    statistics stay those of the source. Steps are as in `PartTuning` with a learning rate of 1e-3.
    """

    def part(self, backbone: Backbone) -> Sequence[str]:
        """Scales and shifts of the normalisation layers."""
        return norm_parameters(backbone)


@final
class BiasTuning(FewParametersTuning):
    """Fine-tunes the bias terms alone: BitFit.

    Ben Zaken, Ravfogel and Goldberg 2022, section 3: every bias of the network, those of
    normalisation layers included, with a fresh head, and learning rates of 1e-4 to 1e-3 where full
    fine-tuning takes 1e-5 (appendix A.2). Steps are as in `PartTuning` with a rate of 1e-3.
    """

    def part(self, backbone: Backbone) -> Sequence[str]:
        """Every bias."""
        return bias_parameters(backbone)
