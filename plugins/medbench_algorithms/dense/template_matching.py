"""Template matching: cut-outs of the support's boxes, found again by correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medbench.api import Algorithm, Detections, Detector, Support
from medbench_algorithms.dense.windows import best_apart, detections, of_class

_FLOAT: Final = torch.float32


@dataclass(frozen=True)
class Template:
    """A cut-out ``(C, h, w)``, and the object's box in its pixels."""

    pixels: Tensor
    box: tuple[float, float, float, float]


@final
class TemplateMatching(Algorithm):
    """The floor of detection: normalised cross-correlation (Lewis 1995, equation 2).

    Up to `templates` cut-outs a class, spread over the sizes of its boxes, each at its own size.
    With each comes a margin of its surroundings, a share of its size on every side: what fills its
    box evenly has no contrast in it.
    """

    def __init__(
        self, templates: int = 8, margin: float = 0.25, nms_iou: float = 0.3, most: int = 50
    ) -> None:
        self.templates = templates
        self.margin = margin
        self.nms_iou = nms_iou
        self.most = most

    def adapt(self, support: Support) -> Detector:
        """Cut templates ``(C, h, w)`` out of images ``(n, C, H, W)``."""
        assert support.boxes is not None
        return _Matches(
            [
                self._cut(support.inputs, of_class(support.boxes, k, support.inputs))
                for k in range(support.n_way)
            ],
            self,
        )

    def _cut(self, images: Tensor, boxes: list[Tensor]) -> list[Template]:
        height, width = images.shape[-2:]
        cuts = []
        for image, own in zip(images, boxes, strict=True):
            for x0, y0, x1, y1 in own.tolist():
                more_x, more_y = self.margin * (x1 - x0), self.margin * (y1 - y0)
                left, top = max(0, round(x0 - more_x)), max(0, round(y0 - more_y))
                left, top = min(left, width - 1), min(top, height - 1)
                right, bottom = max(left + 1, round(x1 + more_x)), max(top + 1, round(y1 + more_y))
                box = (x0 - left, y0 - top, x1 - left, y1 - top)
                cuts.append(Template(image[:, top:bottom, left:right], box))
        cuts.sort(key=lambda c: (c.box[2] - c.box[0]) * (c.box[3] - c.box[1]))
        n = min(self.templates, len(cuts))
        return [cuts[(2 * i + 1) * len(cuts) // (2 * n)] for i in range(n)]


def correlation(image: Tensor, template: Tensor) -> Tensor:
    """Normalised cross-correlation ``(H, W)`` of a template ``(C, h, w)`` centred at each pixel.

    Borders are repeated, so that objects at the border are found. 0 where the window or the
    template has no contrast.
    """
    c, h, w = template.shape
    mean = template.mean(dim=(-2, -1), keepdim=True)
    zero_mean = template - mean
    norm = zero_mean.square().sum().sqrt()
    padded = F.pad(image[None], ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2), mode="replicate")[0]
    # What the window's own mean adds is zero, as the template has none. By Fourier transforms, as
    # the template may be half as large as the image.
    size = (padded.shape[-2], padded.shape[-1])
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(zero_mean, s=size).conj()
    found = torch.fft.irfft2(spectrum.sum(0), s=size)[: image.shape[-2], : image.shape[-1]]
    first, second = window_sums(padded, h, w), window_sums(padded.square(), h, w)
    spread = (second - first.square() / (h * w)).clamp_min(0).sum(0).sqrt().to(found.dtype)
    scale = spread * norm
    flat = 1e-3 * (c * h * w) ** 0.5
    return torch.where((spread > flat) & (norm > flat), found / scale.clamp_min(1e-12), 0.0)


def window_sums(image: Tensor, h: int, w: int) -> Tensor:
    """Sums ``(C, H - h + 1, W - w + 1)`` over every window, from sums of all that is above left."""
    total = F.pad(image.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    upper, lower = total[..., :-h, :], total[..., h:, :]
    return lower[..., w:] - lower[..., :-w] - upper[..., w:] + upper[..., :-w]


@final
class _Matches(Detector):
    def __init__(self, templates: list[list[Template]], method: TemplateMatching) -> None:
        self.templates = templates
        self.method = method

    def predict(self, query: Tensor) -> list[Detections]:
        """Peaks of the correlation with every template, apart from one another."""
        return [self._in(image) for image in query]

    def _in(self, image: Tensor) -> Detections:
        parts = []
        for k, templates in enumerate(self.templates):
            boxes, scores = [], []
            for template in templates:
                likeness = correlation(image, template.pixels)
                peaks = likeness == F.max_pool2d(likeness[None], 3, 1, 1)[0]
                ys, xs = torch.nonzero(peaks & (likeness > 0), as_tuple=True)
                h, w = template.pixels.shape[-2:]
                corner = torch.stack([xs - (w - 1) // 2, ys - (h - 1) // 2], dim=1)
                boxes.append(corner.repeat(1, 2) + corner.new_tensor(template.box, dtype=_FLOAT))
                scores.append(likeness[ys, xs])
            if templates:
                apart = (self.method.nms_iou, self.method.most)
                limits = (image.shape[-2], image.shape[-1])
                found = best_apart(torch.cat(boxes), torch.cat(scores), *apart, limits)
                parts.append((k, *found))
        return detections(parts)
