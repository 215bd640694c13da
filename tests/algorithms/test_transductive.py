"""Each transductive method against plain loops, closed forms and other people's code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, ContractError, Support
from medbench_algorithms.transductive import joint
from medbench_algorithms.transductive.bd_cspn import BDCSPN
from medbench_algorithms.transductive.gaussian_mixture import GaussianMixture
from medbench_algorithms.transductive.graph import distances_among, nearest_only, propagate
from medbench_algorithms.transductive.information import Information
from medbench_algorithms.transductive.joint import Joint, Points, compact
from medbench_algorithms.transductive.label_propagation import LabelPropagation
from medbench_algorithms.transductive.laplacian_shot import LaplacianShot, affinities, bound_updates
from medbench_algorithms.transductive.pt_map import PTMAP, power_transform
from medbench_algorithms.transductive.shifted import Shifted
from medbench_algorithms.transductive.sinkhorn import transport
from medbench_algorithms.transductive.tim import TIM, AlphaTIM
from medbench_algorithms.transductive.tpn import TPN, Widths
from medbench_algorithms.transductive.transductive_fine_tuning import TransductiveFineTuning

from .conftest import FakeRun, SmallConv, StripesSource, feature_episodes, one_of

Array = NDArray[np.float64]


def episodes(d: int = 7, offset: float = 1.0) -> tuple[Support, Tensor]:
    """Six episodes of four classes, unequal shots, float64; mostly positive features."""
    support, query = feature_episodes(d=d)
    return replace(support, inputs=support.inputs.double() + offset), query.double() + offset


def arrays(support: Support, query: Tensor, episode: int) -> tuple[Array, NDArray[np.int64], Array]:
    one = one_of(support, episode)
    return one.inputs.double().numpy(), one.labels.numpy(), query[episode].double().numpy()


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def class_means(x: Array, y: NDArray[np.int64]) -> Array:
    return np.stack([x[y == c].mean(0) for c in range(4)])


# --- TIM -----------------------------------------------------------------------------------------


def tim_loss(
    w: Tensor, x: Tensor, y: Tensor, q: Tensor, o: Information, alpha: float = 1.0
) -> Tensor:
    """Boudiaf et al., Eqs. 1, 3 and 4, of one episode; Tsallis entropies as in Veilleux et al."""
    log_s = (-o.tau / 2 * torch.cdist(x, w) ** 2).log_softmax(-1)
    p = (-o.tau / 2 * torch.cdist(q, w) ** 2).softmax(-1)

    def entropy(p: Tensor) -> Tensor:
        if alpha == 1:
            return -(p * p.log()).sum(-1)
        return (1 - (p**alpha).sum(-1)) / (alpha - 1)

    together, each = entropy(p.mean(0)), entropy(p).mean()
    return o.support * F.nll_loss(log_s, y) - o.marginal * together + o.conditional * each


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0, 7.0])
def test_gradient_of_tim_is_autograds(alpha: float) -> None:
    support, query = episodes()
    o = Information(tau=5.0, support=0.3, marginal=1.2, conditional=0.4, alpha=alpha)
    w = torch.randn(6, 4, 7, dtype=torch.float64, requires_grad=True)
    x, q = F.normalize(support.inputs, dim=-1), F.normalize(query, dim=-1)
    loss = sum(tim_loss(w[e], x[e], support.labels[e], q[e], o, alpha) for e in range(6))
    (expected,) = torch.autograd.grad(torch.as_tensor(loss), w)
    targets = F.one_hot(support.labels, 4).double().mT
    found = o.gradient(w.detach(), torch.cat([x, q], 1), targets)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_tim_gd_is_adam_on_the_papers_loss(alpha: float | None) -> None:
    support, query = episodes()
    if alpha is None:
        method: Joint = TIM(steps=40, head_lr=0.01)
        o = Information(tau=15.0, support=0.1, marginal=1.0, conditional=0.1)
    else:
        method = AlphaTIM(steps=40, head_lr=0.01, alpha=alpha)
        o = Information(tau=15.0, support=1.0, marginal=1.0, conditional=1.0)
    predictor = method.adapt(support)
    scores = predictor.predict(query)
    assert predictor.n_adapted == 28
    for e in range(6):
        x, q = F.normalize(support.inputs[e], dim=-1), F.normalize(query[e], dim=-1)
        y = support.labels[e]
        w = torch.stack([x[y == c].mean(0) for c in range(4)]).requires_grad_()
        adam = torch.optim.Adam([w], lr=0.01)
        for _ in range(40):
            adam.zero_grad()
            tim_loss(w, x, y, q, o, alpha or 1.0).backward()
            adam.step()
        expected = -7.5 * torch.cdist(q, w.detach()) ** 2
        torch.testing.assert_close(scores[e], expected, rtol=1e-7, atol=1e-7)


def test_alpha_tim_goes_to_tim_as_alpha_goes_to_one() -> None:
    support, query = episodes()
    tim = TIM(steps=30, head_lr=0.01, support_weight=1.0, conditional_weight=1.0)
    expected = tim.adapt(support).predict(query)
    scores = {
        alpha: AlphaTIM(steps=30, head_lr=0.01, alpha=alpha).adapt(support).predict(query)
        for alpha in (1.0, 1 + 1e-9, 1 - 1e-9, 1.01, 2.0)
    }
    assert torch.equal(scores[1.0], expected)
    for alpha in (1 + 1e-9, 1 - 1e-9):
        torch.testing.assert_close(scores[alpha], expected, rtol=1e-6, atol=1e-6)
    gaps = [float((scores[a] - expected).abs().max()) for a in (1.01, 2.0)]
    assert 0 < gaps[0] < 0.1 * gaps[1]


def test_alpha_follows_the_shots_as_in_the_authors_code() -> None:
    assert [AlphaTIM().order(s) for s in (1, 1.5, 2, 4, 5, 20)] == [2, 5, 5, 5, 7, 7]
    assert AlphaTIM(alpha=3.5).order(1) == 3.5


@pytest.mark.parametrize("d", [7, 40])  # fewer dimensions than examples, and more
def test_tim_adm_against_loops(d: int) -> None:
    support, query = episodes(d)
    scores = TIM(solver="adm", steps=12).adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        x, q = unit(x), unit(q)
        w = class_means(x, y)
        for _ in range(12):
            p_s = softmax(-7.5 * cdist(x, w, "sqeuclidean"))
            p_q = softmax(-7.5 * cdist(q, w, "sqeuclidean"))
            aux = p_q**1.1 / (p_q**1.1).sum(0) ** 0.5  # Eq. 9
            aux /= aux.sum(1, keepdims=True)
            new = np.zeros_like(w)
            for k in range(4):  # Eq. 10
                a, b = 0.1 / 1.1, len(x) / len(q)
                above = a * (
                    x[y == k].sum(0)
                    + sum(p * (w[k] - z) for p, z in zip(p_s[:, k], x, strict=True))
                )
                above += b * (
                    aux[:, k] @ q + sum(p * (w[k] - z) for p, z in zip(p_q[:, k], q, strict=True))
                )
                new[k] = above / (a * (y == k).sum() + b * aux[:, k].sum())
            w = new
        expected = -7.5 * cdist(q, w, "sqeuclidean")
        np.testing.assert_allclose(scores[e], expected, rtol=1e-8, atol=1e-8)


def test_weights_of_tim_adm_move_down_the_gradient_for_fixed_auxiliaries() -> None:
    support, query = episodes()
    one, q = one_of(support, 0), F.normalize(query[0], dim=-1)
    x, y = F.normalize(one.inputs, dim=-1), F.one_hot(one.labels, 4).double()
    o = Information(tau=15.0, support=0.1, marginal=1.0, conditional=0.1)
    w = torch.stack([x[one.labels == c].mean(0) for c in range(4)]).requires_grad_()
    log_q = (-7.5 * torch.cdist(q, w) ** 2).log_softmax(-1)
    aux = o.auxiliary(log_q.detach().mT[None], 0.5)[0].mT
    log_s = (-7.5 * torch.cdist(x, w) ** 2).log_softmax(-1)
    # What is left of the objective for fixed q, Eq. 7.
    part = -0.1 / len(x) * (y * log_s).sum() - 1.1 / len(q) * (aux * log_q).sum()
    (gradient,) = torch.autograd.grad(part, w)
    features = torch.cat([x, q])[None]
    moved = o.alternate(w.detach()[None], features, y.mT[None], n_steps=1)[0] - w.detach()
    weight = 0.1 / len(x) * y.sum(0) + 1.1 / len(q) * aux.sum(0)
    torch.testing.assert_close(moved, -gradient / (15 * weight[:, None]), rtol=1e-9, atol=1e-12)


def test_tim_raises_the_information_it_is_named_for() -> None:
    support, query = episodes(30)
    q = query[0]

    def information(scores: Tensor) -> float:
        p = scores.softmax(-1)
        whole = p.mean(0)
        return float(-(whole * whole.log()).sum() + 0.1 * (p * p.log()).sum(-1).mean())

    one = one_of(support, 0)
    found = [
        information(m.adapt(one).predict(q))
        for m in (TIM(steps=1, head_lr=1e-9), TIM(head_lr=1e-3, steps=300), TIM(solver="adm"))
    ]
    assert found[1] > found[0] + 0.05
    assert found[2] > found[0] + 0.05


# --- BD-CSPN and LaplacianShot -------------------------------------------------------------------


@pytest.mark.parametrize("confident", [None, 1, 2])
def test_bd_cspn_against_loops(confident: int | None) -> None:
    support, query = episodes()
    scores = BDCSPN(epsilon=8.0, confident=confident).adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        x, q = unit(x), unit(q)
        q = q + x.mean(0) - q.mean(0)
        plain = class_means(x, y)
        cos = 1 - cdist(q, plain, "cosine")
        guess, rectified = cos.argmax(1), []
        for c in range(4):
            own = np.flatnonzero(guess == c)
            sure = softmax(8 * cos)[own, c]
            own = own[np.argsort(-sure)][:confident]
            members = np.concatenate([x[y == c], q[own]])
            weights = softmax(8 * (1 - cdist(plain[c : c + 1], members, "cosine")))
            rectified.append(weights[0] @ members)
        expected = 8 * (1 - cdist(q, np.stack(rectified), "cosine"))
        np.testing.assert_allclose(scores[e], expected, atol=1e-10)


def laplacian_by_loops(x: Array, y: NDArray[np.int64], q: Array, *, rectify: bool) -> Array:
    """As the authors' code goes, but for classes without members, which it drops."""
    means = class_means(x, y)
    if rectify:
        q = q + x.mean(0) - q.mean(0)
        both = np.concatenate([x, q])
        cos = 1 - cdist(both, means, "cosine")
        weights, guess = softmax(10 * cos), cos.argmax(1)
        plain = means.copy()
        for c in set(guess):
            own = guess == c
            means[c] = (weights[own, c, None] * both[own]).mean(0)
        assert (plain != means).any()
    unary = cdist(q, means, "sqeuclidean")
    near = NearestNeighbors(n_neighbors=3).fit(q).kneighbors(q)[1][:, 1:]
    kernel = np.zeros((len(q), len(q)))
    for i, row in enumerate(near):
        kernel[i, row] = 1
    assigned, before = softmax(-unary), np.inf
    for i in range(20):
        assigned = softmax(-unary + 0.7 * kernel @ assigned)
        inside = np.log(np.maximum(assigned, 1e-20)) + unary - 0.7 * kernel @ assigned
        energy = (assigned * inside).sum()
        if i > 1 and abs(energy - before) <= 1e-6 * abs(before):
            break
        before = energy
    return np.asarray(np.log(assigned))


@pytest.mark.parametrize("rectify", [True, False])
def test_laplacian_shot_against_loops(rectify: bool) -> None:
    support, query = episodes()
    method = LaplacianShot(strength=0.7, rectify=rectify)
    mean = torch.linspace(0, 1, 7)
    method.prepare(SmallConv(), {"mean": mean})
    scores = method.adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        x, q = unit(x - mean.numpy()), unit(q - mean.numpy())
        expected = laplacian_by_loops(x, y, q, rectify=rectify)
        np.testing.assert_allclose(scores[e], expected, atol=1e-6)


def test_bound_updates_never_raise_the_relaxed_objective() -> None:
    # Guaranteed where affinities are symmetric and positive semi-definite (section 2.2).
    points = torch.randn(3, 12, 4, dtype=torch.float64)
    kernel = torch.exp(-0.1 * torch.cdist(points, points) ** 2)
    unary = 3 * torch.rand(3, 5, 12, dtype=torch.float64)
    objectives = []
    for n in range(1, 15):
        log_y = bound_updates(unary, kernel, 1.5, n)
        y = log_y.exp()
        torch.testing.assert_close(y.sum(-2), torch.ones(3, 12, dtype=torch.float64))
        pairs = 0.75 * (y * (y @ kernel)).sum((-2, -1))
        objectives.append((y * (log_y + unary)).sum((-2, -1)) - pairs)
    steps = torch.stack(objectives).diff(dim=0)
    assert steps.max() <= 1e-12
    assert (steps[0] < -1e-4).all()


def test_an_episode_stops_by_itself_whatever_others_do() -> None:
    # The second episode converges at once; the first would drag it on.
    unary = torch.stack([2 * torch.rand(4, 9), torch.zeros(4, 9)]).double()
    unary[1, 0] = -8
    kernel = (torch.rand(2, 9, 9) < 0.3).double()
    together = bound_updates(unary, kernel, 2.0, 20)
    for e in range(2):
        alone = bound_updates(unary[e : e + 1], kernel[e : e + 1], 2.0, 20)
        assert torch.equal(alone[0], together[e])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("move", [True, False])
def test_shifted_features_equal_those_moved_in_memory(scaled: bool, move: bool) -> None:
    support, query = episodes()
    rows = torch.cat([support.inputs, query], 1)
    rows[:, [0, 12]] = 0  # a null feature on either side
    targets = F.one_hot(support.labels, 4).double().mT
    lengths = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12) if scaled else None
    shifted = Shifted(Points(rows.clone(), lengths), targets, move=move)
    x, q = (F.normalize(rows, dim=-1) if scaled else rows).split([11, 9], 1)
    q = q + (x.mean(1, keepdim=True) - q.mean(1, keepdim=True)) * move
    both, means = torch.cat([x, q], 1), targets / targets.sum(-1, keepdim=True) @ x
    vectors, weights = torch.randn(6, 4, 7).double(), torch.rand(6, 4, 20).double()
    unit = [F.normalize(z, dim=-1) for z in (both, means, vectors)]
    torch.testing.assert_close(shifted.plain, means)
    torch.testing.assert_close(shifted.squares, both.square().sum(-1).unsqueeze(-2))
    torch.testing.assert_close(shifted.cosines, unit[1] @ unit[0].mT)
    torch.testing.assert_close(shifted.products_of_queries(vectors), vectors @ q.mT)
    torch.testing.assert_close(shifted.cosines_of_queries(vectors), unit[2] @ unit[0][:, 11:].mT)
    torch.testing.assert_close(shifted.sums(weights), weights @ both)
    # Distances lack what a row has in common, and those of a null feature are all equal.
    apart = torch.cdist(q, q)
    order = shifted.distances_among_queries().argsort(-1)
    torch.testing.assert_close(apart.gather(-1, order), apart.sort(-1).values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 8, 20])
def test_few_and_many_neighbours_are_the_nearest_others(k: int) -> None:
    distances = torch.cdist(*2 * [torch.randn(3, 9, 5)])
    distances[1] = 1.0  # ties: as many neighbours as asked for, and never the point itself
    found = affinities(distances.clone(), k)
    assert torch.equal(found.sum(-1), torch.full((3, 9), float(min(k, 8))))
    assert (found.diagonal(dim1=-2, dim2=-1) == 0).all()
    expected = torch.zeros(9, 9)
    for i, row in enumerate(distances[0]):
        expected[i, row.argsort()[1 : k + 1]] = 1
    assert torch.equal(found[0], expected)


def test_one_query_of_the_shifting_methods_is_told_apart() -> None:
    support, query = episodes()
    for method in (BDCSPN(), LaplacianShot(normalize="l2"), PTMAP()):
        predictor = method.adapt(one_of(support, 0))
        own = one_of(support, 0).inputs[3:4]
        a, b = predictor.predict(query[0, :1]), predictor.predict(query[0, 1:2])
        assert not torch.allclose(a, b, rtol=1e-3)
        assert predictor.predict(own).argmax() == support.labels[0, 3]


# --- PT-MAP --------------------------------------------------------------------------------------


def test_the_plan_has_its_marginals_and_the_form_of_an_optimum() -> None:
    log_kernel = -10 * torch.rand(5, 4, 12, dtype=torch.float64)
    totals = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64).expand(5, -1)
    log_plan, _ = transport(log_kernel, totals, torch.zeros_like(totals), tolerance=1e-10)
    torch.testing.assert_close(log_plan.exp().sum(-2), torch.ones(5, 12, dtype=torch.float64))
    torch.testing.assert_close(log_plan.exp().sum(-1), totals, rtol=1e-9, atol=0)
    # The entropic optimum is the one plan with these sums that is kernel times row times column.
    scaled = log_plan - log_kernel
    centred = scaled - scaled.mean(-1, keepdim=True) - scaled.mean(-2, keepdim=True)
    torch.testing.assert_close(centred, centred.mean((-2, -1), keepdim=True).expand_as(centred))


def test_a_cold_plan_is_the_best_assignment() -> None:
    cost = torch.rand(4, 3, 9, dtype=torch.float64)
    totals = torch.full((4, 3), 3.0, dtype=torch.float64)
    log_plan, _ = transport(-300 * cost, totals, torch.zeros_like(totals), n_steps=2000)
    for e in range(4):
        rows, columns = linear_sum_assignment(np.repeat(cost[e].numpy(), 3, axis=0))
        best = np.empty(9, dtype=int)
        best[columns] = rows // 3
        np.testing.assert_array_equal(log_plan[e].argmax(0), best)
        total = float((log_plan[e].exp() * cost[e]).sum())
        assert total == pytest.approx(float(cost[e][best, range(9)].sum()), abs=0.02)


def test_plans_of_kernels_that_underflow_are_finite() -> None:
    log_kernel = -1e5 * torch.rand(2, 3, 6, dtype=torch.float64)
    totals = torch.full((2, 3), 2.0, dtype=torch.float64)
    log_plan, potentials = transport(log_kernel, totals, torch.zeros_like(totals), n_steps=50)
    assert torch.isfinite(log_plan).all()
    assert torch.isfinite(potentials).all()
    torch.testing.assert_close(log_plan.exp().sum(-2), torch.ones(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("d", [7, 40])
def test_pt_map_against_loops(d: int) -> None:
    support, query = episodes(d)
    scores = PTMAP(steps=6).adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        x, q = (unit((np.maximum(z, 0) + 1e-6) ** 0.5) for z in (x, q))
        x, q = unit(x - x.mean(0)), unit(q - q.mean(0))
        centres = class_means(x, y)
        for step in range(7):
            plan = np.exp(-10 * cdist(q, centres, "sqeuclidean"))
            for _ in range(1000):
                plan *= len(q) / 4 / plan.sum(0)
                plan /= plan.sum(1, keepdims=True)
            if step < 6:
                means = [
                    (x[y == c].sum(0) + plan[:, c] @ q) / ((y == c).sum() + plan[:, c].sum())
                    for c in range(4)
                ]
                centres = centres + 0.2 * (np.stack(means) - centres)
        np.testing.assert_allclose(scores[e].exp(), plan, atol=1e-5)
        np.testing.assert_allclose(scores[e].exp().sum(0), len(q) / 4, rtol=2e-6)


def test_power_transform_by_hand() -> None:
    x = torch.tensor([[9.0, 16.0, -4.0]], dtype=torch.float64)
    clipped, signed = (power_transform(x, 0.5, how) for how in ("clip", "sign"))  # type: ignore[arg-type]
    torch.testing.assert_close(
        clipped, torch.tensor([[0.6, 0.8, 0.0002]]).double(), atol=1e-6, rtol=0
    )
    expected = torch.tensor([[3.0, 4.0, -2.0]]).double() / 29**0.5
    torch.testing.assert_close(signed, expected, atol=1e-6, rtol=0)


# --- transductive fine-tuning --------------------------------------------------------------------


def test_transductive_fine_tuning_against_autograd() -> None:
    support, query = episodes(offset=0.0)
    method = TransductiveFineTuning(epochs=15, head_lr=0.02, entropy_weight=0.5)
    predictor = method.adapt(support)
    scores = predictor.predict(query)
    assert predictor.n_adapted == 4 * 7 + 4
    for e in range(6):
        x, q, y = support.inputs[e].relu(), query[e].relu(), support.labels[e]
        head = torch.nn.Linear(7, 4).double()
        with torch.no_grad():
            means = torch.stack([x[y == c].mean(0) for c in range(4)])
            head.weight.copy_(F.normalize(means, dim=-1))
            head.bias.zero_()
        x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
        adam = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(15):
            adam.zero_grad()
            F.cross_entropy(head(x), y).backward()
            adam.step()
            adam.zero_grad()
            p = head(q).softmax(-1)
            (-0.5 * (p * p.log()).sum(-1).mean()).backward()
            adam.step()
        torch.testing.assert_close(scores[e], head(q).detach(), rtol=1e-8, atol=1e-8)


# --- label propagation ---------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [None, 4])
@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
def test_label_propagation_against_a_matrix_inverse(kernel: str, neighbours: int | None) -> None:
    support, query = episodes(offset=0.0)
    method = LabelPropagation(
        kernel=kernel,  # type: ignore[arg-type]
        sigma=0.6,
        alpha=0.9,
        neighbours=neighbours,
        normalize="l2",
    )
    scores = method.adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        z = unit(np.concatenate([x, q]))
        w = np.exp(-cdist(z, z, "sqeuclidean") / 0.72)
        if kernel == "cosine":
            w = np.maximum(z @ z.T, 0)
        np.fill_diagonal(w, 0)
        if neighbours:
            keep = np.zeros_like(w, dtype=bool)
            for i, row in enumerate(w):
                keep[i, np.argsort(-row)[:neighbours]] = True
            w = w * (keep | keep.T)
        root = np.diag(w.sum(1) ** -0.5)
        labels = np.concatenate([np.eye(4)[y], np.zeros((len(q), 4))])
        spread = np.linalg.inv(np.eye(len(z)) - 0.9 * root @ w @ root) @ labels
        expected = spread[len(x) :] / spread[len(x) :].sum(1, keepdims=True)
        np.testing.assert_allclose(scores[e].exp(), expected, atol=1e-10)


def test_label_propagation_equals_scikit_learn() -> None:
    support, query = episodes(offset=0.0)
    scores = LabelPropagation(sigma=1.5, alpha=0.7, normalize="none").adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        judge = LabelSpreading(kernel="rbf", gamma=1 / 4.5, alpha=0.7, tol=1e-13, max_iter=10_000)
        judge.fit(np.concatenate([x, q]), np.concatenate([y, np.full(len(q), -1)]))
        expected = judge.label_distributions_[len(x) :]
        np.testing.assert_allclose(scores[e].exp(), expected, atol=1e-9)


def test_a_query_that_nothing_reaches_is_as_likely_of_any_class() -> None:
    support, query = episodes()
    query = query.clone()
    query[:, 0] = 1e6
    scores = LabelPropagation(sigma=1.0, normalize="none").adapt(support).predict(query)
    torch.testing.assert_close(scores[:, 0].exp(), torch.full((6, 4), 0.25).double())
    assert (scores[:, 1:].exp().max(-1).values > 0.3).any()


def test_nearest_only_keeps_pairs_wanted_by_either() -> None:
    affinity = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    expected = torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 2.0], [0.0, 2.0, 0.0]])
    assert torch.equal(nearest_only(affinity, 1), expected)


def test_distances_among_features_are_symmetric_and_survive_a_common_offset() -> None:
    features = torch.randn(2, 12, 30)
    exact = torch.cdist(features.double(), features.double()).square().float()
    for offset in (0.0, 100.0):
        found = distances_among(features + offset)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=2e-3)
        assert torch.equal(found, found.mT)
        assert (found.diagonal(dim1=-2, dim2=-1) == 0).all()


# --- TPN -----------------------------------------------------------------------------------------


def test_tpn_against_a_matrix_inverse() -> None:
    support, query = episodes()
    torch.manual_seed(3)
    widths = Widths(7).double()
    with torch.no_grad():
        widths.layers[-1].weight.mul_(8)  # widths that differ
    scores = TPN(k=5, alpha=0.95).predictor(widths, support).predict(query).detach()
    for e in range(6):
        x, y, q = arrays(support, query, e)
        z = np.concatenate([x, q])
        sigma = widths(torch.tensor(z)).detach().numpy()
        assert sigma.std() > 0.01
        z = z / sigma
        w = np.exp(-cdist(z, z, "sqeuclidean") / 7 / 2)  # Eq. 2
        keep = np.zeros_like(w, dtype=bool)
        for i, row in enumerate(w):
            keep[i, np.argsort(-row)[:5]] = True
        w = w * (keep | keep.T)
        root = np.diag(w.sum(1) ** -0.5)
        labels = np.concatenate([np.eye(4)[y], np.zeros((len(q), 4))])
        spread = np.linalg.inv(np.eye(len(z)) - 0.95 * root @ w @ root) @ labels  # Eq. 4
        np.testing.assert_allclose(scores[e], spread[len(x) :], rtol=1e-9, atol=1e-9)


def test_the_loss_of_tpn_is_over_support_and_queries_and_trains_widths_and_features() -> None:
    support, query = episodes()
    one, widths = one_of(support, 0), Widths(7).double()
    one = replace(one, inputs=one.inputs.clone().requires_grad_())
    labels, method = torch.arange(9) % 4, TPN(k=6)
    loss = method.loss(widths, one, query[0], labels)
    scores = method.predictor(widths, one).propagated(query[0])
    assert len(scores) == 11 + 9
    logs = scores.log_softmax(-1)
    everyone = torch.cat([one.labels, labels])
    torch.testing.assert_close(loss, -logs[torch.arange(20), everyone].mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in widths.parameters())
    assert one.inputs.grad is not None
    assert one.inputs.grad.abs().max() > 0


def test_tpn_learns_from_episodes_and_predicts_with_what_it_learned() -> None:
    torch.manual_seed(5)
    source = StripesSource()
    run, backbone = FakeRun(source, 60), SmallConv()
    learned = TPN(lr=3e-3).meta_train(backbone, source, run)
    assert run.accuracies[-1] > 0.65  # chance is a third
    assert sum(run.losses[-8:]) < 0.9 * sum(run.losses[:8])
    backbone.load_state_dict({k[9:]: v for k, v in learned.items() if k.startswith("backbone.")})
    method = TPN()
    method.prepare(backbone.eval(), learned)
    hits = []
    for i in range(20):
        task = source.task("test", i)
        with torch.no_grad():
            inputs, asked = backbone(task.support.inputs), backbone(task.query)
        scores = method.adapt(replace(task.support, inputs=inputs)).predict(asked)
        hits.append((scores.argmax(-1) == task.query_labels).float().mean())
    assert torch.stack(hits).mean() > 0.65
    with pytest.raises(ContractError, match="Meta-train it first"):
        TPN().prepare(backbone, {})


# --- Gaussian mixture ----------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["spherical", "diag", "tied"])
def test_without_labels_the_mixture_is_scikit_learns(covariance: str) -> None:
    """With a covariance for each class; or with one for all, in one dimension, where it is tied."""
    d = 1 if covariance == "tied" else 5
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(size=(20, d)) + 2.5 * rng.normal(size=d) for _ in range(3)])
    start = x[[5, 25, 45]]
    shape = {"spherical": (3,), "diag": (3, d), "tied": (d, d)}[covariance]
    judge = SklearnMixture(
        3,
        covariance_type=covariance,
        reg_covar=0.0,
        tol=0.0,
        max_iter=25,
        means_init=start,
        weights_init=np.full(3, 1 / 3),
        precisions_init=np.ones(shape),
    )
    with pytest.warns(match="did not converge"):
        judge.fit(x)
    ours = GaussianMixture(
        covariance="diag" if covariance == "diag" else "spherical",
        shared=covariance == "tied",
        tolerance=-1.0,
        steps=25,
    )
    points = torch.tensor(x)[None]
    nobody, targets = points[:, :0], torch.zeros(1, 0, 3).double()
    mixture = replace(
        ours.start(points, nobody, torch.ones(1, 60, 3).double()),
        means=torch.tensor(start)[None],
        log_weights=torch.full((1, 3), 1 / 3).double().log(),
    )
    mixture = replace(mixture, variances=torch.ones_like(mixture.variances))
    mixture, history = ours.fit(mixture, nobody, points, targets)
    np.testing.assert_allclose(mixture.means[0], judge.means_, atol=1e-8)
    found = mixture.variances[0].expand(1 if covariance == "tied" else 3, -1)
    expected = np.asarray(judge.covariances_).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_allclose(mixture.log_weights[0].exp(), judge.weights_, atol=1e-8)
    # scikit-learn's bound is that of its last E step, before its last M step.
    assert float(history[-1]) == pytest.approx(judge.lower_bound_, abs=1e-9)
    posterior = mixture.log_joint(points)[0].softmax(-1)
    np.testing.assert_allclose(posterior, judge.predict_proba(x), atol=1e-7)


@pytest.mark.parametrize("query_weight", [1.0, 0.3])
@pytest.mark.parametrize("learn_weights", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("covariance", ["spherical", "diag"])
def test_em_never_lowers_its_objective(
    covariance: str, shared: bool, learn_weights: bool, query_weight: float
) -> None:
    support, query = episodes(20)
    method = GaussianMixture(
        covariance=covariance,  # type: ignore[arg-type]
        shared=shared,
        learn_weights=learn_weights,
        query_weight=query_weight,
        tolerance=0.0,
        steps=30,
    )
    targets = F.one_hot(support.labels, 4).double()
    start = method.start(support.inputs, query, targets)
    _, history = method.fit(start, support.inputs, query, targets)
    gains = torch.stack(history).diff(dim=0)
    assert gains.min() > -1e-10
    assert (gains[0] > 1e-3).all()


@pytest.mark.parametrize("d", [7, 40])
def test_the_mixture_with_labels_against_loops(d: int) -> None:
    support, query = episodes(d)
    method = GaussianMixture(normalize="none", steps=7, tolerance=-1.0)
    scores = method.adapt(support).predict(query)
    assert method.adapt(support).n_adapted == 4 * d + 1 + 4
    for e in range(6):
        x, y, q = arrays(support, query, e)
        z = np.concatenate([x, q])
        known = np.eye(4)[y]
        means, shares = class_means(x, y), known.mean(0)
        variance = ((z - z.mean(0)) ** 2).mean()
        for step in range(8):
            logs = np.log(shares) - cdist(q, means, "sqeuclidean") / (2 * variance)
            r = np.concatenate([known, softmax(logs)])
            if step < 7:
                means = (r.T @ z) / r.sum(0)[:, None]
                shares = r.mean(0)
                variance = (r * cdist(z, means, "sqeuclidean")).sum() / (len(z) * d)
        expected = np.log(softmax(logs))
        np.testing.assert_allclose(scores[e], expected, rtol=1e-6, atol=1e-6)


# --- what all share ------------------------------------------------------------------------------

METHODS: dict[str, Joint | TPN] = {
    "tim": TIM(steps=20, head_lr=0.01),
    "tim-adm": TIM(solver="adm", steps=20),
    "alpha-tim": AlphaTIM(steps=20, head_lr=0.01),
    "laplacian-l2": LaplacianShot(normalize="l2"),
    "laplacian-plain": LaplacianShot(normalize="none", rectify=False, knn=5),
    "laplacian-alone": LaplacianShot(normalize="l2", knn=1),
    "bd-cspn": BDCSPN(),
    "bd-cspn-2": BDCSPN(confident=2, normalize="none"),
    "pt-map": PTMAP(),
    "pt-map-sign": PTMAP(negatives="sign", sharpness=25.0),
    "fine-tuning": TransductiveFineTuning(head_lr=0.01),
    "propagation": LabelPropagation(normalize="l2"),
    "propagation-cosine": LabelPropagation(kernel="cosine", neighbours=5, normalize="none"),
    "mixture": GaussianMixture(normalize="l2"),
    "mixture-diag": GaussianMixture(normalize="none", covariance="diag"),
    "mixture-own": GaussianMixture(normalize="l2", shared=False, learn_weights=False),
    "mixture-own-diag": GaussianMixture(normalize="l2", shared=False, covariance="diag"),
    "tpn": TPN(k=4),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Algorithm:
    found = METHODS[request.param]
    if isinstance(found, TPN):
        head = {f"head.{k}": v for k, v in Widths(128).state_dict().items()}
        found.prepare(SmallConv(), head)
    return found


def wide_episodes() -> tuple[Support, Tensor]:
    support, query = feature_episodes(d=128)
    return support, query


def test_a_batch_equals_its_episodes_in_any_form(
    method: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    support, query = wide_episodes()
    scores = method.adapt(support).predict(query).detach()
    scale = float(scores.max() - scores.min())
    for e in range(6):
        alone = method.adapt(one_of(support, e)).predict(query[e]).detach()
        assert float((alone - scores[e]).abs().max()) < 1e-4 * scale
    folded = replace(
        support,
        inputs=support.inputs.unflatten(0, (3, 2)),
        labels=support.labels.unflatten(0, (3, 2)),
    )
    again = method.adapt(folded).predict(query.unflatten(0, (3, 2))).detach()
    torch.testing.assert_close(again.flatten(0, 1), scores)
    monkeypatch.setattr(joint, "_NUMBERS_AT_ONCE_CPU", 4 * 128 * 20)
    in_blocks = method.adapt(support).predict(query).detach()
    assert float((in_blocks - scores).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("n_query", [1, 2, 9])
@pytest.mark.parametrize("shots", [(1, 1), (4, 1, 2)])
def test_nothing_makes_a_score_that_is_no_number(
    method: Algorithm, shots: tuple[int, ...], n_query: int
) -> None:
    support, query = feature_episodes(n_way=len(shots), shots=shots, d=128)
    query = query[:, :n_query]
    same = support.inputs[:, :1]
    for x, q in (
        (support.inputs, query),
        (torch.zeros_like(support.inputs), torch.zeros_like(query)),
        (support.inputs, torch.zeros_like(query)),
        (torch.ones_like(support.inputs), torch.ones_like(query)),
        (same.expand_as(support.inputs), same.expand_as(query)),
        (support.inputs, support.inputs[:, :1].expand_as(query)),
        (1e4 * support.inputs, 1e4 * query),
        (1e-6 * support.inputs, 1e-6 * query),
        (100 + 1e-3 * support.inputs, 100 + 1e-3 * query),
        (-support.inputs.abs(), -query.abs()),
    ):
        scores = method.adapt(replace(support, inputs=x)).predict(q)
        assert scores.shape == (6, n_query, len(shots))
        assert torch.isfinite(scores).all()


def test_methods_change_nothing_and_repeat_themselves(method: Algorithm) -> None:
    support, query = wide_episodes()
    kept = support.inputs.clone(), query.clone()
    predictor = method.adapt(support)
    first = predictor.predict(query)
    method.adapt(one_of(support, 2)).predict(query[2])
    assert torch.equal(predictor.predict(query), first)
    assert torch.equal(support.inputs, kept[0])
    assert torch.equal(query, kept[1])
    with torch.inference_mode():
        inside = replace(support, inputs=support.inputs.clone())
        torch.testing.assert_close(method.adapt(inside).predict(query.clone()), first)


def test_compact_points_keep_their_inner_products() -> None:
    points = torch.randn(3, 10, 50)
    points[1] = 0
    points[2, 5:] = points[2, :5]
    found = compact(points)
    assert found.shape == (3, 10, 10)
    exact = points.double() @ points.double().mT
    torch.testing.assert_close(found @ found.mT, exact, rtol=1e-10, atol=1e-9)
    assert compact(points[..., :8]).shape == (3, 10, 8)


def test_propagation_survives_an_empty_graph() -> None:
    known = F.one_hot(torch.tensor([[0, 1]]), 2).double()
    found = propagate(torch.zeros(1, 4, 4).double(), known, 0.9)
    assert torch.equal(found[0], torch.tensor([[1, 0], [0, 1], [0, 0], [0, 0]]).double())


@pytest.mark.parametrize("make", [LaplacianShot, LabelPropagation, GaussianMixture])
def test_centring_without_the_mean_says_what_to_do(make: Any) -> None:
    with pytest.raises(ContractError, match="normalize: l2"):
        make().prepare(SmallConv(), {})
    make(normalize="l2").prepare(SmallConv(), {})


def test_tim_adm_predicts_alike_alone_and_among_others_where_its_updates_are_chaotic() -> None:
    # Features of no structure: from the same start to a last digit, it ends somewhere else.
    torch.manual_seed(1)
    shift = 0.5 * torch.randn(288)
    x, q = ((0.3 * torch.randn(8, n, 288) + shift).relu() for n in (50, 75))
    support = Support(x, torch.arange(5).repeat_interleave(10).expand(8, -1), 5, tuple(range(8)))
    method = TIM(solver="adm")
    scores = method.adapt(support).predict(q)
    for e in range(8):
        alone = method.adapt(one_of(support, e)).predict(q[e])
        torch.testing.assert_close(alone, scores[e])
