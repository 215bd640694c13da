"""Methods on feature maps against values computed by hand, densely, or by somebody else's code."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Algorithm, Support, Unavailable
from medbench_algorithms.metric import places
from medbench_algorithms.metric.can import CAN, Fusion
from medbench_algorithms.metric.ctx import CTX, CTXHead
from medbench_algorithms.metric.deepbdc import BDCHead, MetaDeepBDC, bdc_matrices
from medbench_algorithms.metric.deepemd import DeepEMD, EMDPredictor
from medbench_algorithms.metric.dn4 import DN4
from medbench_algorithms.metric.frn import FRN, FRNHead, overlap
from medbench_algorithms.metric.places import class_pools, map_shape
from medbench_algorithms.metric.transport import (
    Solver,
    check_solver,
    exact,
    sinkhorn,
    transport_cost,
)

from .conftest import FakeRun, SmallConv, StripesSource, one_of, ready

SHOTS = (3, 1, 2)


def map_episodes(
    shots: tuple[int, ...] = SHOTS,
    shape: tuple[int, int, int] = (8, 4, 4),
    n_episodes: int = 3,
    n_query: int = 5,
    seed: int = 1,
) -> tuple[Support, Tensor]:
    """Maps like a ReLU's, unequal shots, labels in random order, in float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(n_episodes)]
    labels = torch.stack([labels[order] for order in orders])
    drawn = torch.randn(
        n_episodes, len(labels[0]) + n_query, *shape, generator=generator, dtype=torch.float64
    ).relu()
    n = len(labels[0])
    seeds = tuple(range(n_episodes))
    return Support(drawn[:, :n], labels, len(shots), seeds), drawn[:, n:]


def rows(one_map: Tensor) -> np.ndarray:
    """The descriptors ``(p, c)`` of one map, place by place."""
    _, h, w = one_map.shape
    return np.stack([one_map[:, i, j].numpy() for i in range(h) for j in range(w)])


def pool(support: Support, label: int) -> np.ndarray:
    """The descriptors of one class of a single episode, image after image."""
    maps = [m for m, y in zip(support.inputs, support.labels, strict=True) if y == label]
    return np.concatenate([rows(m) for m in maps])


def mean_map(support: Support, label: int) -> np.ndarray:
    own = support.inputs[support.labels == label]
    return rows(own.mean(0))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Zero for null vectors, which ReLU leaves."""
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))


def with_head(algorithm: Any, head: nn.Module) -> Any:
    """`algorithm` prepared with this head, as if meta-training had found it."""
    algorithm.prepare(SmallConv().eval(), {f"head.{k}": v for k, v in head.state_dict().items()})
    return algorithm


# --- shared: pools, shapes, memory ---------------------------------------------------------------


def test_pools_hold_the_descriptors_of_each_class_and_zeros_after_them() -> None:
    support, _ = map_episodes()
    pools, there = class_pools(support.inputs, support.labels, 3)
    assert pools.shape == (3, 3, 48, 8)
    for e in range(3):
        for label, shot in enumerate(SHOTS):
            own = pool(one_of(support, e), label)
            np.testing.assert_array_equal(pools[e, label, : 16 * shot], own)
            assert not pools[e, label, 16 * shot :].any()
            assert int(there[e, label].sum()) == 16 * shot


def test_the_shape_of_maps_is_found_without_touching_the_backbone() -> None:
    backbone = SmallConv().train()
    backbone.net[1].eval()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert map_shape(backbone) == (8, 4, 4)
    assert backbone.training
    assert not backbone.net[1].training
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "dn4": (DN4, {}),
    "frn": (FRN, {"rescale": True}),
    "deepemd": (DeepEMD, {}),
    "deepemd-sinkhorn": (DeepEMD, {"solver": "sinkhorn"}),
    "deepemd-sfc": (DeepEMD, {"sfc_steps": 2, "solver": "sinkhorn"}),
    "deepbdc": (MetaDeepBDC, {}),
    "deepbdc-reduced": (MetaDeepBDC, {"reduce_dim": 4, "metric": "inner"}),
    "can": (CAN, {}),
    "ctx": (CTX, {"dim": 6}),
}


def prepared(name: str, backbone: SmallConv | None = None) -> Algorithm:
    make, params = METHODS[name]
    algorithm = make(**params)
    backbone = backbone or SmallConv()
    torch.manual_seed(0)
    head = algorithm.build(backbone)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    learned = {f"head.{k}": v for k, v in head.state_dict().items()}
    algorithm.prepare(backbone.eval(), learned)
    found: Algorithm = algorithm
    return found


@pytest.mark.parametrize("name", METHODS)
def test_scores_in_parts_are_the_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = map_episodes()
    method = prepared(name)
    together = method.adapt(support).predict(query)
    calls = []
    for numbers in (1, 5000):
        monkeypatch.setattr(places, "_NUMBERS_AT_ONCE", numbers)
        predictor: Any = method.adapt(support)
        score = predictor.score
        predictor.score = lambda q, *kept, score=score: calls.append(q.shape) or score(q, *kept)
        torch.testing.assert_close(predictor.predict(query), together, rtol=1e-9, atol=1e-9)
    assert (1, 1, 8, 4, 4) in calls  # a query at a time
    alone = method.adapt(one_of(support, 1)).predict(query[1])
    torch.testing.assert_close(alone, together[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_maps_of_one_place_give_finite_scores(name: str) -> None:
    class OnePlace(SmallConv):
        def feature_map(self, images: Tensor) -> Tensor:
            return super().feature_map(images).mean((2, 3), keepdim=True)

    for shots in ((1, 1), SHOTS):
        support, query = map_episodes(shots, (8, 1, 1))
        scores = prepared(name, OnePlace()).adapt(support).predict(query)
        assert scores.shape == (3, 5, len(shots))
        assert torch.isfinite(scores).all()


# --- DN4 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_dn4_equals_loops_over_places(k: int) -> None:
    support, query = map_episodes()
    scores = ready(DN4(k=k)).adapt(support).predict(query)
    for e in range(3):
        for i, asked in enumerate(query[e]):
            for label in range(3):
                total = 0.0
                for x in rows(asked):
                    cosines = sorted(cosine(x, y) for y in pool(one_of(support, e), label))
                    total += sum(cosines[-k:])
                assert scores[e, i, label].item() == pytest.approx(total, rel=1e-9)


def test_dn4_scales_classes_with_fewer_descriptors_than_k() -> None:
    maps = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]).view(4, 2, 1, 1)
    support = Support(maps, torch.tensor([0, 0, 0, 1]), 2, (0,))
    scores = ready(DN4()).adapt(support).predict(torch.tensor([[2.0, 0.0]]).view(1, 2, 1, 1))
    torch.testing.assert_close(scores, torch.tensor([[1 + 0 + 0.5**0.5, 3.0]]))


# --- FRN -----------------------------------------------------------------------------------------


def frn_head(alpha: float = 0.7, beta: float = -0.2, gamma: float = 1.7) -> FRNHead:
    head = FRNHead()
    for parameter, value in zip(
        (head.alpha, head.beta, head.gamma), (alpha, beta, gamma), strict=True
    ):
        nn.init.constant_(parameter, value)
    return head


@pytest.mark.parametrize("channels", [8, 200])  # Eq. 10, and Eq. 8
@pytest.mark.parametrize("rescale", [False, True])
def test_frn_equals_scikit_learns_ridge_and_dense_algebra(channels: int, rescale: bool) -> None:
    support, query = map_episodes(shape=(channels, 4, 4))
    predictor = with_head(FRN(rescale=rescale), frn_head()).adapt(support)
    assert len(predictor.kept) == (1 if channels == 8 else 2)
    scores = predictor.predict(query)
    scale = channels**-0.5 if rescale else 1.0
    alpha, beta, gamma = (float(np.float32(v)) for v in (0.7, -0.2, 1.7))
    for e in range(3):
        for label in range(3):
            own = scale * pool(one_of(support, e), label)  # (k r, d)
            lam = len(own) / channels * math.exp(alpha) + 1e-6
            hat = own.T @ np.linalg.inv(own @ own.T + lam * np.eye(len(own))) @ own
            for i, asked in enumerate(query[e]):
                q = scale * rows(asked)
                judge = Ridge(alpha=lam, fit_intercept=False).fit(own.T, q.T)
                fitted = judge.coef_ @ own  # the weights of Eq. 4 times the pool
                np.testing.assert_allclose(fitted, q @ hat, atol=1e-8)
                errors = (math.exp(beta) * fitted - q) ** 2
                expected = -gamma * errors.sum(1).mean()
                assert scores[e, i, label].item() == pytest.approx(expected, rel=1e-6)


def test_frn_overlap_equals_loops_over_pairs_of_classes() -> None:
    pools = torch.randn(3, 6, 4, dtype=torch.float64)
    for norm in ("rows", "all"):
        unit = pools / (pools.norm(dim=-1, keepdim=True) if norm == "rows" else pools.norm())
        expected = sum(
            torch.linalg.matrix_norm(unit[i] @ unit[j].T) ** 2
            for i in range(3)
            for j in range(3)
            if i != j
        )
        torch.testing.assert_close(overlap(pools, norm), expected)  # type: ignore[arg-type]
    orthogonal = torch.eye(4, dtype=torch.float64)[:, None]
    assert overlap(orthogonal, "rows").abs() < 1e-12


def test_frn_trains_with_the_overlap_of_the_support_pools() -> None:
    support, query = map_episodes((2, 2), n_episodes=1)
    alone, labels = one_of(support, 0), torch.tensor([0, 1, 0, 1, 1])
    head = frn_head()
    losses = [FRN(auxiliary=a).loss(head, alone, query[0], labels) for a in (0.0, 1.0)]
    pools, _ = class_pools(alone.inputs, alone.labels, 2)
    torch.testing.assert_close(losses[1] - losses[0], overlap(pools, "all"))


# --- optimal transport ---------------------------------------------------------------------------


def problems(n: int = 9, m: int = 7, count: int = 6, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(count, n, m, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(count, k, generator=generator, dtype=torch.float64) + 0.01 for k in (n, m))
    return cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def test_exact_plans_of_both_solvers_cost_the_same_and_are_optimal() -> None:
    cost, a, b = problems()
    simplex, program = exact(cost, a, b, "exact"), exact(cost, a, b, "linprog")
    for plan in (simplex, program):
        torch.testing.assert_close(plan.flow.sum(-1), a)
        torch.testing.assert_close(plan.flow.sum(-2), b)
        assert plan.flow.min() >= 0
        # A feasible dual solution of the same value proves that both are optimal.
        gap = cost - plan.f.unsqueeze(-1) - plan.g.unsqueeze(-2)
        assert gap.min() > -1e-9
        value = (a * plan.f).sum(-1) + (b * plan.g).sum(-1)
        torch.testing.assert_close(value, transport_cost(cost, a, b, plan))


def test_exact_plans_of_uniform_weights_are_assignments() -> None:
    cost, _, _ = problems(8, 8)
    uniform = torch.full((6, 8), 1 / 8, dtype=torch.float64)
    for solver in ("exact", "linprog"):
        plan = exact(cost, uniform, uniform, solver)  # type: ignore[arg-type]
        for c, found in zip(cost, transport_cost(cost, uniform, uniform, plan), strict=True):
            i, j = linear_sum_assignment(c.numpy())
            assert found.item() == pytest.approx(c.numpy()[i, j].sum() / 8)


def test_sinkhorn_falls_to_the_exact_cost_with_epsilon() -> None:
    cost, a, b = problems()
    best = transport_cost(cost, a, b, exact(cost, a, b, "linprog"))
    gaps = []
    # The last is computed on logarithms: its kernel would underflow.
    for epsilon, iterations in ((0.5, 200), (0.1, 500), (0.02, 2000), (0.005, 4000)):
        plan = sinkhorn(cost, a, b, epsilon, iterations)
        torch.testing.assert_close(plan.flow.sum(-2), b)
        torch.testing.assert_close(plan.flow.sum(-1), a, rtol=1e-3, atol=1e-5)
        gaps.append(float((transport_cost(cost, a, b, plan) - best).abs().max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 2e-3


def test_sinkhorn_on_a_kernel_and_on_logarithms_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost, a, b = problems()
    kernel = sinkhorn(cost, a, b, 0.1, 17)
    monkeypatch.setattr("medbench_algorithms.metric.transport._SAFE_EXPONENT", 0.0)
    logs = sinkhorn(cost, a, b, 0.1, 17)
    for name in ("flow", "f", "g"):
        torch.testing.assert_close(getattr(kernel, name), getattr(logs, name))


@pytest.mark.parametrize("solver", ["exact", "linprog", "sinkhorn"])
def test_gradients_of_the_cost_are_those_of_finite_differences(solver: Solver) -> None:
    """By costs and by weights: of the exact distance, or with Sinkhorn of a value close to it."""
    cost, a, b = (t.requires_grad_() for t in problems(5, 4, 1, seed=3))

    def distance(c: Tensor, x: Tensor, y: Tensor) -> Tensor:
        x, y = x / x.sum(-1, keepdim=True), y / y.sum(-1, keepdim=True)
        plan = sinkhorn(c, x, y, 0.002, 5000) if solver == "sinkhorn" else exact(c, x, y, solver)
        return transport_cost(c, x, y, plan).sum()

    gradients = torch.autograd.grad(distance(cost, a, b), (cost, a, b))
    inputs = [t.detach() for t in (cost, a, b)]
    for which, gradient in enumerate(gradients):
        for i in range(gradient.numel()):
            step = torch.zeros(gradient.numel(), dtype=torch.float64)
            step[i] = 1e-5
            sides = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[which] = moved[which] + sign * step.view(gradient.shape)
                x, y = (t / t.sum(-1, keepdim=True) for t in moved[1:])
                # The judge is HiGHS, whatever found the gradient.
                plan = exact(moved[0], x, y, "linprog")
                sides.append((moved[0] * plan.flow).sum().item())
            expected = (sides[0] - sides[1]) / 2e-5
            assert gradient.flatten()[i].item() == pytest.approx(
                expected, abs=2e-2 if solver == "sinkhorn" else 1e-5
            )


def test_missing_pot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot.lp", None)
    with pytest.raises(Unavailable, match="pip install POT"):
        DeepEMD()
    DeepEMD(solver="linprog")
    check_solver("sinkhorn")


# --- DeepEMD -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["exact", "linprog"])
def test_deepemd_equals_loops_and_an_optimal_plan(solver: Solver) -> None:
    support, query = map_episodes(n_episodes=2, n_query=3)
    scores = ready(DeepEMD(solver=solver)).adapt(support).predict(query)
    for e in range(2):
        for label in range(3):
            v = mean_map(one_of(support, e), label)
            for i, asked in enumerate(query[e]):
                u = rows(asked)
                a = np.array([max(x @ v.mean(0), 0) + 1e-3 for x in u])
                b = np.array([max(y @ u.mean(0), 0) + 1e-3 for y in v])
                similarity = np.empty((16, 16))
                for s, x in enumerate(u):
                    for t, y in enumerate(v):
                        similarity[s, t] = cosine(x - x.mean(), y - y.mean())
                problem = [torch.tensor(t) for t in (1 - similarity, a / a.sum(), b / b.sum())]
                flow = exact(*problem, "linprog").flow.numpy()
                # The authors' form: weights sum to the number of places, 12.5 over that number.
                expected = 12.5 / 16 * (similarity * 16 * flow).sum()
                assert scores[e, i, label].item() == pytest.approx(expected, rel=1e-7)


def test_deepemd_with_sinkhorn_is_close_to_the_exact_one() -> None:
    support, query = map_episodes()
    best = ready(DeepEMD()).adapt(support).predict(query)
    gaps = []
    for epsilon in (0.2, 0.05, 0.01):
        near = ready(DeepEMD(solver="sinkhorn", epsilon=epsilon, iterations=1000))
        gaps.append(float((best - near.adapt(support).predict(query)).abs().max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05  # logits reach 12.5


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_deepemd_gradients_are_those_of_the_exact_distance(solver: Solver) -> None:
    support, query = map_episodes((1, 1), (6, 2, 2), n_episodes=1, n_query=2)
    method = DeepEMD(epsilon=0.01, iterations=3000)

    def total(chosen: Solver, *maps: Tensor) -> Tensor:
        scores = EMDPredictor(maps[0], method, chosen).predict(maps[1])
        return (scores * torch.tensor([[1.0, -2.0], [0.5, 3.0]])).sum()

    inputs = [t.clone().requires_grad_() for t in (support.inputs, query)]
    found = torch.autograd.grad(total(solver, *inputs), inputs)
    for which in range(2):
        for i in (0, 5, 11, 20):
            sides = []
            for sign in (1, -1):
                moved = [t.detach().clone() for t in inputs]
                moved[which].view(-1)[i] += sign * 1e-5
                sides.append(total("linprog", *moved).item())
            expected = (sides[0] - sides[1]) / 2e-5
            tolerance = 1e-5 if solver == "exact" else 0.05
            assert found[which].flatten()[i].item() == pytest.approx(expected, abs=tolerance)


def test_deepemd_trains_by_its_own_solver_whatever_is_chosen_for_test() -> None:
    support, query = map_episodes((2, 2))
    head = nn.Identity()
    chosen = [
        DeepEMD(solver=solver).predictor(head, support).predict(query)  # type: ignore[arg-type]
        for solver in ("exact", "sinkhorn")
    ]
    assert torch.equal(*chosen)
    exactly = DeepEMD(train_solver="exact").predictor(head, support).predict(query)
    assert torch.equal(exactly, ready(DeepEMD()).adapt(support).predict(query))
    assert not torch.allclose(exactly, chosen[0])


def test_deepemd_layer_equals_torch_sgd_episode_by_episode() -> None:
    support, _ = map_episodes((2, 3), (4, 2, 2), n_episodes=2)
    method = DeepEMD(sfc_steps=3, iterations=20, solver="sinkhorn")
    predictor = ready(method).adapt(support)
    assert predictor.n_adapted == 2 * 4 * 2 * 2
    (fitted,) = predictor.kept  # type: ignore[attr-defined]
    for e in range(2):
        one = one_of(support, e)
        start = torch.stack([one.inputs[one.labels == y].mean(0) for y in range(2)])
        layer = nn.Parameter(start.clone())
        sgd = torch.optim.SGD([layer], lr=0.1, momentum=0.9, dampening=0.9)
        generator = one.generator()
        for _ in range(3):
            for batch in torch.randperm(5, generator=generator).split(4):
                sgd.zero_grad()
                logits = EMDPredictor(layer, method, "sinkhorn").predict(one.inputs[batch])
                F.cross_entropy(logits, one.labels[batch]).backward()
                sgd.step()
        torch.testing.assert_close(fitted[e], layer.detach())
        assert not torch.equal(layer, start)


def test_deepemd_layer_lowers_the_loss_of_its_support_set() -> None:
    support, _ = map_episodes((5, 5), (6, 3, 3), n_episodes=1)
    alone = one_of(support, 0)
    losses = []
    for steps in (0, 20):
        method = ready(DeepEMD(sfc_steps=steps, solver="sinkhorn"))
        scores = method.adapt(alone).predict(alone.inputs)
        losses.append(F.cross_entropy(scores, alone.labels).item())
    assert losses[1] < 0.9 * losses[0]


def test_deepemd_of_one_shot_has_no_layer_to_fit() -> None:
    support, _ = map_episodes((1, 1, 1))
    assert ready(DeepEMD(sfc_steps=5)).adapt(support).n_adapted == 0


# --- DeepBDC -------------------------------------------------------------------------------------


def dense_bdc(one_map: Tensor, scale: float) -> np.ndarray:
    """Eqs. 4 to 6 as they are written, with the authors' constant under the root."""
    channels = one_map.numpy().reshape(len(one_map), -1)
    d = len(channels)
    a = np.array(
        [[math.sqrt(scale * ((x - y) ** 2).sum() + 1e-5) for y in channels] for x in channels]
    )
    return np.array(
        [
            [a[k, l] - a[:, l].mean() - a[k].mean() + a.mean() for l in range(d)]  # noqa: E741
            for k in range(d)
        ]
    )


def test_bdc_matrices_equal_the_equations() -> None:
    _, query = map_episodes()
    found = bdc_matrices(query[0], torch.tensor(0.3, dtype=torch.float64))
    for matrix, one_map in zip(found, query[0], strict=True):
        np.testing.assert_allclose(matrix, dense_bdc(one_map, 0.3), atol=1e-10)


def test_inner_products_of_bdc_matrices_are_distance_covariances() -> None:
    """Against the definition without centring (Szekely et al. 2007, Eq. 2.18)."""
    _, query = map_episodes(shape=(7, 3, 3))
    x, y = query[0, 0], query[0, 1]
    one = torch.tensor(1.0, dtype=torch.float64)
    # A large scale makes the constant under the root negligible.
    big = 1e12
    matrices = bdc_matrices(torch.stack([x, y]), big * one) / math.sqrt(big)
    a, b = (
        np.linalg.norm(t[:, None] - t[None], axis=-1)
        for t in (m.numpy().reshape(7, -1) for m in (x, y))
    )
    first = (a * b).mean()
    second = a.mean() * b.mean()
    third = (a.mean(1) * b.mean(1)).mean()
    covariance = first + second - 2 * third
    assert (matrices[0] * matrices[1]).mean().item() == pytest.approx(covariance, rel=1e-6)


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("shots", [(1, 1, 1), SHOTS])
def test_deepbdc_equals_loops(shots: tuple[int, ...], inner: bool) -> None:
    support, query = map_episodes(shots)
    head = BDCHead(8, 16, 256)
    assert not head.reduce
    assert head.log_scale.exp().item() == pytest.approx(1 / 32)
    head.inner.fill_(inner)
    scores = with_head(MetaDeepBDC(), head).adapt(support).predict(query)
    chosen = MetaDeepBDC(metric="inner" if inner else "euclidean")
    head.inner.fill_(not inner)
    assert torch.equal(with_head(chosen, head).adapt(support).predict(query), scores)
    scale = head.log_scale.exp().item()
    upper = np.triu_indices(8)
    for e in range(3):
        maps = [dense_bdc(m, scale)[upper] for m in support.inputs[e]]
        for i, asked in enumerate(query[e]):
            q = dense_bdc(asked, scale)[upper]
            for label in range(3):
                own = [m for m, y in zip(maps, support.labels[e], strict=True) if y == label]
                mean = np.mean(own, axis=0)
                expected = q @ mean if inner else -((q - mean) ** 2).sum()
                assert scores[e, i, label].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_deepbdc_reduces_channels_by_convolution_norm_and_relu() -> None:
    support, query = map_episodes()
    head = BDCHead(8, 16, 4)
    with torch.no_grad():
        head.reduce[1].running_mean.uniform_(-1, 1)
        head.reduce[1].running_var.uniform_(0.5, 2)
        head.reduce[1].bias.fill_(0.3)
    head.eval()
    conv, norm = head.reduce[0].weight[:, :, 0, 0].detach(), head.reduce[1]
    mixed = torch.einsum("oc,bchw->bohw", conv, query[0].float())
    shift, spread = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    reduced = ((mixed - shift) / (spread + norm.eps).sqrt() + 0.3).clamp_min(0)
    upper = np.triu_indices(4)
    expected = [dense_bdc(m.double(), head.log_scale.exp().item())[upper] for m in reduced]
    np.testing.assert_allclose(head(query[0]).detach(), np.stack(expected), atol=1e-5)
    by_euclid = with_head(MetaDeepBDC(reduce_dim=4), head).adapt(support)
    torch.testing.assert_close(
        by_euclid.kept[0][0],
        places.class_means(head.of_many(support.inputs)[0], support.labels[0], 3).detach(),
    )


@pytest.mark.parametrize("shot", [1, 2])
def test_deepbdc_compares_as_the_tasks_it_was_trained_on_do_in_the_paper(shot: int) -> None:
    source, backbone = StripesSource(shot=shot), SmallConv()
    method = MetaDeepBDC(pretrain_share=0.0)
    learned = method.meta_train(backbone, source, FakeRun(source, 1))
    assert bool(learned["head.inner"]) == (shot == 1)
    support, _ = map_episodes((3, 3, 3))
    method.prepare(backbone.eval(), {k: v for k, v in learned.items() if "head" in k})
    assert method.adapt(support).inner == (shot == 1)  # type: ignore[attr-defined]


def test_deepbdc_trains_on_batch_statistics_of_support_and_query_together() -> None:
    support, query = map_episodes((2, 2), n_episodes=1)
    alone, asked = one_of(support, 0), query[0].float()
    alone = replace(alone, inputs=alone.inputs.float())
    head = BDCHead(8, 16, 4).train()
    labels = torch.tensor([0, 1, 0, 1, 1])
    MetaDeepBDC(reduce_dim=4).loss(head, alone, asked, labels)
    mixed = head.reduce[0](torch.cat([alone.inputs, asked]))
    torch.testing.assert_close(head.reduce[1].running_mean, 0.1 * mixed.mean((0, 2, 3)))
    assert head.reduce[1].num_batches_tracked == 1


# --- CAN -----------------------------------------------------------------------------------------


def loop_attention(fusion: Fusion, correlations: np.ndarray, tau: float = 0.025) -> np.ndarray:
    """Eqs. 3 and 4 for one pair: attention over the rows, with the layers written out."""
    w1, b1, w2, b2 = (
        t.detach().double().numpy()
        for t in (
            fusion.squeeze.weight,
            fusion.squeeze.bias,
            fusion.expand.weight,
            fusion.expand.bias,
        )
    )
    mean, var = (t.double().numpy() for t in (fusion.norm.running_mean, fusion.norm.running_var))
    hidden = w1 @ correlations.mean(0) + b1
    hidden = np.maximum((hidden - mean) / np.sqrt(var + fusion.norm.eps), 0)
    kernel = w2 @ hidden + b2
    fused = np.array([np.mean(kernel * row) for row in correlations]) / tau
    e = np.exp(fused - fused.max())
    return 1 + e / e.sum()


def test_can_equals_loops_over_pairs() -> None:
    support, query = map_episodes()
    fusion = Fusion(16, 6, 0.025).eval()
    assert fusion.squeeze.weight.shape == (2, 16)
    with torch.no_grad():
        fusion.norm.running_mean.fill_(-0.1)
        fusion.norm.running_var.fill_(0.5)
    scores = with_head(CAN(), fusion).adapt(support).predict(query)
    for e in range(3):
        for label in range(3):
            p = mean_map(one_of(support, e), label)
            for i, asked in enumerate(query[e]):
                q = rows(asked)
                unit_p, unit_q = (
                    t / np.maximum(np.linalg.norm(t, axis=1, keepdims=True), 1e-12) for t in (p, q)
                )
                r = unit_p @ unit_q.T
                for_p, for_q = loop_attention(fusion, r), loop_attention(fusion, r.T)
                x, y = (for_p[:, None] * p).mean(0), (for_q[:, None] * q).mean(0)
                expected = 7 * x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
                assert scores[e, i, label].item() == pytest.approx(expected, rel=1e-5)


def test_can_trains_every_place_to_be_classified() -> None:
    support, query = map_episodes(n_episodes=1)
    alone, asked = one_of(support, 0), query[0]
    fusion = Fusion(16, 6, 0.025).eval()
    labels = torch.tensor([0, 1, 2, 2, 1])
    found = CAN().loss(fusion, alone, asked, labels).item()
    losses = []
    for one_map, y in zip(asked, labels.tolist(), strict=True):
        q = rows(one_map)
        features = []
        for label in range(3):
            p = mean_map(alone, label)
            r = (p / np.linalg.norm(p, axis=1, keepdims=True)) @ (
                q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-12)
            ).T
            features.append((loop_attention(fusion, r)[:, None] * p).mean(0))
        for x in q:
            logits = np.array([7 * cosine(x, f) for f in features])
            losses.append(np.log(np.exp(logits).sum()) - logits[y])
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


# --- CTX -----------------------------------------------------------------------------------------


def test_ctx_equals_loops_over_places() -> None:
    support, query = map_episodes()
    head = CTXHead(8, 6)
    scores = with_head(CTX(dim=6), head).adapt(support).predict(query)
    key, value = (t.weight.detach().double().numpy() for t in (head.key, head.value))
    for e in range(3):
        for label in range(3):
            own = pool(one_of(support, e), label)
            for i, asked in enumerate(query[e]):
                distance = 0.0
                for x in rows(asked):
                    logits = np.array([(key @ y) @ (key @ x) / math.sqrt(6) for y in own])
                    weights = np.exp(logits) / np.exp(logits).sum()
                    prototype = sum(w * (value @ y) for w, y in zip(weights, own, strict=True))
                    distance += ((prototype - value @ x) ** 2).sum()
                assert scores[e, i, label].item() == pytest.approx(-distance / 16, rel=1e-8)


# --- meta-training -------------------------------------------------------------------------------

TRAINED: dict[str, tuple[type[Any], dict[str, Any], int]] = {
    "dn4": (DN4, {}, 40),
    "frn": (FRN, {}, 40),
    "deepemd": (DeepEMD, {"solver": "sinkhorn", "iterations": 30}, 40),
    "deepbdc": (MetaDeepBDC, {"reduce_dim": 6}, 60),
    "can": (CAN, {}, 60),
    "ctx": (CTX, {"dim": 32}, 40),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_rises_well_above_chance_and_is_what_adaptation_uses(name: str) -> None:
    make, params, n_steps = TRAINED[name]
    torch.manual_seed(5)
    source, backbone = StripesSource(), SmallConv()
    run = FakeRun(source, n_steps, images=n_steps * source.images_per_task)
    learned = make(lr=3e-3, **params).meta_train(backbone, source, run)
    assert run.accuracies[-1] > 0.6  # chance is a third
    assert all(key.startswith(("backbone.", "head.")) for key in learned)
    method = make(**params)
    method.prepare(backbone.eval(), {k: v for k, v in learned.items() if k.startswith("head.")})
    hits = []
    with torch.no_grad():
        for i in range(20):
            task = source.task("test", i)
            maps = replace(task.support, inputs=backbone.feature_map(task.support.inputs))
            scores = method.adapt(maps).predict(backbone.feature_map(task.query))
            hits.append(scores.argmax(-1) == task.query_labels)
    assert torch.cat(hits).float().mean() > 0.6


@pytest.mark.parametrize("name", ["frn", "deepbdc", "can", "ctx"])
def test_training_moves_every_learned_part_of_the_head(name: str) -> None:
    make, params, _ = TRAINED[name]
    algorithm = make(**{**params, "pretrain_share": 0.0})
    source, backbone = StripesSource(), SmallConv()
    built: list[dict[str, Tensor]] = []
    build = algorithm.build

    def noting(seen: SmallConv) -> Any:
        head = build(seen)
        built.append({k: v.detach().clone() for k, v in head.named_parameters()})
        return head

    algorithm.build = noting
    learned = algorithm.meta_train(backbone, source, FakeRun(source, 2))
    for key, start in built[0].items():
        assert not torch.equal(learned[f"head.{key}"], start), key
