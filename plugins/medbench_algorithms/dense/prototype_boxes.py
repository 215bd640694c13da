"""Prototype matching: windows of a feature map near the mean of the support's boxes."""

from __future__ import annotations

from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from medbench.api import Algorithm, Detections, Detector, Support
from medbench_algorithms.dense.windows import (
    best_apart,
    detections,
    of_class,
    typical_sizes,
    windows_of,
)

_FAR: Final = 0.3
"""Windows that overlap every box by less are background, as in R-CNN (Girshick et al. 2014)."""
_MOST_BACKGROUND: Final = 2000


@final
class PrototypeBoxes(Algorithm):
    """Each class has the mean feature of its support boxes, the background that of other windows.

    A window is seen as ``bins x bins`` features pooled by RoIAlign (He et al. 2017). It is compared
    to class means by cosine, seen from the background's mean (Snell et al. 2017 for the means, Wang
    et al. 2019, equation 3, for the softmax of cosines times alpha; the background's own exponent
    is zero). With `whiten` the difference is first decorrelated by the background's covariance
    (Hariharan et al. 2012, equation 6), shrunk towards its diagonal mean by `shrinkage`. Windows
    have the `sizes` typical of a class's support boxes and lie at every place of the map.
    """

    def __init__(
        self,
        bins: int = 3,
        sizes: int = 3,
        alpha: float = 20.0,
        whiten: bool = True,
        shrinkage: float = 0.1,
        nms_iou: float = 0.3,
        most: int = 50,
    ) -> None:
        self.bins = bins
        self.sizes = sizes
        self.alpha = alpha
        self.whiten = whiten
        self.shrinkage = shrinkage
        self.nms_iou = nms_iou
        self.most = most

    def adapt(self, support: Support) -> Detector:
        """Prototypes from maps ``(n, c, h, w)`` and boxes in pixels of ``support.size``."""
        assert support.boxes is not None
        assert support.size is not None
        height, width = support.size
        maps, step = support.inputs, height / support.inputs.shape[-2]
        own = [
            [boxes / step for boxes in of_class(support.boxes, k, maps)]
            for k in range(support.n_way)
        ]
        sizes = [typical_sizes(torch.cat(images), self.sizes) for images in own]
        inside = [torch.cat([self.pooled(m, b) for m, b in zip(maps, k, strict=True)]) for k in own]
        windows = windows_of(torch.cat(sizes), *maps.shape[-2:])
        outside = []
        for i, image in enumerate(maps):
            every = torch.cat([images[i] for images in own])
            near = box_iou(windows, every)
            far = windows[(near < _FAR).all(dim=1)]
            # Evenly spread, so that no randomness is needed.
            far = far[:: max(1, len(far) * len(maps) // _MOST_BACKGROUND)]
            outside.append(self.pooled(image, far))
        background = torch.cat(outside)
        if not len(background):
            background = torch.cat(inside)  # boxes everywhere: their mean is all there is
        middle = background.mean(0)
        decorrelate = self._decorrelation(background - middle)
        means = torch.stack(
            [k.mean(0) - middle if len(k) else torch.zeros_like(middle) for k in inside]
        )
        size = (height, width)
        return _Windows(self, step, size, sizes, middle, decorrelate, means @ decorrelate)

    def pooled(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Features ``(k, c bins bins)`` of boxes on one map ``(c, h, w)``."""
        found: Tensor = roi_align(image[None], [boxes], self.bins, sampling_ratio=2, aligned=True)
        return found.flatten(1)

    def _decorrelation(self, centred: Tensor) -> Tensor:
        """The square root of the inverse covariance ``(d, d)``; the identity without whitening."""
        d = centred.shape[1]
        eye = torch.eye(d, dtype=centred.dtype, device=centred.device)
        if not self.whiten:
            return eye
        covariance = (centred.mT @ centred / max(1, len(centred) - 1)).double()
        level = covariance.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * level * eye.double()
        values, vectors = torch.linalg.eigh(shrunk)
        root = vectors @ torch.diag(values.clamp_min(1e-3 * float(level)).rsqrt()) @ vectors.mT
        found: Tensor = root.to(centred.dtype)
        return found


@final
class _Windows(Detector):
    def __init__(
        self,
        method: PrototypeBoxes,
        step: float,
        size: tuple[int, int],
        sizes: list[Tensor],
        middle: Tensor,
        decorrelate: Tensor,
        means: Tensor,
    ) -> None:
        self.method = method
        self.step = step
        self.size = size
        self.sizes = sizes
        self.middle = middle
        self.decorrelate = decorrelate
        self.means = means
        self.n_adapted = means.numel() + (decorrelate.numel() if method.whiten else 0)

    def predict(self, query: Tensor) -> list[Detections]:
        """Windows of each class, scored by its probability, apart from one another."""
        return [self._in(image) for image in query]

    def _in(self, image: Tensor) -> Detections:
        towards = F.normalize(self.means, dim=-1)
        parts = []
        for k, sizes in enumerate(self.sizes):
            if not len(sizes):
                continue
            windows = windows_of(sizes, *image.shape[-2:])
            features = (self.method.pooled(image, windows) - self.middle) @ self.decorrelate
            cosines = F.normalize(features, dim=-1) @ towards.mT
            exponents = F.pad(self.method.alpha * cosines, (1, 0))
            scores = exponents.softmax(dim=-1)[:, k + 1]
            boxes, scores = best_apart(
                windows * self.step, scores, self.method.nms_iou, self.method.most, self.size
            )
            parts.append((k, boxes, scores))
        return detections(parts)
