"""Task-specific adapters (Li, Liu and Bilen, "Cross-domain Few-shot Learning with TSA", 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.common.geometry import class_means, cosine_similarities
from medbench_algorithms.fine_tuning.change import Added, Change, Values
from medbench_algorithms.fine_tuning.tuning import leaves, usable

_SCALE = 10.0  # of the cosines, in the authors' code
_START = 1e-4


@final
@dataclass(frozen=True)
class CentreTaps(Added):
    """A 1x1 convolution beside each of some convolutions, in the residual form (Eq. 3).

    Both see the same input with the same stride, so the 1x1 kernel is a summand of the middle of
    the larger kernel.
    """

    convolutions: Sequence[str]

    def start(self, generator: torch.Generator) -> Values:
        """The identity times 1e-4, as in the authors' code."""
        frozen = self.frozen()
        shapes = {name: frozen[f"{name}.weight"] for name in self.convolutions}
        return {name: _START * torch.eye(*w.shape[:2]).to(w) for name, w in shapes.items()}

    def added(self, tuned: Values, frozen: Values) -> Values:
        """The 1x1 kernels, padded to the size of those they stand beside."""
        found = {}
        for name in self.convolutions:
            height, width = frozen[f"{name}.weight"].shape[-2:]
            pad = (width // 2, width // 2, height // 2, height // 2)
            found[f"{name}.weight"] = F.pad(tuned[name][:, :, None, None], pad)
        return found


def inner_convolutions(backbone: Backbone) -> list[str]:
    """The 3x3 convolutions (and larger ones) of a network behind the one that sees the image.

    Left out are those in groups and those whose 1x1 companion would give another size. Raises
    `ContractError` where nothing is left.
    """
    found = []
    every = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)]
    for name, conv in every[1:]:
        same = [
            k % 2 == 1 and p == dilation * (k // 2)
            for k, p, dilation in zip(conv.kernel_size, _padding(conv), conv.dilation, strict=True)
        ]
        if all(same) and max(conv.kernel_size) > 1 and conv.groups == 1:
            found.append(name)
    if not found:
        raise ContractError(
            f"tsa puts 1x1 convolutions beside 3x3 ones, and {type(backbone).__name__} "
            "has none behind its first layer. Choose a convolutional backbone (conv4, resnet12, "
            "timm:resnet18), or for transformers an algorithm like adapters or lora."
        )
    return found


def _padding(conv: nn.Conv2d) -> Sequence[int]:
    if conv.padding == "same":
        return [d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return [0, 0] if isinstance(conv.padding, str) else list(conv.padding)


def _logits(features: Tensor, prototypes: Tensor) -> Tensor:
    return _SCALE * cosine_similarities(features, prototypes)


@final
class TSAPredictor(Predictor):
    """Cosines to class means in the adapted, aligned features; each query by itself."""

    def __init__(self, change: Change, tuned: Values, align: Tensor, prototypes: Tensor) -> None:
        self.change = change
        self.tuned = tuned
        self.align = align
        self.prototypes = prototypes
        self.n_adapted = align.numel() + sum(value.numel() for value in tuned.values())

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Logits ``(n_query, n_way)`` of images ``(n_query, C, H, W)``."""
        features = self.change.features(self.tuned, query)
        return _logits(F.linear(features, self.align), self.prototypes)


@final
class TaskSpecificAdapters(Algorithm):
    """Tunes 1x1 convolutions beside a frozen network's, and a linear map of its features.

    On the support set it minimises the cross-entropy of ten times the cosines to the class means,
    which move with the features (Eq. 4 and 5), in 40 steps of Adadelta with the rates 0.5 for
    adapters and 1 for the map that the authors' code gives for unseen domains. Adapters are
    residual matrices, the best of the paper (table 3). The authors put them into the residual
    blocks of a ResNet-18; here they stand at every convolution behind the first. BatchNorm uses
    its running statistics. With one image a class the support set is its own class means, and
    what is left to learn is to move the classes apart.
    """

    def __init__(self, *, tune_lr: float = 0.5, align_lr: float = 1.0, steps: int = 40) -> None:
        self.tune_lr = tune_lr
        self.align_lr = align_lr
        self.steps = steps
        self._change: CentreTaps | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Find the convolutions. Raises `ContractError` where there are none."""
        self._change = CentreTaps(FunctionalBody(backbone), inner_convolutions(backbone))

    def adapt(self, support: Support) -> TSAPredictor:
        """Tune on images ``(n_support, C, H, W)``."""
        if self._change is None:
            raise ContractError("TaskSpecificAdapters.adapt was called before prepare.")
        change = self._change
        with torch.inference_mode(mode=False), torch.enable_grad():
            support = usable(support)
            d = change.body.backbone.n_features
            tuned = leaves(change.start(support.generator()))
            align = torch.eye(d).to(next(iter(tuned.values())).detach()).requires_grad_()
            groups = [
                {"params": [*tuned.values()], "lr": self.tune_lr},
                {"params": [align], "lr": self.align_lr},
            ]
            optimiser = torch.optim.Adadelta(groups)

            def aligned() -> tuple[Tensor, Tensor]:
                features = F.linear(change.features(tuned, support.inputs), align)
                return features, class_means(features, support.labels, support.n_way)

            for _ in range(self.steps):
                optimiser.zero_grad()
                loss = F.cross_entropy(_logits(*aligned()), support.labels)
                torch.autograd.backward(loss)
                optimiser.step()
            with torch.no_grad():
                _, prototypes = aligned()
        tuned = {name: value.detach() for name, value in tuned.items()}
        return TSAPredictor(change, tuned, align.detach(), prototypes)
