"""S2M2 (Mangla, Singh, Sinha, Kumari, Balasubramanian and Krishnamurthy, WACV 2020)."""

from __future__ import annotations

from typing import final

from medbench.api import Algorithm, Support
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.fine_tuning.cosine_head import CosineHead


@final
class S2M2(Algorithm):
    """Fine-tunes a cosine head on features trained with rotations and manifold mixup.

    "Charting the Right Manifold", variant S2M2-R; the head is Baseline++'s, which the authors'
    code trains for 300 passes over the support set (and selects its networks by). The backbone
    stays frozen; it comes from the `ManifoldMixup` trainer.
    """

    def __init__(
        self,
        *,
        class_norms: bool = True,
        head_scale: float = 2.0,
        head_epochs: int = 300,
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
