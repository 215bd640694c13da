"""Runs a network with given weights, and says whose statistics its BatchNorm layers use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from medbench.api import Backbone, Unavailable
from medbench_algorithms.common.twice_differentiable import CheapSecondDerivatives

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and (biased) variance of each BatchNorm layer's input, by the layer's name."""


@final
@dataclass(frozen=True)
class FunctionalBody:
    """A backbone as a pure function of its weights and images.

    Images ``(b, C, H, W)``, or volumes ``(b, C, D, H, W)``, make features ``(b, d)``. A batch of
    tasks, images
    ``(n_tasks, b, C, H, W)``, makes ``(n_tasks, b, d)`` in one vectorised pass: any of the weights
    may then have a leading ``n_tasks`` too, and each task is normalised by itself.

    Its buffers and the modes of its layers are as before after every call; layers without
    BatchNorm keep the mode they are in.
    """

    backbone: Backbone

    def __post_init__(self) -> None:
        """Raises `Unavailable` for a network whose weights cannot be changed when it is tested."""
        for part in self.backbone.modules():
            if isinstance(part, Backbone) and not part.adaptable:
                raise Unavailable(
                    "The method changes a network's weights when it adapts, and "
                    f"{type(part).__name__} is tested with others than were trained. Methods on "
                    "features or maps can use it; for this one choose the network uncompressed."
                )

    @property
    def task_dims(self) -> int:
        """How many dimensions the images of one task have: more are several tasks."""
        return 2 + self.backbone.input.n_dims

    def parameters(self) -> dict[str, Tensor]:
        """The weights the backbone has now, by name."""
        return dict(self.backbone.named_parameters())

    def affine(self) -> list[tuple[str, str]]:
        """Names of the scale and the shift of each BatchNorm layer that has them, in order."""
        return [
            (f"{name}.weight", f"{name}.bias")
            for name, norm in self._norms().items()
            if norm.affine
        ]

    def of_batch(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Features ``(..., b, d)``, normalised by the statistics of each task's images together."""
        # Training mode updates running statistics in place: let it update copies.
        lead = images.shape[: images.ndim - self.task_dims]
        copies = {
            f"{layer}.{name}": buffer.expand((*lead, *buffer.shape)).clone()
            for layer, norm in self._norms().items()
            for name, buffer in norm.named_buffers(recurse=False)
        }
        with self._norm_mode(training=True):
            return self._call({**weights, **copies}, images)

    def of_first(
        self,
        weights: Mapping[str, Tensor],
        images: Tensor,
        n_first: int,
        note: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Features ``(..., b, d)``, normalised by the statistics of the first `n_first` images.

        Statistics are each task's own, and part of the graph of gradients. They are added to `note`
        if given, which only one task by itself can do.
        """
        norms = self._norms()
        handles = [
            norm.register_forward_pre_hook(_normaliser(name, n_first, norm.eps, note))
            for name, norm in norms.items()
        ]
        # The hook has normalised: with mean 0 and variance 1 - eps the layer adds but its affine
        # map, and whatever a subclass does after that.
        identity = {
            name: (torch.zeros_like(mean), torch.full_like(variance, 1 - norms[name].eps))
            for name, (mean, variance) in self._running().items()
        }
        try:
            return self.given(weights, images, identity)
        finally:
            for handle in handles:
                handle.remove()

    def given(
        self, weights: Mapping[str, Tensor], images: Tensor, statistics: Statistics
    ) -> Tensor:
        """Features ``(..., b, d)``, each image by itself, normalised by `statistics`."""
        buffers = {}
        for name, (mean, variance) in statistics.items():
            buffers[f"{name}.running_mean"] = mean
            buffers[f"{name}.running_var"] = variance
        with self._norm_mode(training=False):
            return self._call({**weights, **buffers}, images)

    def _norms(self) -> dict[str, _BatchNorm]:
        modules = self.backbone.named_modules()
        return {name: module for name, module in modules if isinstance(module, _BatchNorm)}

    def _running(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (norm.running_mean, norm.running_var)
            for name, norm in self._norms().items()
            if norm.running_mean is not None and norm.running_var is not None
        }

    def _call(self, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        if images.ndim > self.task_dims:
            shared = {**self.parameters(), **dict(self.backbone.named_buffers())}
            dims = {k: 0 if v.ndim > shared[k].ndim else None for k, v in tensors.items()}
            with CheapSecondDerivatives():  # its layers are made for vmap too
                return vmap(self._of_task, (dims, 0))(tensors, images)
        flat = self.backbone.input.n_dims == 2
        if images.device.type == "cpu" and flat and self._takes_channels_last:
            images = images.to(memory_format=torch.channels_last)
        return self._of_task(tensors, images)

    def _of_task(self, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = functional_call(self.backbone, tensors, (images,))
        return features

    @cached_property
    def _takes_channels_last(self) -> bool:
        # Pooling and BatchNorm are several times as fast on a CPU with channels last, and layers
        # keep the layout of what they get. A network that calls `Tensor.view` may refuse it.
        wanted = self.backbone.input
        like = next(self.backbone.parameters(), torch.empty(0))
        images = like.new_zeros(2, *wanted.shape)
        try:
            with torch.no_grad(), torch.random.fork_rng([]), self._norm_mode(training=False):
                self.backbone(images.to(memory_format=torch.channels_last))
        except RuntimeError:
            return False
        return True

    @contextmanager
    def _norm_mode(self, *, training: bool) -> Iterator[None]:
        norms = list(self._norms().values())
        before = [norm.training for norm in norms]
        for norm in norms:
            norm.training = training
        try:
            yield
        finally:
            for norm, mode in zip(norms, before, strict=True):
                norm.training = mode


def _normaliser(
    name: str, n_first: int, eps: float, note: dict[str, tuple[Tensor, Tensor]] | None
) -> Callable[[nn.Module, Any], Any]:
    def normalise(module: nn.Module, inputs: Any) -> Any:
        x: Tensor = inputs[0]
        first = x[:n_first]
        dims = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(first, dims, correction=0)
        if note is not None:
            note[name] = (mean.detach(), variance.detach())
        shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
        scale = (variance + eps).rsqrt()
        return ((x - mean.view(shape)) * scale.view(shape), *inputs[1:])

    return normalise
