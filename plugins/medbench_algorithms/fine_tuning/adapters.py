"""Bottleneck adapters in transformers: Houlsby et al. 2019, and AdaptFormer (Chen et al. 2022)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, ContractError
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.fine_tuning.change import Block, Hook, Hooked, Values, transformer_blocks
from medbench_algorithms.fine_tuning.head import HeadStart
from medbench_algorithms.fine_tuning.parts import norm_parameters
from medbench_algorithms.fine_tuning.tuning import Descent, Tuning

Kind = Literal["houlsby", "adaptformer"]
_HOULSBY_STD = 1e-2
_ADAPTFORMER_SCALE = 0.1


@dataclass(frozen=True)
class Bottlenecks(Hooked, ABC):
    """Two-layer networks ``d -> bottleneck -> d`` beside the layers of a transformer."""

    blocks: Sequence[Block]
    bottleneck: int

    @abstractmethod
    def places(self, block: Block) -> Sequence[str]:
        """The layers of a block that get an adapter, by name."""

    @abstractmethod
    def draw(self, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starting weights ``(bottleneck, d)`` down and ``(d, bottleneck)`` up."""

    def start(self, generator: torch.Generator) -> Values:
        """Adapters close to doing nothing; biases are null."""
        like = next(iter(self.frozen().values()))
        values = {}
        for block in self.blocks:
            for place in self.places(block):
                down, up = self.draw(block.width, generator)
                values[f"{place}:down.weight"] = down.to(like)
                values[f"{place}:down.bias"] = like.new_zeros(self.bottleneck)
                values[f"{place}:up.weight"] = up.to(like)
                values[f"{place}:up.bias"] = like.new_zeros(block.width)
        return values

    def own(self, tuned: Values) -> Values:
        """None of the network's own parameters."""
        return {}


def _down(tuned: Values, place: str, x: Tensor) -> Tensor:
    return F.linear(x, tuned[f"{place}:down.weight"], tuned[f"{place}:down.bias"])


def _up(tuned: Values, place: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, tuned[f"{place}:up.weight"], tuned[f"{place}:up.bias"])


@final
@dataclass(frozen=True)
class Serial(Bottlenecks):
    """``h + up(gelu(down(h)))`` on what attention and MLP give, before their skip connections.

    The normalisation layers, named in ``norms``, are tuned too (Houlsby et al. 2019, section 2.1
    and figure 2).
    """

    norms: Sequence[str]

    def places(self, block: Block) -> Sequence[str]:
        """After both sub-layers."""
        return block.attention, block.mlp

    def draw(self, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gaussians of deviation 0.01, cut at two deviations (section 3.6)."""
        down, up = (
            nn.init.trunc_normal_(
                torch.empty(shape),
                std=_HOULSBY_STD,
                a=-2 * _HOULSBY_STD,
                b=2 * _HOULSBY_STD,
                generator=generator,
            )
            for shape in ((self.bottleneck, d), (d, self.bottleneck))
        )
        return down, up

    def start(self, generator: torch.Generator) -> Values:
        """The adapters, and the normalisation layers as they are."""
        frozen = self.frozen()
        return {**super().start(generator), **{name: frozen[name].clone() for name in self.norms}}

    def own(self, tuned: Values) -> Values:
        """The normalisation layers' scales and shifts."""
        return {name: tuned[name] for name in self.norms}

    def hooks(self, tuned: Values) -> dict[str, Hook]:
        """An adapter after each sub-layer."""

        def after(place: str) -> Hook:
            def adapt(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
                return out + _up(tuned, place, F.gelu(_down(tuned, place, out)))

            return adapt

        return {place: after(place) for block in self.blocks for place in self.places(block)}


@final
@dataclass(frozen=True)
class Parallel(Bottlenecks):
    """``MLP(LN(x)) + s up(relu(down(x)))`` in each block (AdaptFormer, section 3.2, Eq. 3, 4).

    In models with layer scale the MLP's multiplies the adapter's output too.
    """

    def places(self, block: Block) -> Sequence[str]:
        """Beside the MLP."""
        return (block.mlp,)

    def draw(self, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Down as `torch.nn.Linear` starts, up null (the authors' code, as in LoRA)."""
        down = (torch.rand(self.bottleneck, d, generator=generator) * 2 - 1) / math.sqrt(d)
        return down, torch.zeros(d, self.bottleneck)

    def hooks(self, tuned: Values) -> dict[str, Hook]:
        """Notes what enters a block's second normalisation, and adds to what its MLP gives."""
        entering: dict[str, Tensor] = {}

        def note(place: str) -> Hook:
            def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
                entering[place] = inputs[0]

            return keep

        def beside(place: str) -> Hook:
            def adapt(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
                hidden = F.relu(_down(tuned, place, entering.pop(place)))
                return out + _ADAPTFORMER_SCALE * _up(tuned, place, hidden)

            return adapt

        found: dict[str, Hook] = {}
        for block in self.blocks:
            found[block.norm] = note(block.mlp)
            found[block.mlp] = beside(block.mlp)
        return found


@final
class Adapters(Tuning):
    """Puts small bottleneck networks into a transformer and tunes them; the rest is frozen.

    ``houlsby``: after attention and after the MLP of every block, with the normalisation layers
    tuned as well (Houlsby et al. 2019, section 2.1); ``adaptformer``: beside every MLP alone
    (Chen et al. 2022). Both start (nearly) as the network is. Bottleneck 64 is in both papers'
    sweeps and AdaptFormer's default; Adam's rate is of Houlsby's sweep (section 3.1). The papers
    train for epochs over thousands of examples, here it is 50 steps on the whole support set. The
    head is that of `PartTuning`. Convolutional networks are refused.
    """

    def __init__(
        self,
        *,
        kind: Kind = "houlsby",
        bottleneck: int = 64,
        tune_lr: float = 3e-4,
        head_lr: float = 3e-4,
        tune_epochs: int = 50,
        tune_batch_size: int | None = None,
        weight_decay: float = 0.0,
        head: HeadStart = "normalised",
    ) -> None:
        descent = Descent(
            optimiser="adam",
            lr=tune_lr,
            head_lr=head_lr,
            epochs=tune_epochs,
            batch_size=tune_batch_size,
            weight_decay=weight_decay,
        )
        super().__init__(descent, head)
        self.kind: Kind = kind
        self.bottleneck = bottleneck

    def change(self, backbone: Backbone) -> Serial | Parallel:
        """The adapters of every block. Raises `ContractError` for other networks."""
        blocks = transformer_blocks(backbone, "adapters")
        body = FunctionalBody(backbone)
        if self.kind == "houlsby":
            return Serial(body, blocks, self.bottleneck, norm_parameters(backbone))
        without = [block.mlp for block in blocks if not block.norm]
        if without:
            raise ContractError(
                "adapters with kind: adaptformer need blocks whose norm2 comes before the MLP; "
                f"the block of {without[0]} has none. Use kind: houlsby."
            )
        return Parallel(body, blocks, self.bottleneck)
