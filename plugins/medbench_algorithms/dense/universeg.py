"""UniverSeg: a U-Net that reads the task from its support set (Butoi et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medbench.api import Backbone, MedbenchError, Predictor, Support, Task
from medbench_algorithms.dense.episodic import OwnNetwork

_SLOPE: Final = 0.01


class CrossConv(nn.Module):
    """Interactions ``z_i = Conv(u || v_i)`` of a query with every support image (Eq. 1).

    As the convolution is linear, the part of the query is computed once, and not once for each
    support image.
    """

    def __init__(self, n_query: int, n_support: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_query + n_support, n_out, 3, padding=1)
        self.n_query = n_query

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """``(b, s, n_out, h, w)`` from queries ``(b, n_query, h, w)`` and support maps.

        These are ``(b, s, n_support, h, w)``, or ``(1, s, n_support, h, w)`` for all queries.
        """
        weight = self.conv.weight
        of_query = F.conv2d(query, weight[:, : self.n_query], self.conv.bias, padding=1)
        of_support = F.conv2d(support.flatten(0, 1), weight[:, self.n_query :], padding=1)
        by_query = of_support.reshape(*support.shape[:2], *of_support.shape[1:])
        return of_query.unsqueeze(1) + by_query


class CrossBlock(nn.Module):
    """Query and support maps after they have seen each other (Eqs. 2 to 4).

    ``z_i = CrossConv(u, v_i)``, ``u' = A(Conv(1/n sum_i z_i))`` and ``v'_i = A(Conv(z_i))``; A is
    a leaky ReLU. The mean makes the result independent of the order of the support images, and
    free of their number.
    """

    def __init__(self, n_query: int, n_support: int, n_out: int) -> None:
        super().__init__()
        self.cross = CrossConv(n_query, n_support, n_out)
        self.query = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.support = nn.Conv2d(n_out, n_out, 3, padding=1)

    def forward(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, n_out, h, w)`` and ``(b, s, n_out, h, w)``."""
        z = self.cross(query, support)
        seen = F.leaky_relu(self.query(z.mean(dim=1)), _SLOPE)
        return seen, _each(lambda v: F.leaky_relu(self.support(v), _SLOPE), z)


class UniverSegNet(nn.Module):
    """An encoder and a decoder of cross blocks, each with `width` channels, at `levels` sizes.

    Images ``(b, C, H, W)``, support images ``(s, C, H, W)`` and their masks ``(s, 1, H, W)`` in;
    scores ``(b, 1, H, W)`` out. Sides are multiples of ``2 ** (levels - 1)``.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            CrossBlock(width if i else channels, width if i else channels + 1, width)
            for i in range(levels)
        )
        self.up = nn.ModuleList(CrossBlock(2 * width, 2 * width, width) for _ in range(levels - 1))
        self.last = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE, nonlinearity="leaky_relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, support: Tensor, masks: Tensor) -> Tensor:
        """Scores of the one class whose masks are given, at every pixel."""
        query = images
        given = torch.cat([support, masks.to(support.dtype)], dim=1).unsqueeze(0)
        passed: list[tuple[Tensor, Tensor]] = []
        for i, block in enumerate(self.down):
            if i:
                query, given = F.max_pool2d(query, 2), _each(lambda v: F.max_pool2d(v, 2), given)
            query, given = block(query, given)
            passed.append((query, given))
        passed.pop()
        for block in self.up:
            by_side, given_by_side = passed.pop()
            query = torch.cat([_doubled(query), by_side], dim=1)
            given = torch.cat([_each(_doubled, given), given_by_side], dim=2)
            query, given = block(query, given)
        found: Tensor = self.last(query)
        return found


def _each(change: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """`change` of every support image of maps ``(b, s, c, h, w)``."""
    changed = change(maps.flatten(0, 1))
    return changed.reshape(*maps.shape[:2], *changed.shape[1:])


def _doubled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


@final
class UniverSeg(OwnNetwork):
    """One network for every task, which it reads from images and masks: nothing is fitted.

    It is meta-trained across tasks on the soft Dice of the queries (section 3.2) with Adam;
    `cross_entropy` weighs a second term that is not the paper's, without which a short training at
    a high rate tends to end where nothing is anywhere. It is
    asked about each class of a task apart, with that class's masks of all support images. Of the
    paper's task augmentations (section 3.3) two are here, each for half of the tasks, query and
    support alike where `augment` is on: intensities are inverted, and images are mirrored and
    turned by quarters. Width, levels and rate are the paper's, whose support sets have 64 images
    and whose training has 53 data sets; here they are those of the protocol.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        levels: int = 4,
        lr: float = 1e-4,
        cross_entropy: float = 0.0,
        augment: bool = True,
        meta_batch: int = 1,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, meta_batch=meta_batch)
        self.width = width
        self.levels = levels
        self.cross_entropy = cross_entropy
        self.augment = augment
        self._white: Tensor | None = None

    def network(self, backbone: Backbone) -> nn.Module:
        """A new network for images of as many channels."""
        spec = backbone.input
        side = 2 ** (self.levels - 1)
        if spec.size % side:
            raise MedbenchError(
                f"universeg with levels={self.levels} halves images {self.levels - 1} times, and "
                f"images of {spec.size} pixels cannot be: {side} does not divide that. Use fewer "
                "levels."
            )
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        self._white = (1.0 - 2.0 * mean) / std  # what x and its inverse add up to
        return UniverSegNet(spec.channels, self.width, self.levels)

    def loss(self, network: nn.Module, task: Task) -> Tensor:
        """One minus the soft Dice of each query and class, the mean, and perhaps cross-entropy."""
        support, truth = task.support, task.query_masks
        assert support.masks is not None
        assert truth is not None
        images, asked, masks = support.inputs, task.query, support.masks
        if self.augment:
            images, asked, masks, truth = self._changed(images, asked, masks, truth)
        net = cast("UniverSegNet", network)
        found = torch.cat(
            [net(asked, images, masks[:, k : k + 1]) for k in range(support.n_way)], dim=1
        )
        loss = soft_dice_loss(found, truth.float())
        if self.cross_entropy:
            every = F.binary_cross_entropy_with_logits(found, truth.float())
            loss = loss + self.cross_entropy * every
        return loss

    def _changed(self, images: Tensor, asked: Tensor, *masks: Tensor) -> list[Tensor]:
        """A task and its masks, changed as one; drawn from torch's global state."""
        assert self._white is not None
        inverted, turned = torch.rand(2).tolist()
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        if inverted < 0.5:
            white = self._white.to(images)
            images, asked = white - images, white - asked
        parts = [images, asked, *masks]
        if turned < 0.5:
            square = images.shape[-1] == images.shape[-2]
            parts = [torch.rot90(t, turns if square else 2 * (turns % 2), (-2, -1)) for t in parts]
            parts = [t.flip(-1) for t in parts] if mirrored else parts
        return parts

    def answers(self, network: nn.Module, support: Support) -> Predictor:
        """Keep the support set; the network sees it beside every query."""
        return _Conditioned(cast("UniverSegNet", network), support)


def soft_dice_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """One minus ``2 sum(p y) / (sum(p) + sum(y))``, the mean over images and classes.

    Of scores and masks (0 or 1) ``(b, n_way, H, W)``; one pixel is added above and below, so that
    an empty mask has a slope too.
    """
    p = scores.sigmoid()
    shared = (p * truth).sum(dim=(-2, -1))
    dice = (2 * shared + 1.0) / (p.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1)) + 1.0)
    return (1.0 - dice).mean()


@final
class _Conditioned(Predictor):
    def __init__(self, network: UniverSegNet, support: Support) -> None:
        self.network = network
        self.support = support

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(n_query, n_way, H, W)``."""
        images, masks = self.support.inputs, self.support.masks
        assert masks is not None
        # One image at a time: a convolution may round a batch in another way.
        rows = [
            torch.cat(
                [
                    self.network(image[None], images, masks[:, k : k + 1])
                    for k in range(self.support.n_way)
                ],
                dim=1,
            )
            for image in query
        ]
        return torch.cat(rows)
