"""Any convolutional backbone without its weakest channels: ``pruned:BACKBONE``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Final, Literal, final

import torch
from torch import Tensor

from medbench.api import Backbone, MedbenchError
from medbench_backbones.channels import (
    Channels,
    magnitudes,
    narrow,
    prunable,
    silence,
    strongest,
)
from medbench_backbones.wrapper import Wrapper, refuse_replaced

_TOLERANCE: Final = 1e-4
_PROBE_IMAGES: Final = 2


@final
class Pruned(Wrapper):
    """A network without a share of its channels, those whose filters have the smallest weights.

    Whole filters go, with what later layers did to their output, so that bytes and time go with
    them (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1: the same share
    of every layer, by the sum of absolute weights). Channels of the network's output stay, as do
    those that go through anything that the trace of the network does not show to leave channels
    apart. ``when`` is ``after`` training, of the weights that are tested, or ``before``, and the
    smaller network is then trained (their pruning and retraining, where weights are pretrained).

    The result is held against the network with these channels silenced, and refused where it
    differs. Raises `MedbenchError` for a network of which no channel can go.
    """

    def __init__(
        self,
        *,
        inner: Backbone,
        image_size: int,
        channels: int,
        share: float = 0.5,
        when: Literal["after", "before"] = "after",
    ) -> None:
        refuse_replaced("pruned", inner, "Prune first, as in int8:pruned:BACKBONE.")
        super().__init__(inner)
        del image_size, channels  # the inner network has been built for them
        self.share, self.when = share, when
        if when == "before":
            self._prune()
        else:
            for network in inner.innermost():
                _found(network)

    def deployed(self) -> Backbone:
        """The network without the channels that go."""
        self.inner = self.inner.deployed()
        if self.when == "after":
            self._prune()
        return self

    @torch.no_grad()
    def _prune(self) -> None:
        dense = sum(p.numel() for p in self.inner.parameters())
        silenced = copy.deepcopy(self.inner)
        n = n_gone = 0
        for network, whole in zip(self.inner.innermost(), silenced.innermost(), strict=True):
            for channels in _found(network):
                values = magnitudes(network, channels)
                left = strongest(values, self.share)
                silence(whole, channels, left)
                narrow(network, channels, left)
                n, n_gone = n + len(values), n_gone + len(values) - len(left)
        _check(silenced, self.inner)
        rest = sum(p.numel() for p in self.inner.parameters())
        weights = f"{100 * (1 - rest / dense):.1f} % of the weights"
        self.form = f"pruned: {n_gone} of {n} channels, {weights}"


def _found(network: Backbone) -> list[Channels]:
    """The channels that can go. Raises `MedbenchError` where there are none."""
    try:
        found = list(prunable(network))
    except Exception as error:  # tracing runs a network's code in a way that it is not made for
        raise MedbenchError(
            f"pruned: {type(network).__name__} cannot be traced ({type(error).__name__}), so which "
            "channels belong together is not known. Choose a network of plain convolutions, such "
            "as conv4, resnet12 or timm:resnet18."
        ) from error
    if not found:
        raise MedbenchError(
            f"pruned: {type(network).__name__} has no channels that only plain convolutions make "
            "and take. Choose a network of these, such as conv4, resnet12 or timm:resnet18."
        )
    return found


def _check(dense: Backbone, pruned: Backbone) -> None:
    """Hold a pruned network against the whole one with the same channels silenced."""
    shape = (_PROBE_IMAGES, *pruned.input.shape)
    at = next(pruned.parameters())
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(at.device)
    modes = [(m, m.training) for network in (dense, pruned) for m in network.modules()]
    for network in (dense, pruned):
        network.eval()
    views: list[Callable[[Backbone], Tensor]] = [lambda network: network(images)]
    # Not every network has maps.
    with contextlib.suppress(MedbenchError):
        dense.feature_map(images)
        views.append(lambda network: network.feature_map(images))
    for view in views:
        wanted = view(dense)
        try:
            found = view(pruned)
        except RuntimeError as error:
            raise _differs(pruned, f"fails: {str(error).splitlines()[0]}") from error
        if wanted.shape != found.shape:
            raise _differs(pruned, f"gives {tuple(found.shape)} for {tuple(wanted.shape)}")
        gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
        if not gap <= _TOLERANCE:
            raise _differs(pruned, f"gives other values (by {gap:.2g} of the largest)")
    for module, mode in modes:
        module.training = mode


def _differs(network: Backbone, what: str) -> MedbenchError:
    return MedbenchError(
        f"pruned: {type(network.innermost()[0]).__name__} without some channels {what}, where the "
        "whole network has these channels silenced. Choose a network of plain convolutions, such "
        "as conv4, resnet12 or timm:resnet18."
    )
