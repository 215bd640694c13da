"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of the support images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Support, Unavailable
from medbench_algorithms.augmentation.of_images import OfImages, embed, soft_logistic
from medbench_algorithms.common.linear import one_hot

Mix = Literal["mixup", "cutmix", "both"]


def mixup(images: Tensor, partners: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """``share * image + (1 - share) * partner`` (Zhang et al. 2018), and the shares ``(n,)``."""
    share = shares.to(images.dtype).view(-1, 1, 1, 1)
    return share * images + (1 - share) * partners, shares


def cutmix(
    images: Tensor, partners: Tensor, shares: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor]:
    """Images ``(n, C, h, w)`` with a box cut from their partners (Yun et al. 2019, section 3).

    The box covers the share ``1 - shares`` of the image, with the image's proportions, around
    `centres` ``(n, 2)`` in 0...1 (rows, columns), less what lies beyond the border. Returns the
    share that is left of each image too, as exact areas.
    """
    h, w = images.shape[-2:]
    sides = (1 - shares).sqrt()
    inside = torch.ones(len(images), h, w, dtype=torch.bool, device=images.device)
    for axis, length in ((1, h), (2, w)):
        # As the authors' code: whole pixels, half of the box to either side of the centre.
        half = (sides * length).floor() // 2
        middle = (centres[:, axis - 1] * length).floor()
        places = torch.arange(length, device=images.device)
        low, high = (middle - half).unsqueeze(-1), (middle + half).unsqueeze(-1)
        inside &= ((places >= low) & (places < high)).unsqueeze(3 - axis)
    mixed = torch.where(inside.unsqueeze(1), partners, images)
    return mixed, 1 - inside.to(shares.dtype).mean((1, 2))


@final
class MixupSupport(Algorithm):
    """Fits a linear head to mixtures of support images, whose labels are mixed alike.

    ``n_mixed`` times, each support image is mixed with one of a random order of the support set,
    by a share drawn from Beta(alpha, alpha): as a weighted sum (mixup), by a box from the other
    image (CutMix), or by either with probability one half. Images and mixtures pass the frozen
    backbone, and logistic regression is fitted to their unit features and soft labels, to
    convergence. The papers mix in the training of whole networks, and in pairs of a batch; alpha 1
    is CutMix's and, on CIFAR, mixup's.
    """

    def __init__(
        self, *, mix: Mix = "both", alpha: float = 1.0, n_mixed: int = 5, C: float = 1.0
    ) -> None:
        self.mix: Mix = mix
        self.alpha = alpha
        self.n_mixed = n_mixed
        self.C = C
        self._backbone: Backbone | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the frozen backbone."""
        self._backbone = backbone

    def adapt(self, support: Support) -> OfImages:
        """Fit a head on images ``(n_support, C, H, W)`` and their mixtures."""
        if self._backbone is None:
            raise ContractError("MixupSupport.adapt was called before prepare.")
        images, targets = self.mixed(support)
        features = embed(self._backbone, torch.cat([support.inputs, images]))
        everything = torch.cat([one_hot(support.labels, support.n_way), targets])
        return OfImages(self._backbone, soft_logistic(features, everything, self.C))

    def mixed(self, support: Support) -> tuple[Tensor, Tensor]:
        """Mixtures ``(n_mixed * n_support, C, H, W)`` and their labels' shares, float64."""
        if support.inputs.ndim != 4:
            raise Unavailable(
                "Rectangles are cut from flat images, and these are volumes; use a method that "
                "does not change its support images."
            )
        n, generator = len(support.inputs), support.generator()
        orders = torch.cat(
            [torch.randperm(n, generator=generator) for _ in range(self.n_mixed)]
        ).to(support.inputs.device)
        # torch draws no Beta from a generator.
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        device = support.inputs.device
        shares = torch.from_numpy(rng.beta(self.alpha, self.alpha, len(orders))).to(device)
        centres = torch.from_numpy(rng.random((len(orders), 2))).to(device)
        cuts = torch.from_numpy(rng.random(len(orders)) < 0.5).to(device)
        images = support.inputs.repeat(self.n_mixed, 1, 1, 1)
        partners = support.inputs[orders]
        summed, summed_shares = mixup(images, partners, shares)
        cut, cut_shares = cutmix(images, partners, shares, centres)
        if self.mix != "both":
            cuts = torch.full_like(cuts, self.mix == "cutmix")
        mixed = torch.where(cuts.view(-1, 1, 1, 1), cut, summed)
        own = torch.where(cuts, cut_shares, summed_shares).unsqueeze(-1)
        rows = one_hot(support.labels, support.n_way)
        return mixed, own * rows.repeat(self.n_mixed, 1) + (1 - own) * rows[orders]
