"""The linear head that methods of MAML's family learn a start for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import ContractError


def take_rows(weight: Tensor, bias: Tensor, n_way: int) -> tuple[Tensor, Tensor]:
    """Of ``(n_rows, d)`` and ``(n_rows,)`` what serves `n_way` classes: the one row, or the first.

    Raises `ContractError` for more classes than there are rows.
    """
    n_rows = len(bias)
    if n_rows == 1:
        return weight.expand(n_way, -1), bias.expand(n_way)
    if n_way > n_rows:
        raise ContractError(
            f"The task has {n_way} classes, and the head was meta-trained for {n_rows}. Train with "
            f"train_way: {n_way}, or, where the method has that choice, with head: shared, which "
            "serves any number."
        )
    return weight[:n_way], bias[:n_way]


@final
class EpisodicHead(nn.Module):
    """The start of a linear head, to be adapted to each task.

    With ``n_rows`` every class position has learned weights of its own, as in the paper: that
    serves tasks of up to ``n_rows`` classes. With ``n_rows`` = 1 one learned vector is repeated
    for each class: any number of classes, in any order (Ye and Chao 2022, UnicornMAML). With
    ``n_rows`` = 0 there is nothing to learn: the method makes each task's rows itself.

    ``weight`` is ``(n_rows, d)``, ``bias`` ``(n_rows,)``.
    """

    def __init__(self, n_features: int, n_rows: int) -> None:
        super().__init__()
        if n_rows:
            start = nn.Linear(n_features, n_rows)
            self.weight = start.weight
            self.bias = start.bias
        else:
            self.weight = nn.Parameter(torch.empty(0, n_features))
            self.bias = nn.Parameter(torch.empty(0))

    @staticmethod
    def from_learned(learned: Mapping[str, Tensor]) -> EpisodicHead:
        """The head among what meta-training returned. Raises `ContractError` without one."""
        if "head.weight" not in learned or "head.bias" not in learned:
            raise ContractError(
                "There is no learned head to start from: training gave "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train first."
            )
        n_rows, n_features = learned["head.weight"].shape
        head = EpisodicHead(n_features, n_rows).to(learned["head.weight"])
        with torch.no_grad():
            head.weight.copy_(learned["head.weight"])
            head.bias.copy_(learned["head.bias"])
        return head

    def rows(self, n_way: int) -> tuple[Tensor, Tensor]:
        """Weight ``(n_way, d)`` and bias ``(n_way,)`` to start from; see `take_rows`."""
        return take_rows(self.weight, self.bias, n_way)
