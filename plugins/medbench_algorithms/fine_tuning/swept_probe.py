"""A class-balanced linear probe whose penalty is chosen within each support set."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, ContractError, Support
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.common.logistic import solve, solve_many

# A feature that varies less than this share of its size is constant but for rounding.
_CONSTANT = 1e-6
# Sums of accuracies that differ by less differ by rounding.
_TIE = 1e-10


@final
class SweptProbe(Algorithm):
    """Logistic regression with balanced classes, its C swept by cross-validation in each episode.

    The linear probe by which foundation models are evaluated (Radford et al. 2021, appendix A.3:
    an L2-penalised logistic regression, its strength swept on held-out images over logarithmic
    steps), with classes weighted by ``n / (n_way n_c)`` as in scikit-learn's ``balanced``. The
    held-out images are folds of the support set: as many as the smallest class has images, at
    most ``folds``, the i-th image of every class in fold i modulo their number. Folds are scored
    by the ``log_loss`` or the ``accuracy`` of the held-out images, every class counting the same;
    of equal C the smallest wins. With one image in some class nothing can be held out, and C is
    ``C_one_shot``.

    C goes in ``n_C`` logarithmic steps from ``C_min`` to ``C_max``, by default over the range of
    scikit-learn's ``LogisticRegressionCV``. ``normalize``: ``standard`` gives every feature mean 0
    and variance 1 over the support set, before folds are cut; ``l2`` scales feature vectors to
    unit length.
    """

    def __init__(
        self,
        *,
        normalize: Literal["standard", "l2", "none"] = "standard",
        folds: int = 5,
        select_by: Literal["log_loss", "accuracy"] = "log_loss",
        C_min: float = 1e-4,
        C_max: float = 1e4,
        n_C: int = 9,
        C_one_shot: float = 1.0,
    ) -> None:
        if C_min > C_max:
            raise ContractError(
                f"swept-probe sweeps C from C_min to C_max, and {C_min:g} is above {C_max:g}. "
                "Set C_min to the smaller one."
            )
        self.normalize = normalize
        self.folds = folds
        self.select_by = select_by
        ends = math.log10(C_min), math.log10(C_max)
        self.grid = torch.logspace(*ends, n_C, dtype=torch.float64)
        self.C_one_shot = C_one_shot

    def adapt(self, support: Support) -> LinearPredictor:
        """Choose C and fit one classifier an episode on features ``(..., n_support, d)``."""
        unit_length = self.normalize == "l2"
        features = F.normalize(support.inputs, dim=-1) if unit_length else support.inputs
        x = features.double()
        centre = x.mean(-2, keepdim=True)
        scale = torch.ones_like(centre)
        if self.normalize == "standard":
            scale = x.std(-2, correction=0, keepdim=True)
            size = x.abs().amax(-2, keepdim=True)
            scale = torch.where(scale > _CONSTANT * size, scale, 1.0)
        x = (x - centre) / scale
        gram = x @ x.mT
        masks = class_masks(support.labels, support.n_way).double()
        targets = one_hot(support.labels, support.n_way)
        C = self._choose(gram, targets, masks)
        weights = _balanced(masks) * C.unsqueeze(-1)
        dual, bias = solve(gram, targets, _doubled(support.n_way), weights)
        return LinearPredictor(dual.mT @ x / scale, bias, centre, unit_length=unit_length)

    def _choose(self, gram: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
        """The best C of each episode, ``(...)``."""
        shots = masks.sum(-1)
        smallest = shots.amin(-1)
        alone = torch.full_like(smallest, self.C_one_shot)
        n_folds = int(smallest.amax().clamp_max(self.folds))
        if n_folds < 2:
            return alone
        used = smallest.clamp(1, self.folds)
        place = ((masks.cumsum(-1) - 1) * masks).sum(-2)
        fold = place.remainder(used.unsqueeze(-1))
        # (..., n_folds, n): what each fold holds out. Episodes with fewer folds repeat their last.
        index = torch.arange(n_folds, device=gram.device).clamp_max((used - 1).unsqueeze(-1))
        held = fold.unsqueeze(-2) == index.unsqueeze(-1)
        kept = masks.unsqueeze(-3) * ~held.unsqueeze(-2)
        # Where a class has one image, no fold is fit to be solved: take all, the result is unused.
        kept = torch.where((smallest >= 2)[..., None, None, None], kept, masks.unsqueeze(-3))
        weights = _balanced(kept)
        real = torch.arange(n_folds, device=gram.device) < used.unsqueeze(-1)
        counted = held * real.unsqueeze(-1) * (masks / shots.unsqueeze(-1)).sum(-2).unsqueeze(-2)
        y = targets.unsqueeze(-3).expand(*held.shape, -1)
        losses = []
        solved = None
        for C in self.grid.tolist():
            # A solution of the last C is near: only margins grow, by the log of their ratio.
            solved = solve_many(gram, y, C * _doubled(y.shape[-1]), weights, solved)
            logits = gram.unsqueeze(-3) @ solved[0] + solved[1].unsqueeze(-2)
            losses.append((self._loss(logits, y) * counted).sum((-2, -1)))
        loss = torch.stack(losses, -1)
        good = loss <= loss.amin(-1, keepdim=True) + _TIE
        best = good.int().cumsum(-1).eq(0).sum(-1)
        return torch.where(smallest >= 2, self.grid.to(gram.device)[best], alone)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What each example costs, ``(..., n)``."""
        if self.select_by == "log_loss":
            return -(targets * logits.log_softmax(-1)).sum(-1)
        return (logits.argmax(-1) != targets.argmax(-1)).double()


def _doubled(n_way: int) -> float:
    # Two classes have one weight vector w = w1 - w0 in scikit-learn; the penalty on the pair
    # w1 = -w0 = w / 2 is half of that on w.
    return 0.5 if n_way == 2 else 1.0


def _balanced(masks: Tensor) -> Tensor:
    """Weights ``n / (n_way n_c)`` of the examples in class masks ``(..., n_way, n)``; others 0."""
    counts = masks.sum(-1, keepdim=True)
    share = counts.sum(-2, keepdim=True) / (masks.shape[-2] * counts)
    return (masks * share).sum(-2)
