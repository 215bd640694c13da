"""Negative-margin cosine softmax (Liu, Cao, Lin, Li, Zhang, Long and Hu, ECCV 2020)."""

from __future__ import annotations

from typing import final

from medbench.api import Algorithm, Support
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.fine_tuning.cosine_head import CosineHead


@final
class NegativeMargin(Algorithm):
    """Trains with a cosine softmax whose margin is negative, then fine-tunes a cosine head.

    "Negative Margin Matters", section 3.1, Neg-Cosine, with the authors' code's settings as
    defaults: scale 30 and margin -0.02 in training (their scripts use -0.05 to -0.01 for cosines;
    -0.3 is a margin of Neg-Softmax, whose logits are not cosines), and at test a head of scale 5
    without margin, fine-tuned as Baseline's: 100 passes in batches of 4, SGD with learning rate
    0.01, momentum and dampening 0.9, weight decay 0.001. There are no class factors. Training
    itself differs from theirs in its Adam: constant rate, no weight decay, as the other
    pretrainings here.
    """

    def __init__(
        self,
        *,
        class_norms: bool = False,
        head_scale: float = 5.0,
        head_epochs: int = 100,
        head_batch_size: int = 4,
        head_lr: float = 0.01,
        head_momentum: float = 0.9,
        head_dampening: float = 0.9,
        head_weight_decay: float = 0.001,
    ) -> None:
        self.head = CosineHead(
            epochs=head_epochs,
            batch_size=head_batch_size,
            lr=head_lr,
            momentum=head_momentum,
            dampening=head_dampening,
            weight_decay=head_weight_decay,
            scale=head_scale,
            class_norms=class_norms,
        )

    def adapt(self, support: Support) -> LinearPredictor:
        """Fine-tune one head an episode on support features ``(..., n_support, d)``."""
        return self.head.fit(support)
