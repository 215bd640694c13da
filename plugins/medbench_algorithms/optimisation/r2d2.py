"""R2-D2 and LR-D2 (Bertinetto, Henriques, Torr and Vedaldi, ICLR 2019)."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.optimisation.ridge import logistic_dual, ridge_dual

Kind = Literal["ridge", "logistic"]


@final
class Calibration(nn.Module):
    """What is learned beside the features: the penalty, and scale and bias of the logits.

    The penalty is learned as its logarithm, which keeps it above zero.
    """

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))


@final
class R2D2(Episodic[Calibration]):
    """Learns features for a regression that has a closed form, and differentiates through it.

    ``head`` ``ridge`` is R2-D2: ridge regression of the one-hot labels, solved in the span of the
    support set by Woodbury's identity, with learned penalty and learned scale and bias of the
    logits (section 3; softmax does not see a bias that all classes share). ``logistic`` is LR-D2:
    logistic regression of each class against the rest by ``newton_steps`` steps of Newton's
    method (section 3, "Iterative base learners"); its scores are logits as they are. A feature
    that is always 1 stands for the intercept, penalised like the others, as in the authors' code.

    ``ridge_lambda`` is where the penalty starts, 50 in the authors' code. Departures from that
    code: R2-D2 divides by the number of support examples there, so that its penalty is as many
    times larger; its scale starts at 1e-4 or 10 by data set, here at 1; its penalty stays fixed
    by default, and is learned here as the paper says; it trains with Adam at 0.005, on tasks of
    more classes (16) and random shots.
    """

    def __init__(
        self,
        *,
        head: Kind = "ridge",
        ridge_lambda: float = 50.0,
        newton_steps: int = 5,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.kind: Kind = head
        self.ridge_lambda = ridge_lambda
        self.newton_steps = newton_steps

    def build(self, backbone: Backbone) -> Calibration:
        """Penalty, scale and bias."""
        return Calibration(self.ridge_lambda)

    def predictor(self, head: Calibration, support: Support) -> LinearPredictor:
        """The regression of support features ``(..., n_support, d)``, in float64."""
        x = F.pad(support.inputs.double(), (0, 1), value=1.0)
        targets, gram = one_hot(support.labels, support.n_way), x @ x.mT
        penalty = head.log_penalty.double().exp()
        if self.kind == "ridge":
            whole = head.scale * (ridge_dual(gram, targets, penalty).mT @ x)
            return LinearPredictor(whole[..., :-1], whole[..., -1] + head.bias)
        whole = logistic_dual(gram, targets, penalty, self.newton_steps).mT @ x
        return LinearPredictor(whole[..., :-1], whole[..., -1])
