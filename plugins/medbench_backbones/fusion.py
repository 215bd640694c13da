"""Aligned modalities of an image in one feature vector: stacked, late and gated fusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, InputSpec, MedbenchError
from medbench_backbones.wrapper import Wrapper

Run = Callable[[Tensor], Tensor]


@final
class Stacked(Wrapper):
    """All modalities as channels of one network's input; early fusion.

    The network is built with that many channels and sees what it would see without this wrapper. A
    modality that an image lacks is `fill` everywhere, which the network cannot tell from pixels.
    """

    def __init__(
        self, *, inner: Backbone, image_size: int, channels: int, fill: float = 0.0
    ) -> None:
        super().__init__(inner)
        del image_size, channels  # the inner network has been built for them
        if not math.isnan(inner.input.missing):  # it tells by itself what is missing
            self.input = replace(inner.input, missing=fill)


@final
class Late(Backbone):
    """A network for each modality; the features of an image are the mean over those it has.

    With one modality missing they are the other's, as if there were no fusion (Havaei et al.,
    MICCAI 2016, average maps of the modalities present in the same way). With `fusion` ``concat``
    features stand side by side, zeros for those of a modality that is missing.

    A network sees none of the images that lack its modality, so they move no BatchNorm statistics.
    """

    def __init__(
        self, *, inner: Sequence[Backbone], image_size: int, channels: int, fusion: str = "mean"
    ) -> None:
        super().__init__()
        del image_size, channels  # the inner networks have been built for them
        self.networks = nn.ModuleList(inner)
        self.concat = fusion == "concat"
        self.n_features = inner[0].n_features * (len(inner) if self.concat else 1)
        self.input = _input_of_all(inner)
        self.origin = inner[0].origin

    def feature_map(self, images: Tensor) -> Tensor:
        """Maps ``(b, c, h, w)`` fused as features are; with ``concat`` `c` is that of all."""
        found, here = _of_each([n.feature_map for n in _all(self.networks)], images, self.input)
        return self._fused(found, here)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)`` of images ``(b, C, ...)``; NaN pixels are missing ones."""
        found, here = _of_each(_all(self.networks), images, self.input)
        return self._fused(found, here)

    def _fused(self, found: Sequence[Tensor], here: Tensor | None) -> Tensor:
        if self.concat:
            return torch.cat(list(found), dim=1)
        total = torch.stack(list(found)).sum(dim=0)
        if here is None:
            return total / len(found)
        count = here.sum(dim=1).clamp_min(1).to(total.dtype)
        return total / count.view(-1, *(1,) * (total.ndim - 1))


@final
class Gated(Backbone):
    """A network for each modality and a gated multimodal unit on their features.

    Of features ``x_1 ... x_k``: ``h_i = tanh(V_i x_i)``, and of two modalities
    ``z = sigmoid(W [x_1, x_2])``, ``h = z * h_1 + (1 - z) * h_2`` (Arevalo et al. 2017, section
    3.1, "bimodal"). Here ``z`` is a softmax over modalities of ``[W [x_1 ... x_k], 0]``, which is
    that for two and has weights of sum 1 for more. Of an image that lacks a modality its features
    in the gates' input are zeros, its own gate is 0, and the others' add up to 1 again.

    Gates are weights of the backbone: meta-training learns them with all others. Without, they are
    random projections, a fusion of some kind and no choice of the better modality.
    """

    def __init__(
        self,
        *,
        inner: Sequence[Backbone],
        image_size: int,
        channels: int,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        del image_size, channels  # the inner networks have been built for them
        k, d = len(inner), inner[0].n_features
        self.networks = nn.ModuleList(inner)
        self.n_features = hidden or d
        self._width = d
        # The paper's unit has no biases.
        self.values = nn.ModuleList(nn.Linear(d, self.n_features, bias=False) for _ in inner)
        if k > 1:
            self.gates = nn.Linear(k * d, (k - 1) * self.n_features, bias=False)
        self.input = _input_of_all(inner)
        self.origin = inner[0].origin

    def feature_map(self, images: Tensor) -> Tensor:
        """Fused maps ``(b, c, h, w)``: the unit at each place where a map has a channel a feature.

        Where features are the flattened map it is the fused features in the map's shape. Raises
        `MedbenchError` for networks whose features are neither, and with `hidden` for the latter.
        """
        found, here = _of_each([n.feature_map for n in _all(self.networks)], images, self.input)
        shape = found[0].shape[1:]
        if shape[0] == self._width:
            return self._fused([x.movedim(1, -1) for x in found], here).movedim(-1, 1)
        if shape.numel() == self._width == self.n_features:
            return self._fused([x.flatten(1) for x in found], here).view(-1, *shape)
        raise MedbenchError(
            f"gated: the networks have {self._width} features and maps of {tuple(shape)}, and the "
            f"gates give {self.n_features}, which do not fit the places of a map. Use "
            "'late:BACKBONE' or 'stacked:BACKBONE' for methods that compare places."
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)`` of images ``(b, C, ...)``; NaN pixels are missing ones."""
        found, here = _of_each(_all(self.networks), images, self.input)
        return self._fused(found, here)

    def _fused(self, found: Sequence[Tensor], here: Tensor | None) -> Tensor:
        """The unit on the last dimension of ``(b, ..., d)``."""
        values = torch.stack(
            [torch.tanh(v(x)) for v, x in zip(self.values, found, strict=True)], dim=-2
        )
        k = len(found)
        if k == 1:
            return values.squeeze(-2)
        logits = self.gates(torch.cat(list(found), dim=-1))
        logits = logits.unflatten(-1, (k - 1, self.n_features))
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1, :])], dim=-2)
        if here is not None:
            absent = ~here.view(len(here), *(1,) * (logits.ndim - 3), k, 1)
            # An image always has some modality, so a softmax is never over nothing.
            logits = logits.masked_fill(absent, -math.inf)
        return (logits.softmax(dim=-2) * values).sum(dim=-2)


def _all(networks: nn.ModuleList) -> list[Backbone]:
    return [network for network in networks if isinstance(network, Backbone)]


def _input_of_all(inner: Sequence[Backbone]) -> InputSpec:
    """The input of several networks side by side; missing ones show as NaN."""
    wants = inner[0].input
    return replace(
        wants,
        channels=wants.channels * len(inner),
        mean=wants.mean * len(inner),
        std=wants.std * len(inner),
        missing=math.nan,
    )


def _of_each(
    runs: Sequence[Run], images: Tensor, wants: InputSpec
) -> tuple[list[Tensor], Tensor | None]:
    """What each network makes of its modality, zeros where that is missing.

    And which images have it, ``(b, k)``; None where nothing is missing.
    """
    k = len(runs)
    parts = torch.split(images, wants.channels // k, dim=1)
    # NaN anywhere counts, as whoever turned or shifted an image filled its corners.
    totals = images.sum(dim=tuple(range(2, images.ndim)))
    here = ~totals.view(len(images), k, -1).sum(dim=2).isnan()
    if bool(here.all()):
        return [run(_as_given(part, images)) for run, part in zip(runs, parts, strict=True)], None
    found: list[Tensor | None] = []
    for run, part, has in zip(runs, parts, here.unbind(dim=1), strict=True):
        rows = has.nonzero()[:, 0]
        if not len(rows):
            found.append(None)
            continue
        some = run(_as_given(part[rows], images))
        blank = some.new_zeros(len(images), *some.shape[1:])
        found.append(blank.index_copy(0, rows, some))
    like = next((x for x in found if x is not None), None)
    if like is None:
        raise MedbenchError(
            "None of these images has any modality: all pixels are NaN. An image must have one."
        )
    return [torch.zeros_like(like) if x is None else x for x in found], here


def _as_given(part: Tensor, images: Tensor) -> Tensor:
    """Some channels in the memory layout that all had: networks are twice as fast with theirs."""
    if images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return part.contiguous(memory_format=torch.channels_last)
    return part.contiguous()
