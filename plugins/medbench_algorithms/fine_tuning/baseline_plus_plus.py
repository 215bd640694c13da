"""Baseline++ (Chen et al., "A Closer Look at Few-shot Classification", ICLR 2019)."""

from __future__ import annotations

from typing import final

from medbench.api import Algorithm, Support
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.fine_tuning.cosine_head import CosineHead


@final
class BaselinePlusPlus(Algorithm):
    """Trains a cosine classifier on all source classes, then fine-tunes a fresh one on the support.

    Section 3, with the settings of the authors' code as defaults: logits are twice the cosine
    times a learned factor of the class (``class_norms``; the paper has no such factor; for more
    than 200 source classes the code's scale is 10), and the head takes 100 passes over the
    support set in random batches of 4, SGD with learning rate 0.01, momentum and dampening 0.9,
    weight decay 0.001. The code adds 1e-5 to a feature's length; here only null features differ.
    The backbone stays frozen; it comes from the shared `CosinePretraining` trainer.
    """

    def __init__(
        self,
        *,
        class_norms: bool = True,
        head_scale: float = 2.0,
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
