"""DeepEMD: the Earth Mover's Distance between feature maps (Zhang et al., CVPR 2020)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric.places import MapPredictor, class_maps, descriptors
from medbench_algorithms.metric.transport import (
    Solver,
    check_solver,
    exact,
    sinkhorn,
    transport_cost,
)

_LEAST_WEIGHT = 1e-3  # the authors' code: every place carries some mass
_SFC_BATCH = 4


def cross_reference(query: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mass of every place, by its likeness to the other map's mean (Eq. 8); sums to one.

    Of descriptors ``(e, q, p, c)`` and ``(e, n_way, p, c)``: ``(e, q, n_way, p)`` of the query's
    places, and as many of the class's.
    """
    of_query = torch.einsum("eqpc,ewc->eqwp", query, classes.mean(-2))
    of_class = torch.einsum("ewpc,eqc->eqwp", classes, query.mean(-2))
    a, b = (F.relu(w) + _LEAST_WEIGHT for w in (of_query, of_class))
    return a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def matching_costs(query: Tensor, classes: Tensor) -> Tensor:
    """One minus the cosines between all places (Eq. 6), ``(e, q, n_way, p, p)``.

    Descriptors are centred over their channels first, as in the authors' code.
    """
    e, n_query, p, _ = query.shape
    a, b = (F.normalize(t - t.mean(-1, keepdim=True), dim=-1) for t in (query, classes))
    cosines = a.flatten(1, 2) @ b.flatten(1, 2).mT
    return 1 - cosines.reshape(e, n_query, p, -1, p).transpose(2, 3)


@final
class EMDPredictor(MapPredictor):
    """Scores classes by how cheaply a query's map turns into theirs (Eq. 7).

    ``classes`` are maps ``(..., n_way, c, h, w)``.
    """

    def __init__(
        self, classes: Tensor, method: DeepEMD, solver: Solver, *, fitted: bool = False
    ) -> None:
        super().__init__(classes)
        self.method = method
        self.solver = solver
        self.n_adapted = math.prod(classes.shape[-4:]) if fitted else 0

    def numbers_per_query(self, n_places: int) -> int:
        """A cost for each pair of places, and twice as much again in float64 for the solver."""
        n_way: int = self.kept[0].shape[-4]
        return 4 * n_way * n_places**2

    def score(self, query: Tensor, *kept: Tensor) -> Tensor:
        """The temperature times one minus the Earth Mover's Distance."""
        own, classes = descriptors(query), descriptors(kept[0])
        a, b = cross_reference(own, classes)
        cost = matching_costs(own, classes)
        if self.solver == "sinkhorn":
            plan = sinkhorn(cost, a, b, self.method.epsilon, self.method.iterations)
        else:
            plan = exact(cost, a, b, self.solver)
        return self.method.temperature * (1 - transport_cost(cost, a, b, plan))


def fit_layer(classes: Tensor, support: Support, method: DeepEMD) -> Tensor:
    """The structured fully connected layer: class maps ``(..., n_way, c, h, w)`` fitted by SGD.

    Starts from `classes`; a step is one pass over the support set in batches of an order drawn
    anew for every episode. Episodes of one shot have as many images as classes and are not for
    this layer.
    """
    n = support.labels.shape[-1]
    n_episodes = support.labels[..., 0].numel()
    draws = [support.generator(i) for i in range(n_episodes)]
    with torch.inference_mode(False), torch.enable_grad():
        episodes = torch.arange(n_episodes, device=classes.device).unsqueeze(-1)
        inputs = support.inputs.detach().clone().reshape(n_episodes, n, *classes.shape[-3:])
        labels = support.labels.clone().reshape(n_episodes, n)
        fitted = classes.detach().clone().reshape(n_episodes, *classes.shape[-4:])
        velocity: Tensor | None = None
        for _ in range(method.sfc_steps):
            order = torch.stack([torch.randperm(n, generator=g) for g in draws])
            for some in torch.split(order.to(classes.device), _SFC_BATCH, dim=1):
                fitted.requires_grad_()
                logits = EMDPredictor(fitted, method, method.solver).predict(inputs[episodes, some])
                losses = F.cross_entropy(logits.mT, labels[episodes, some], reduction="none")
                (gradient,) = torch.autograd.grad(losses.mean(-1).sum(), fitted)
                # Torch's SGD: the first step is not damped.
                velocity = gradient if velocity is None else 0.9 * velocity + 0.1 * gradient
                fitted = fitted.detach() - method.sfc_lr * velocity
    return fitted.reshape(classes.shape)


@final
class DeepEMD(Episodic[nn.Identity]):
    """Matches the places of a query with those of each class at the least total cost.

    Places carry mass by cross-reference (Eq. 8), matching costs one minus the cosine (Eq. 6), and
    logits are ``temperature`` (12.5) times the similarity under the best plan (Eq. 7, DeepEMD-FCN;
    settings of the authors' code). At test the plan is exact (``solver``: exact or linprog), or
    Sinkhorn's approximation.

    Of several support images, a class keeps the mean map. With ``sfc_steps`` (in the paper 100)
    that is where the structured fully connected layer of section 3.5 starts from: class maps
    fitted to the support set by SGD (rate 0.1, momentum 0.9, batches of 4), one pass over it a
    step, by the same solver. It needs seconds an episode, hence it is off by default.

    Training departs from the paper, which differentiates a quadratic program by OptNet: gradients
    come from the envelope theorem, and plans from ``train_solver``, by default Sinkhorn's
    iteration with regularisation ``epsilon``, which keeps to the device. With exact plans the
    gradients are those of the distance itself. Training takes mean maps, and is shared by cells
    that differ in ``solver`` or ``sfc_steps`` alone.
    """

    view = "maps"

    def __init__(
        self,
        *,
        temperature: float = 12.5,
        solver: Solver = "exact",
        train_solver: Solver = "sinkhorn",
        epsilon: float = 0.05,
        iterations: int = 100,
        sfc_steps: int = 0,
        sfc_lr: float = 0.1,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.5,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        # Before hours of training rather than after.
        check_solver(solver)
        check_solver(train_solver)
        self.temperature = temperature
        self.solver: Solver = solver
        self.train_solver: Solver = train_solver
        self.epsilon = epsilon
        self.iterations = iterations
        self.sfc_steps = sfc_steps
        self.sfc_lr = sfc_lr

    def build(self, backbone: Backbone) -> nn.Identity:
        """Nothing is learned beside the backbone."""
        return nn.Identity()

    def predictor(self, head: nn.Identity, support: Support) -> EMDPredictor:
        """Mean maps and the plans of training: what the loss and validation use."""
        means = class_maps(support.inputs, support.labels, support.n_way)
        return EMDPredictor(means, self, self.train_solver)

    def adapt(self, support: Support) -> EMDPredictor:
        """The map of every class: its one image, the mean of several, or the fitted layer."""
        means = class_maps(support.inputs, support.labels, support.n_way)
        several = support.labels.shape[-1] > support.n_way
        if not (self.sfc_steps and several):
            return EMDPredictor(means, self, self.solver)
        fitted = fit_layer(means, support, self)
        return EMDPredictor(fitted, self, self.solver, fitted=True)
