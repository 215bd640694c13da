"""The linear head that MAML and ANIL learn a start for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from medbench.api import ContractError


@final
class EpisodicHead(nn.Module):
    """The start of a linear head, to be adapted to each task.

    With ``n_rows`` every class position has learned weights of its own, as in the paper: that
    serves tasks of up to ``n_rows`` classes. With ``n_rows`` = 1 one learned vector is repeated
    for each class: any number of classes, in any order (Ye and Chao 2022, UnicornMAML).

    ``weight`` is ``(n_rows, d)``, ``bias`` ``(n_rows,)``.
    """

    def __init__(self, n_features: int, n_rows: int) -> None:
        super().__init__()
        start = nn.Linear(n_features, n_rows)
        self.weight = start.weight
        self.bias = start.bias

    @staticmethod
    def from_learned(learned: Mapping[str, Tensor]) -> EpisodicHead:
        """The head among what meta-training returned. Raises `ContractError` without one."""
        if "head.weight" not in learned or "head.bias" not in learned:
            raise ContractError(
                "There is no learned head to start from: training gave "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train first."
            )
        n_rows, n_features = learned["head.weight"].shape
        head = EpisodicHead(n_features, n_rows)
        with torch.no_grad():
            head.weight.copy_(learned["head.weight"])
            head.bias.copy_(learned["head.bias"])
        return head.to(learned["head.weight"].device)

    def rows(self, n_way: int) -> tuple[Tensor, Tensor]:
        """Weight ``(n_way, d)`` and bias ``(n_way,)`` to start from.

        Raises `ContractError` for more classes than there are rows.
        """
        n_rows = len(self.bias)
        if n_rows == 1:
            return self.weight.expand(n_way, -1), self.bias.expand(n_way)
        if n_way > n_rows:
            raise ContractError(
                f"The task has {n_way} classes, and the head was meta-trained for {n_rows}. Train "
                f"with head: shared, which serves any number, or with train_way: {n_way}."
            )
        return self.weight[:n_way], self.bias[:n_way]
