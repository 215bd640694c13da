"""Local prototypes: several for each class, one from each window of the support's maps."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from medbench.api import Algorithm, Predictor, Support
from medbench_algorithms.dense.masked_prototypes import centre_of, class_prototypes
from medbench_algorithms.dense.pooling import (
    Size,
    against_the_best_other,
    enlarged,
    grid,
    place_weights,
    share_of_place,
    with_background,
)


@final
class LocalPrototypes(Algorithm):
    """ALPNet's adaptive local prototype pooling, on the backbone as it is.

    Ouyang et al., ECCV 2020, section 3.2; its self-supervised training on superpixels is not part
    of this method. Of volumes, which the paper takes slice by slice, windows are cubes. `window` is
    the side of a pooling window, in places of the map; `purity` the share of a window that a class
    must cover for its mean to be a prototype of the class (T in the paper). Each class, the
    background too, has its masked mean as one more prototype. `centre` is that of
    `MaskedPrototypes`.
    """

    def __init__(
        self, window: int = 4, purity: float = 0.95, alpha: float = 20.0, centre: bool = False
    ) -> None:
        self.window = window
        self.purity = purity
        self.alpha = alpha
        self.centre = centre

    def adapt(self, support: Support) -> Predictor:
        """Prototypes from maps ``(..., n, c, h, w)`` and masks ``(..., n, n_way, *size)``."""
        assert support.masks is not None
        assert support.size is not None
        middle = centre_of(support.inputs) if self.centre else None
        maps = support.inputs if middle is None else support.inputs - middle
        masks, size = support.masks, support.size
        lead, (c, h, w) = maps.shape[:-3], maps.shape[-3:]
        places = grid(h, w, size)
        side = min(self.window, *places)
        pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
        pooled = pool(maps.reshape(-1, c, *places), side)
        # The share of each place that a class covers, then of each window.
        cover = place_weights(with_background(masks, size), h, w, size)
        n_classes = support.n_way + 1
        share = pool((cover / share_of_place(h, w, size)).reshape(-1, n_classes, *places), side)
        own = pooled.flatten(2).mT.reshape(*lead[:-1], -1, c)  # (..., n windows, c)
        kinds = share.flatten(2).reshape(*lead, n_classes, -1)
        kinds = kinds.movedim(-2, -3).flatten(-2)  # (..., n_way + 1, n windows)
        means = class_prototypes(maps, masks, size)
        return _Attentive(own, kinds >= self.purity, means, self.alpha, size, middle)


@final
class _Attentive(Predictor):
    def __init__(
        self,
        own: Tensor,
        member: Tensor,
        means: Tensor,
        alpha: float,
        size: Size,
        middle: Tensor | None,
    ) -> None:
        self.middle = middle
        self.own = F.normalize(own, dim=-1)
        self.member = member
        self.means = F.normalize(means, dim=-1)
        self.alpha = alpha
        self.size = size
        self.n_adapted = (own.shape[-2] + means.shape[-2]) * own.shape[-1]

    def predict(self, query: Tensor) -> Tensor:
        """Scores of masks ``(..., n_query, n_way, *size)``.

        A class's similarity at a place is the mean of the similarities to its prototypes, each
        weighted by their softmax, as the paper has it.
        """
        query = query if self.middle is None else query - self.middle
        # An image at a time: there is a similarity for each of its places and each prototype.
        found = torch.stack([self._of(image) for image in query.unbind(-4)], dim=-4)
        return against_the_best_other(enlarged(found, self.size), self.size)

    def _of(self, image: Tensor) -> Tensor:
        """Similarities ``(..., n_way + 1, h, w)`` of one map ``(..., c, h, w)``."""
        places = F.normalize(image.flatten(-2), dim=-2)  # (..., c, h w)
        local = self.alpha * (self.own @ places)
        whole = self.alpha * (self.means @ places)
        scores = []
        for k in range(self.means.shape[-2]):
            member = self.member[..., k, :].unsqueeze(-1)
            among = torch.cat([local, whole[..., k : k + 1, :]], dim=-2)
            allowed = F.pad(member.expand_as(local), (0, 0, 0, 1), value=True)
            weights = among.masked_fill(~allowed, -torch.inf).softmax(dim=-2)
            scores.append((weights * among).sum(-2))
        found = torch.stack(scores, dim=-2)
        return found.reshape(*found.shape[:-1], *image.shape[-2:])
