"""Adam on tensors whose gradients are written by hand."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Adam:
    """Adam with torch's defaults (Kingma and Ba 2015, algorithm 1), changing a tensor in place."""

    def __init__(self, parameter: Tensor, lr: float) -> None:
        self.parameter = parameter
        self.lr = lr
        self._first = torch.zeros_like(parameter)
        self._second = torch.zeros_like(parameter)
        self._n_steps = 0

    def step(self, gradient: Tensor) -> None:
        """One step down `gradient`, shaped like the parameter."""
        self._n_steps += 1
        self._first.lerp_(gradient, 1 - 0.9)
        self._second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        # Both corrections of the bias in two numbers, instead of one pass over the moments each.
        scale = (1 - 0.999**self._n_steps) ** 0.5
        rate = self.lr * scale / (1 - 0.9**self._n_steps)
        spread = self._second.sqrt().add_(1e-8 * scale)
        self.parameter.addcdiv_(self._first, spread, value=-rate)
