"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import nn

from medbench.api import Backbone, ContractError
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.fine_tuning.change import Added, Values, transformer_blocks
from medbench_algorithms.fine_tuning.head import HeadStart
from medbench_algorithms.fine_tuning.tuning import Descent, Tuning

Target = Literal["qv", "qkvo"]


@final
@dataclass(frozen=True)
class Projection:
    """One attention projection: rows ``first ... first + n_out`` of the weight called `weight`."""

    key: str
    weight: str
    first: int
    n_out: int
    n_in: int


@final
@dataclass(frozen=True)
class LowRank(Added):
    """Weights ``W + scale * B A`` with A ``(r, n_in)`` and B ``(n_out, r)`` (Eq. 3)."""

    projections: Sequence[Projection]
    rank: int
    scale: float

    def start(self, generator: torch.Generator) -> Values:
        """A Gaussian, B null: at first the network is as it was (section 4.1).

        The paper does not give the variance; that of the authors' code is 1 / (3 n_in).
        """
        frozen = self.frozen()
        values = {}
        for one in self.projections:
            like = frozen[one.weight]
            a = torch.randn(self.rank, one.n_in, generator=generator) / math.sqrt(3 * one.n_in)
            values[f"{one.key}.A"] = a.to(like)
            values[f"{one.key}.B"] = like.new_zeros(one.n_out, self.rank)
        return values

    def added(self, tuned: Values, frozen: Values) -> Values:
        """``scale * B A``, in the rows of each projection."""
        found: Values = {}
        for one in self.projections:
            update = self.scale * (tuned[f"{one.key}.B"] @ tuned[f"{one.key}.A"])
            below = len(frozen[one.weight]) - one.first - one.n_out
            update = nn.functional.pad(update, (0, 0, one.first, below))
            found[one.weight] = found[one.weight] + update if one.weight in found else update
        return found


def attention_projections(backbone: Backbone, target: Target) -> list[Projection]:
    """The projections of every attention layer that `target` names.

    timm writes queries, keys and values as one ``qkv`` layer, their rows in this order, or as
    ``q_proj``, ``k_proj`` and ``v_proj``. Raises `ContractError` where the backbone has neither.
    """
    modules = dict(backbone.named_modules())
    found = []
    for block in transformer_blocks(backbone, "lora"):
        attention = modules[block.attention]
        names = "qkv" if target == "qkvo" else "qv"
        fused = getattr(attention, "qkv", None)
        for letter in names:
            alone = getattr(attention, f"{letter}_proj", None)
            key = f"{block.attention}.{letter}"
            if isinstance(fused, nn.Linear) and fused.out_features % 3 == 0:
                n = fused.out_features // 3
                weight, first = f"{block.attention}.qkv.weight", n * "qkv".index(letter)
                found.append(Projection(key, weight, first, n, fused.in_features))
            elif isinstance(alone, nn.Linear):
                weight = f"{block.attention}.{letter}_proj.weight"
                found.append(Projection(key, weight, 0, alone.out_features, alone.in_features))
            else:
                raise ContractError(
                    f"lora needs attention layers with linear projections called qkv, or q_proj, "
                    f"k_proj and v_proj; {block.attention} of {type(backbone).__name__} has "
                    "neither. Choose a plain vision transformer (timm:vit_tiny_patch16_224)."
                )
        if target == "qkvo":
            out = attention.get_submodule("proj")
            assert isinstance(out, nn.Linear)
            weight = f"{block.attention}.proj.weight"
            key = f"{block.attention}.o"
            found.append(Projection(key, weight, 0, out.out_features, out.in_features))
    return found


@final
class LoRA(Tuning):
    """Adds a low-rank update to the attention projections of a transformer; all else is frozen.

    Weights are ``W + (alpha / rank) B A`` (section 4.1); of queries and values by default
    (section 4.2, table 5). ``rank``, ``alpha``, AdamW's rate and weight decay are those of GPT-2
    (table 11), without its dropout and schedule. The head is that of `PartTuning`, whose 25 steps
    are doubled as the updates start from null. Convolutional networks are refused.
    """

    def __init__(
        self,
        *,
        rank: int = 4,
        alpha: float = 32.0,
        target: Target = "qv",
        tune_lr: float = 2e-4,
        head_lr: float = 2e-4,
        tune_epochs: int = 50,
        tune_batch_size: int | None = None,
        weight_decay: float = 0.01,
        head: HeadStart = "normalised",
    ) -> None:
        descent = Descent(
            optimiser="adamw",
            lr=tune_lr,
            head_lr=head_lr,
            epochs=tune_epochs,
            batch_size=tune_batch_size,
            weight_decay=weight_decay,
        )
        super().__init__(descent, head)
        self.rank = rank
        self.alpha = alpha
        self.target: Target = target

    def change(self, backbone: Backbone) -> LowRank:
        """A and B of every projection. Raises `ContractError` without attention layers."""
        projections = attention_projections(backbone, self.target)
        return LowRank(FunctionalBody(backbone), projections, self.rank, self.alpha / self.rank)
