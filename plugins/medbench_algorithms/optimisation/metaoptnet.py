"""MetaOptNet (Lee, Maji, Ravichandran and Soatto, CVPR 2019)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.optimisation import svm
from medbench_algorithms.optimisation.ridge import ridge_dual

Kind = Literal["svm", "ridge"]


@final
class Scale(nn.Module):
    """The learned factor of the logits (gamma in the meta-learning objective)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


@final
class MetaOptNet(Episodic[Scale]):
    """Learns features for a convex classifier, through the optimality conditions of its problem.

    ``head`` is the multi-class SVM of Crammer and Singer without a bias, whose errors weigh ``C``,
    or ridge regression with weight ``ridge_lambda`` (section 3, "Convex base learners"). Either
    is solved to the optimum in its dual, in float64, and differentiated there by the implicit
    function theorem; logits are its scores times a learned factor. Training smooths labels by
    ``label_smoothing``: the true class gets that much less, shared by the others.

    C = 0.1, ridge weight 50, smoothing 0.1 and a factor that starts at 1 are those of the authors'
    code, as is that the ridge regression fits 2 for the own class and 0 for others. Departures:
    Adam on one episode a step where they use SGD on eight; they train with 15 shots whatever is
    tested (set ``train_shot`` for that). Some versions of their code add 1 to the diagonal of the
    SVM's kernel to help their solver; the problem solved here is the paper's.
    """

    def __init__(
        self,
        *,
        head: Kind = "svm",
        C: float = 0.1,
        ridge_lambda: float = 50.0,
        label_smoothing: float = 0.1,
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
        self.C = C
        self.ridge_lambda = ridge_lambda
        self.label_smoothing = label_smoothing

    def build(self, backbone: Backbone) -> Scale:
        """The factor of the logits."""
        return Scale()

    def predictor(self, head: Scale, support: Support) -> LinearPredictor:
        """The optimal classifier of support features ``(..., n_support, d)``."""
        x = support.inputs.double()
        targets, gram = one_hot(support.labels, support.n_way), x @ x.mT
        if self.kind == "svm":
            dual = self.C * svm.dual(self.C * gram, targets)
        else:
            dual = ridge_dual(gram, 2 * targets, gram.new_tensor(self.ridge_lambda))
        weight = head.factor * (dual.mT @ x)
        found = LinearPredictor(weight, weight.new_zeros(weight.shape[:-1]))
        found.n_adapted = support.n_way * x.shape[-1]  # there is no bias
        return found

    def loss(self, head: Scale, support: Support, query: Tensor, query_labels: Tensor) -> Tensor:
        """The queries' cross-entropy against smoothed labels."""
        logits = self.predictor(head, support).predict(query)
        # torch shares the smoothing among all classes, the true one included.
        share = self.label_smoothing * support.n_way / (support.n_way - 1)
        return F.cross_entropy(logits, query_labels, label_smoothing=share)
