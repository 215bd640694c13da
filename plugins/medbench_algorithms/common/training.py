"""What every meta-training loop does with its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from medbench.api import TrainingRun


def descend(loss: Tensor, optimiser: torch.optim.Optimizer, run: TrainingRun) -> None:
    """Report the loss and take one optimiser step. Raises `NonFinite` before weights are hurt."""
    # Reported first: a loss that is not finite must not reach the weights a checkpoint may keep.
    run.log(loss.item())
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr
