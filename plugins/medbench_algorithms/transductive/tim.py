"""TIM (Boudiaf, Masud, Rony, Dolz, Piantanida and Ben Ayed, NeurIPS 2020), and alpha-TIM.

alpha-TIM is Veilleux, Boudiaf, Piantanida and Ben Ayed, "Realistic Evaluation of Transductive
Few-Shot Learning", NeurIPS 2021.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from medbench_algorithms.transductive.information import Information
from medbench_algorithms.transductive.joint import Joint, Points, compact, means_of, split

Solver = Literal["gd", "adm"]
_STEPS = {"gd": 1000, "adm": 150}


def _scores(objective: Information, weights: Tensor, query: Tensor) -> Tensor:
    """Logits ``-tau / 2 |z - w_k|^2``, ``(e, q, k)``."""
    own = query.square().sum(-1).unsqueeze(-2)
    return (objective.logits(weights, query) - 0.5 * objective.tau * own).mT


def _by_descent(
    objective: Information, features: Tensor, targets: Tensor, n_steps: int, lr: float
) -> Tensor:
    support, query = split(features, targets)
    start = means_of(support, targets)
    weights = objective.descend(start, features, targets, n_steps=n_steps, lr=lr)
    return _scores(objective, weights, query)


@final
class TIM(Joint):
    """Class weights that make query predictions confident each, and diverse together.

    They start from the class means of the support set and maximise the mutual information between
    queries and their predictions, beside the cross-entropy of the support set (Eq. 4). Features
    have unit length and are not centred, as in the authors' evaluation code, whose settings are
    the defaults (``tau`` 15, weights 0.1, 1 and 0.1; section 4).

    ``solver``: ``gd``, Adam with rate ``head_lr`` (TIM-GD, 1000 steps), or ``adm``, closed-form
    updates in turn (TIM-ADM, 150 steps). ``steps``: None takes these numbers.
    """

    def __init__(
        self,
        *,
        solver: Solver = "gd",
        steps: int | None = None,
        tau: float = 15.0,
        support_weight: float = 0.1,
        marginal_weight: float = 1.0,
        conditional_weight: float = 0.1,
        head_lr: float = 1e-4,
    ) -> None:
        super().__init__(normalize="l2")
        self.solver: Solver = solver
        self.steps = _STEPS[solver] if steps is None else steps
        self.objective = Information(
            tau=tau,
            support=support_weight,
            marginal=marginal_weight,
            conditional=conditional_weight,
        )
        self.lr = head_lr

    def count_adapted(self, n_way: int, d: int) -> int:
        """One weight vector a class."""
        return n_way * d

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Logits ``(e, q, k)``; their softmax is the model's posterior (Eq. 1)."""
        if self.solver == "gd":
            return _by_descent(self.objective, points.scaled(), targets, self.steps, self.lr)
        # On features of little structure the updates are chaotic: a last digit of float64 grows
        # until it decides about predictions. So each episode is worked on by itself, that it may
        # not matter which others there are.
        features = points.scaled()
        each = [slice(i, i + 1) for i in range(len(features))]
        return torch.cat([self._by_turns(features[one], targets[one]) for one in each])

    def _by_turns(self, features: Tensor, targets: Tensor) -> Tensor:
        # Its iterates are linear combinations of features.
        features, targets = compact(features), targets.double()
        support, query = split(features, targets)
        weights = self.objective.alternate(
            means_of(support, targets), features, targets, n_steps=self.steps
        )
        return _scores(self.objective, weights, query)


@final
class AlphaTIM(Joint):
    """TIM for query sets whose classes need not be equally frequent, by Tsallis entropies.

    The two entropies of the queries become Tsallis's of order ``alpha`` (section 4, Eq. 7); the
    cross-entropy of the support set stays Shannon's, as in the authors' code. ``alpha`` None takes
    what that code uses: 2 for one shot, 7 for five and more, 5 between (the mean number of shots
    where classes differ). With ``alpha`` 1 this is TIM-GD.

    Defaults are those of the authors' configuration: all weights 1, ``tau`` 15, 1000 steps of Adam
    with rate 1e-4, features of unit length.
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        steps: int = 1000,
        tau: float = 15.0,
        support_weight: float = 1.0,
        marginal_weight: float = 1.0,
        conditional_weight: float = 1.0,
        head_lr: float = 1e-4,
    ) -> None:
        super().__init__(normalize="l2")
        self.alpha = alpha
        self.steps = steps
        self.tau = tau
        self.weights = support_weight, marginal_weight, conditional_weight
        self.lr = head_lr

    def count_adapted(self, n_way: int, d: int) -> int:
        """One weight vector a class."""
        return n_way * d

    def order(self, shots: float) -> float:
        """The order of the entropies for a support set with so many images a class."""
        if self.alpha is not None:
            return self.alpha
        if shots <= 1:
            return 2.0
        return 7.0 if shots >= 5 else 5.0

    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Logits ``(e, q, k)``; their softmax is the model's posterior."""
        by_support, by_marginal, by_conditional = self.weights
        objective = Information(
            tau=self.tau,
            support=by_support,
            marginal=by_marginal,
            conditional=by_conditional,
            alpha=self.order(targets.shape[-1] / targets.shape[-2]),
        )
        return _by_descent(objective, points.scaled(), targets, self.steps, self.lr)
