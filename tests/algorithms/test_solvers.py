"""Methods with an inner solver, against other solvers, plain loops and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from medbench.api import Algorithm, ContractError, NonFinite, Support, Task, derive_seed
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_means
from medbench_algorithms.optimisation import svm
from medbench_algorithms.optimisation.clipping import clip_gradients
from medbench_algorithms.optimisation.latent import LatentHeads, log_ratio
from medbench_algorithms.optimisation.leo import LEO
from medbench_algorithms.optimisation.lstm_optimiser import (
    CoordinateLSTM,
    LSTMOptimiser,
    preprocess,
    unroll,
)
from medbench_algorithms.optimisation.metaoptnet import MetaOptNet
from medbench_algorithms.optimisation.noise import normals
from medbench_algorithms.optimisation.r2d2 import R2D2
from medbench_algorithms.optimisation.ridge import logistic_dual, ridge_dual
from medbench_algorithms.optimisation.versa import Amortiser, Versa

from .conftest import FakeRun, SmallConv, StripesSource, feature_episodes, one_of

N_FEATURES = 7  # of `feature_episodes`


class Seven(SmallConv):
    """A backbone with as many features as `feature_episodes` has."""

    def __init__(self) -> None:
        super().__init__()
        self.n_features = N_FEATURES


def with_head(method: Episodic[Any], head: nn.Module) -> Algorithm:
    """`method` as if training had learned `head`."""
    method.prepare(Seven(), {f"head.{k}": v for k, v in head.state_dict().items()})
    return method


def fresh(method: Episodic[Any]) -> tuple[Algorithm, Any]:
    torch.manual_seed(3)
    head = method.build(Seven())
    return with_head(method, head), head


def problem(n: int, d: int, c: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features ``(n, d)`` of overlapping classes, and labels in random order."""
    generator = torch.Generator().manual_seed(n * d * c)
    y = (torch.arange(n) % c)[torch.randperm(n, generator=generator)]
    x = torch.randn(c, d, generator=generator)[y] + torch.randn(n, d, generator=generator)
    return scale * x.double(), y


def hot(y: Tensor, c: int) -> Tensor:
    return F.one_hot(y, c).double()


# --- the support vector machine ------------------------------------------------------------------


def svm_weights(x: Tensor, y: Tensor, c: int, C: float) -> Tensor:
    return C * svm.dual(C * (x @ x.mT), hot(y, c)).mT @ x


def primal(w: Tensor, x: Tensor, y: Tensor, C: float) -> float:
    """Crammer and Singer's objective, as it is written."""
    scores = x @ w.mT
    own = scores.gather(1, y[:, None])
    margin = 1.0 - hot(y, len(w))
    return float(0.5 * w.square().sum() + C * (scores + margin - own).amax(1).sum())


@pytest.mark.parametrize("C", [0.1, 1.0])
@pytest.mark.parametrize(("n", "d", "c"), [(15, 10, 3), (25, 64, 5), (40, 4, 3), (5, 8, 5)])
def test_svm_against_scikit_learn(n: int, d: int, c: int, C: float) -> None:
    x, y = problem(n, d, c)
    judge = LinearSVC(
        multi_class="crammer_singer", C=C, fit_intercept=False, tol=1e-10, max_iter=10**6
    )
    judge.fit(x.numpy(), y.numpy())
    weight = svm_weights(x, y, c, C)
    np.testing.assert_allclose(weight, judge.coef_, atol=1e-6 * float(weight.abs().max()))


@pytest.mark.parametrize(("n", "d", "c"), [(6, 3, 2), (6, 3, 3), (9, 2, 3)])
def test_svm_dual_against_a_general_solver(n: int, d: int, c: int) -> None:
    """The dual of the authors: ``alpha <= C [m = y]``, rows of alpha sum to zero."""
    x, y = problem(n, d, c)
    C, kernel, targets = 0.5, (x @ x.mT).numpy(), hot(y, c).numpy()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        alpha = flat.reshape(n, c)
        product = kernel @ alpha
        return (
            0.5 * float((alpha * product).sum()) - float((alpha * targets).sum()),
            (product - targets).ravel(),
        )

    found = minimize(
        objective,
        np.zeros(n * c),
        jac=True,
        method="SLSQP",
        bounds=[(None, C * t) for t in targets.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda flat: flat.reshape(n, c).sum(1),
            "jac": lambda flat: np.kron(np.eye(n), np.ones((1, c))),
        },
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    alpha = C * svm.dual(C * (x @ x.mT), hot(y, c)).numpy()
    assert objective(alpha.ravel())[0] == pytest.approx(found.fun, abs=1e-7)
    assert (alpha <= C * targets + 1e-9).all()
    np.testing.assert_allclose(alpha.sum(1), 0, atol=1e-9)
    expected = found.x.reshape(n, c).T @ x.numpy()
    np.testing.assert_allclose(alpha.T @ x.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize(("n", "d", "c"), [(25, 64, 5), (40, 3, 4), (60, 128, 3), (2, 5, 2)])
def test_svm_closes_the_gap_between_primal_and_dual(n: int, d: int, c: int, scale: float) -> None:
    x, y = problem(n, d, c, scale)
    for C in (0.1, 10.0):
        a = svm.dual(C * (x @ x.mT), hot(y, c))
        w = C * a.mT @ x
        value = primal(w, x, y, C)
        dual = float(C * (a * hot(y, c)).sum() - 0.5 * w.square().sum())
        assert abs(value - dual) <= 1e-6 * value


def test_svm_of_many_problems_equals_one_by_one_and_survives_null_features() -> None:
    x = torch.stack([problem(12, 6, 3, s)[0] for s in (0.01, 1.0, 50.0, 0.0)])
    y = torch.stack([problem(12, 6, 3)[1]] * 4)
    together = svm_weights(x.reshape(2, 2, 12, 6), y.reshape(2, 2, 12), 3, 0.1).reshape(4, 3, 6)
    for i in range(4):
        torch.testing.assert_close(svm_weights(x[i], y[i], 3, 0.1), together[i])
    assert not together[3].any()
    with pytest.raises(NonFinite, match="not finite"):
        svm.dual(torch.full((3, 3), torch.nan, dtype=torch.float64), hot(torch.arange(3), 3))


# The last has more examples than dimensions: the dual solution is not unique, the weights are.
@pytest.mark.parametrize(("n", "d", "c"), [(6, 8, 3), (10, 30, 5), (8, 5, 2), (15, 3, 3)])
def test_svm_gradients_equal_finite_differences(n: int, d: int, c: int) -> None:
    x, y = problem(n, d, c)
    x.requires_grad_()
    C = 0.3
    a = svm.dual(C * (x @ x.mT), hot(y, c)).detach()
    inside = (a < -1e-6).sum(-1) + ((a > 1e-6) & (a < 1 - 1e-6)).sum(-1)
    assert (inside > 1).any()  # something is free to move
    generator = torch.Generator().manual_seed(1)
    found = svm_weights(x, y, c, C)
    for _ in range(3):
        of_result = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(found, x, of_result, retain_graph=True)
        for _ in range(4):
            way = torch.randn(x.shape, generator=generator, dtype=torch.float64) * 1e-5
            above, below = (svm_weights(x.detach() + s * way, y, c, C) for s in (1, -1))
            slope = ((above - below) * of_result).sum() / 2
            torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-5, atol=1e-11)


def test_metaoptnet_is_the_svm_times_its_factor() -> None:
    support, query = feature_episodes()
    method, head = fresh(MetaOptNet(C=0.2))
    with torch.no_grad():
        head.factor.fill_(3.0)
    with_head(method, head)  # type: ignore[arg-type]
    predictor = method.adapt(support)
    assert predictor.n_adapted == 4 * N_FEATURES
    scores = predictor.predict(query)
    for e in range(6):
        judge = LinearSVC(
            multi_class="crammer_singer", C=0.2, fit_intercept=False, tol=1e-9, max_iter=10**6
        ).fit(support.inputs[e].double().numpy(), support.labels[e].numpy())
        expected = 3 * query[e].double().numpy() @ judge.coef_.T
        np.testing.assert_allclose(scores[e], expected, rtol=1e-4, atol=1e-5)


def test_metaoptnet_ridge_fits_two_for_the_own_class() -> None:
    support, query = feature_episodes()
    scores = fresh(MetaOptNet(head="ridge", ridge_lambda=5.0))[0].adapt(support).predict(query)
    for e in range(6):
        judge = Ridge(alpha=5.0, fit_intercept=False)
        judge.fit(support.inputs[e].double().numpy(), 2 * hot(support.labels[e], 4).numpy())
        np.testing.assert_allclose(scores[e], judge.predict(query[e].double()), atol=1e-5)


@pytest.mark.parametrize("n_way", [2, 4])
def test_metaoptnet_smooths_labels_as_the_authors_do(n_way: int) -> None:
    support, query = feature_episodes(1, n_way, (2,) * n_way)
    labels = torch.arange(9) % n_way
    method = MetaOptNet(label_smoothing=0.1)
    head = method.build(Seven())
    alone = one_of(support, 0)
    log_p = method.predictor(head, alone).predict(query[0]).log_softmax(-1)
    smooth = torch.full((9, n_way), 0.1 / (n_way - 1))
    smooth[torch.arange(9), labels] = 0.9
    expected = -(smooth * log_p).sum(-1).mean()
    torch.testing.assert_close(method.loss(head, alone, query[0], labels), expected)


# --- closed forms --------------------------------------------------------------------------------


def with_ones(x: Tensor) -> np.ndarray:
    return np.concatenate([x.double().numpy(), np.ones((len(x), 1))], 1)


@pytest.mark.parametrize("shots", [(1, 1, 1, 1), (3, 1, 5, 2)])
def test_r2d2_against_scikit_learn(shots: tuple[int, ...]) -> None:
    support, query = feature_episodes(shots=shots)
    method, head = fresh(R2D2(ridge_lambda=2.0))
    with torch.no_grad():
        head.scale.fill_(4.0)
        head.bias.fill_(0.5)
    with_head(method, head)  # type: ignore[arg-type]
    predictor = method.adapt(support)
    assert predictor.n_adapted == 4 * (N_FEATURES + 1)
    scores = predictor.predict(query)
    for e in range(6):
        judge = Ridge(alpha=2.0, fit_intercept=False)
        judge.fit(with_ones(support.inputs[e]), hot(support.labels[e], 4).numpy())
        expected = 4 * judge.predict(with_ones(query[e])) + 0.5
        np.testing.assert_allclose(scores[e], expected, rtol=1e-5, atol=1e-5)


def test_ridge_and_logistic_gradients_equal_finite_differences() -> None:
    x, y = problem(6, 4, 3)
    x.requires_grad_()
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def ridge(x: Tensor, penalty: Tensor) -> Tensor:
        return ridge_dual(x @ x.mT, hot(y, 3), penalty).mT @ x

    def logistic(x: Tensor, penalty: Tensor) -> Tensor:
        return logistic_dual(x @ x.mT, hot(y, 3), penalty, 4).mT @ x

    torch.autograd.gradcheck(ridge, (x, penalty))
    torch.autograd.gradcheck(logistic, (x, penalty))


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_lrd2_converges_to_scikit_learn(penalty: float) -> None:
    support, query = feature_episodes()
    method = fresh(R2D2(head="logistic", ridge_lambda=penalty, newton_steps=30))[0]
    scores = method.adapt(support).predict(query)
    for e in range(6):
        x, asked = with_ones(support.inputs[e]), with_ones(query[e])
        for c in range(4):
            judge = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=1000)
            judge.fit(x, (support.labels[e] == c).numpy())
            expected = judge.decision_function(asked)
            np.testing.assert_allclose(scores[e, :, c], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_lrd2_takes_the_steps_of_newton_in_primal_weights(n_steps: int) -> None:
    support, query = feature_episodes()
    method = fresh(R2D2(head="logistic", ridge_lambda=0.3, newton_steps=n_steps))[0]
    scores = method.adapt(support).predict(query)
    for e in range(2):
        x, asked = with_ones(support.inputs[e]), with_ones(query[e])
        for c in range(4):
            y = (support.labels[e] == c).double().numpy()
            w = np.zeros(x.shape[1])
            for _ in range(n_steps):
                mu = 1 / (1 + np.exp(-x @ w))
                hessian = x.T @ np.diag(mu * (1 - mu)) @ x + 0.3 * np.eye(len(w))
                w = w - np.linalg.solve(hessian, x.T @ (mu - y) + 0.3 * w)
            np.testing.assert_allclose(scores[e, :, c], asked @ w, rtol=1e-5, atol=1e-5)


# --- LEO -----------------------------------------------------------------------------------------


def leo_by_hand(
    head: LatentHeads,
    x: Tensor,
    y: Tensor,
    n_way: int,
    steps: tuple[int, int],
    noise: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1 for one episode: loops over pairs, gradients by autograd.

    Returns weights, first and last codes; all differentiable with respect to the head.
    """
    n, d = x.shape
    n_latents = head.encoder.weight.shape[0]
    h = x @ head.encoder.weight.T
    relation = [m.weight for m in head.relation if isinstance(m, nn.Linear)]
    per_class: list[list[Tensor]] = [[] for _ in range(n_way)]
    for i in range(n):
        of_pairs = []
        for j in range(n):
            v = torch.cat([h[i], h[j]])
            v = (relation[0] @ v).relu()
            v = (relation[1] @ v).relu()
            of_pairs.append(relation[2] @ v)
        per_class[int(y[i])].append(torch.stack(of_pairs).mean(0))
    codes = torch.stack([torch.stack(v).mean(0) for v in per_class])
    mean, raw = codes[:, :n_latents], codes[:, n_latents:]
    z = mean
    if noise is not None:
        z = mean + torch.clamp(raw.exp() - 1, min=1e-10) * noise[0]
    first = z

    def decode(z: Tensor, step: int) -> Tensor:
        out = z @ head.decoder.weight.T
        if noise is None:
            return out[:, :d]
        std = torch.clamp(out[:, d:].exp() - (1 - math.sqrt(2 / (n_way + d))), min=1e-10)
        return out[:, :d] + std * noise[1][step]

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.T, y, reduction="sum") * n_way / n

    for step in range(steps[0]):
        value = loss(decode(z, step))
        z = z - head.inner_lr * torch.autograd.grad(value, z, create_graph=True)[0]
    w = decode(z, steps[0])
    for _ in range(steps[1]):
        w = w - head.finetuning_lr * torch.autograd.grad(loss(w), w, create_graph=True)[0]
    return w, first, z


@pytest.fixture
def latent_heads() -> LatentHeads:
    torch.manual_seed(4)
    head = LatentHeads(N_FEATURES, 5, inner_lr=0.7, finetuning_lr=0.3, dropout=0.0).double()
    with torch.no_grad():
        head.decoder.weight.mul_(2)  # some deviations at their least, some not
    return head


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("steps", [(0, 0), (3, 2)])
def test_leo_adapts_as_algorithm_1_and_so_do_its_gradients(
    latent_heads: LatentHeads, sampled: bool, steps: tuple[int, int]
) -> None:
    support, query = feature_episodes()
    x, n_way = F.normalize(support.inputs.double(), dim=-1), 4
    noise = torch.randn(6, n_way, 5).double(), torch.randn(4, 6, n_way, N_FEATURES).double()
    found = latent_heads.adapt(x, support.labels, n_way, *steps, *(noise if sampled else ()))
    asked = torch.arange(9) % n_way
    total = expected_total = torch.zeros((), dtype=torch.float64)
    moved = 0.0
    for e in range(6):
        own = (noise[0][e], noise[1][:, e]) if sampled else None
        w, first, last = leo_by_hand(latent_heads, x[e], support.labels[e], n_way, steps, own)
        torch.testing.assert_close(found.weight[e], w)
        total = total + F.cross_entropy(query[e].double() @ found.weight[e].T, asked)
        expected_total = expected_total + F.cross_entropy(query[e].double() @ w.T, asked)
        moved += (first - last).square().mean().item() / 6
    assert found.moved.item() == pytest.approx(moved)
    parameters = list(latent_heads.parameters())
    ours = torch.autograd.grad(total, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected_total, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_leo_penalties_by_hand(latent_heads: LatentHeads) -> None:
    mean, std = torch.randn(3, 5).double(), torch.rand(3, 5).double() + 0.1
    noise = torch.randn(200_000, 3, 5).double()
    z = mean + std * noise
    expected = Normal(mean, std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(log_ratio(z, noise, std), expected)
    exact = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(log_ratio(z, noise, std).mean(0), exact, atol=0.02, rtol=0.02)
    rows = latent_heads.decoder.weight.T.detach().numpy()  # one for each latent
    cosines = np.corrcoef(rows) * 0
    for i in range(5):
        for j in range(5):
            cosines[i, j] = rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
    expected_correlation = ((cosines - np.eye(5)) ** 2).mean()
    assert latent_heads.correlation().item() == pytest.approx(expected_correlation)
    sizes = [
        p.square().sum().item() for k, p in latent_heads.named_parameters() if k.endswith("weight")
    ]
    assert len(sizes) == 5
    assert latent_heads.squared_size().item() == pytest.approx(sum(sizes))


def test_leo_loss_is_the_sum_of_its_parts() -> None:
    support, query = feature_episodes()
    alone, labels = one_of(support, 0), torch.arange(9) % 4
    alone = Support(alone.inputs.double(), alone.labels, 4, alone.seeds)
    weights = {"kl_weight": 0.3, "encoder_penalty": 0.2, "l2_penalty": 0.1}
    method = LEO(**weights, orthogonality_penalty=0.4, dropout=0.0, latents=5)
    torch.manual_seed(1)
    head = method.build(Seven()).train().double()
    noise = torch.randn(4, 5 + 6 * N_FEATURES, generator=alone.generator(), dtype=torch.float64)
    x = F.normalize(alone.inputs, dim=-1)
    of_weights = noise[:, 5:].unflatten(1, (6, N_FEATURES)).movedim(1, 0)
    w, first, last = leo_by_hand(head, x, alone.labels, 4, (5, 5), (noise[:, :5], of_weights))
    mean, raw = head.codes(x, alone.labels, 4)
    std = (raw.exp() - 1).clamp_min(1e-10)
    divergence = (Normal(mean, std).log_prob(first) - Normal(0.0, 1.0).log_prob(first)).mean()
    expected = (
        F.cross_entropy(F.normalize(query[0].double(), dim=-1) @ w.T, labels)
        + 0.3 * divergence
        + 0.2 * (first - last).square().mean()
        + 0.1 * head.squared_size() / 2
        + 0.4 * head.correlation()
    )
    found = method.loss(head, alone, query[0].double(), labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The last codes count as constants in their distance from the first.
    (of_lr,) = torch.autograd.grad(
        head.adapt(x, alone.labels, 4, 5, 5).moved, head.inner_lr, allow_unused=True
    )
    assert of_lr is None


def test_leo_at_test_takes_means_of_features_of_length_one() -> None:
    support, query = feature_episodes()
    method, head = fresh(LEO(latents=5))
    predictor = method.adapt(support)
    assert predictor.n_adapted == 4 * N_FEATURES
    scores = predictor.predict(query)
    wide = LatentHeads(N_FEATURES, 5, 1.0, 0.001, 0.3).double()
    wide.load_state_dict(head.state_dict())
    for e in range(6):
        x, q = (F.normalize(t[e], dim=-1).double() for t in (support.inputs, query))
        w, _, _ = leo_by_hand(wide, x, support.labels[e], 4, (5, 5), None)
        torch.testing.assert_close(scores[e], (q @ w.T).detach().float(), rtol=1e-5, atol=1e-6)


class Watching(FakeRun):
    """Notes after every step what the state was before it."""

    def log(self, loss: float) -> None:
        super().log(loss)
        kept = {k: v.clone() for name in ("backbone", "head") for k, v in self.named(name).items()}
        self.__dict__.setdefault("history", []).append(kept)

    def named(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.{k}": v for k, v in self.state[name].state_dict().items()}


def test_leo_learns_features_first_and_leaves_them_alone_then() -> None:
    source = StripesSource()
    run = Watching(source, 6, images=6 * source.images_per_task)
    learned = LEO().meta_train(SmallConv(), source, run)
    history = [*run.__dict__["history"], learned]
    for key in history[0]:
        moved = [not torch.equal(a[key], b[key]) for a, b in pairwise(history)]
        if key.startswith("head."):
            assert moved[:3] == [False] * 3
        else:
            assert moved[3:] == [False] * 3, key
        if key in ("backbone.net.0.weight", "head.encoder.weight"):
            assert sum(moved) == 3


def test_episodes_that_freeze_nothing_change_running_statistics_too() -> None:
    source = StripesSource()
    run = Watching(source, 2, images=2 * source.images_per_task)
    MetaOptNet().meta_train(SmallConv(), source, run)
    first, second = run.__dict__["history"]
    for key in ("backbone.net.0.weight", "backbone.net.1.running_mean", "head.factor"):
        assert not torch.equal(first[key], second[key])


def test_clipping_bounds_every_number_and_then_their_length() -> None:
    a, b, other = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimiser = torch.optim.SGD([a, b, other], lr=1.0)
    clip_gradients(optimiser, [a, b], norm=1.0, value=2.0)
    optimiser.step()  # without gradients nothing happens
    a.grad, other.grad = torch.tensor([30.0, 0.5]), torch.tensor([30.0, 0.5])
    optimiser.step()
    length = math.hypot(2.0, 0.5)
    torch.testing.assert_close(a.data, -torch.tensor([2.0, 0.5]) / length)
    torch.testing.assert_close(other.data, torch.tensor([-30.0, -0.5]))


# --- VERSA ---------------------------------------------------------------------------------------


def test_versa_against_loops() -> None:
    support, query = feature_episodes()
    method, head = fresh(Versa(samples=3, width=6))
    predictor = method.adapt(support)
    assert predictor.n_adapted == 2 * 4 * (N_FEATURES + 1)
    log_p = predictor.predict(query)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(6, 9))
    for e in range(6):
        x, y = support.inputs[e], support.labels[e]
        pooled = [x[y == c].mean(0) for c in range(4)]
        # Noise goes to classes in the order of their features' sums.
        order = sorted(range(4), key=lambda c: float(pooled[c].sum()))
        draw = torch.randn(3, 4, 8, generator=support.generator(e), dtype=torch.float64).float()
        probabilities = torch.zeros(9, 4)
        for sample in range(3):
            logits = torch.zeros(9, 4)
            for c in range(4):
                eps = draw[sample, order.index(c)]
                w = head.weight_mean(pooled[c])
                w = w + (0.5 * head.weight_log_variance(pooled[c])).exp() * eps[:-1]
                b = head.bias_mean(pooled[c])
                b = b + (0.5 * head.bias_log_variance(pooled[c])).exp() * eps[-1]
                logits[:, c] = query[e] @ w + b
            probabilities += logits.softmax(-1) / 3
        torch.testing.assert_close(log_p[e].exp(), probabilities.detach(), rtol=1e-4, atol=1e-5)


def test_versa_loss_is_of_the_mean_probability() -> None:
    support, query = feature_episodes()
    alone, labels = one_of(support, 0), torch.arange(9) % 4
    method = Versa(samples=5, width=6)
    head = method.build(Seven())
    predictor = method.predictor(head, alone)
    each = (query[0] @ predictor.weight.mT + predictor.bias.unsqueeze(-2)).softmax(-1)
    expected = -each.mean(0)[torch.arange(9), labels].log().mean()
    torch.testing.assert_close(method.loss(head, alone, query[0], labels), expected)


def test_versa_draws_what_its_distribution_says() -> None:
    support, _ = feature_episodes(1)
    method, head = fresh(Versa(samples=20_000, width=6))
    drawn = method.adapt(one_of(support, 0)).weight  # type: ignore[attr-defined]
    means = class_means(support.inputs[0], support.labels[0], 4)
    mean, deviation = (t.detach() for t in head(means))
    scale = deviation[:, :-1].max()
    assert ((drawn.mean(0) - mean[:, :-1]).abs() < 0.05 * scale).all()
    torch.testing.assert_close(drawn.std(0), deviation[:, :-1], rtol=0.05, atol=1e-3)
    correlation = torch.corrcoef(drawn.flatten(1).T) - torch.eye(4 * N_FEATURES)
    assert correlation.abs().max() < 0.05  # between classes and between coordinates


def test_amortiser_stays_finite_far_from_training() -> None:
    mean, deviation = Amortiser(N_FEATURES, 6)(torch.full((2, N_FEATURES), 1e6))
    assert torch.isfinite(mean).all()
    assert torch.isfinite(deviation).all()


def test_noise_is_each_episodes_own() -> None:
    support, _ = feature_episodes()
    together = normals(support, 2, 3)
    for e in range(6):
        assert torch.equal(normals(one_of(support, e), 2, 3), together[e])
    assert not torch.equal(together[0], together[1])


# --- the learned optimiser -----------------------------------------------------------------------


def test_preprocessing_by_hand() -> None:
    gradient = torch.tensor([1.0, -math.e, math.exp(-5), math.exp(-10), -math.exp(-12), 0.0])
    expected = torch.tensor(
        [[0.0, 1.0], [0.1, -1.0], [-0.5, 1.0], [-1.0, 1.0], [-1.0, -math.exp(-2)], [-1.0, 0.0]]
    )
    torch.testing.assert_close(preprocess(gradient, 10.0), expected)


def reference_unroll(
    optimiser: CoordinateLSTM, x: Tensor, y: Tensor, n_way: int, n_steps: int, *, drop: bool
) -> Tensor:
    """One episode with torch's own two-layer LSTM and gradients by autograd: ``(c, d + 1)``."""
    d = x.shape[1]
    lstm = nn.LSTM(2, 20, num_layers=2).double()
    weights = {}
    for layer, cell in enumerate((optimiser.first, optimiser.second)):
        for name, value in cell.named_parameters():
            weights[f"{name}_l{layer}"] = value
    head = torch.zeros(n_way, d + 1, dtype=torch.float64, requires_grad=True)
    inputs = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    state: Any = (torch.zeros(2, head.numel(), 20).double(),) * 2
    for _ in range(n_steps):
        loss = F.cross_entropy(inputs @ head.T, y)
        (gradient,) = torch.autograd.grad(loss, head, create_graph=not drop)
        seen = preprocess(gradient.flatten(), optimiser.p)
        if drop:
            seen = seen.detach()
        out, state = torch.func.functional_call(lstm, weights, (seen.unsqueeze(0), state))
        update = optimiser.scale * optimiser.output(out[0]).reshape(head.shape)
        head = head + update
    return head


def test_unrolled_steps_equal_a_plain_loop_and_drop_second_derivatives() -> None:
    support, query = feature_episodes()
    torch.manual_seed(2)
    optimiser = CoordinateLSTM(10.0, 0.3).double()
    x, q = support.inputs.double(), query.double()
    weight, bias = unroll(optimiser, x, hot(support.labels, 4), 5)
    asked = torch.arange(9) % 4
    parameters = list(optimiser.parameters())
    losses = {}
    for drop in (True, False):
        loss = torch.zeros((), dtype=torch.float64)
        for e in range(6):
            head = reference_unroll(optimiser, x[e], support.labels[e], 4, 5, drop=drop)
            torch.testing.assert_close(torch.cat([weight[e], bias[e, :, None]], 1), head)
            loss = loss + F.cross_entropy(q[e] @ head[:, :-1].T + head[:, -1], asked)
        losses[drop] = torch.autograd.grad(loss, parameters)
    ours = sum(F.cross_entropy(q[e] @ weight[e].T + bias[e], asked) for e in range(6))
    assert isinstance(ours, Tensor)
    found = torch.autograd.grad(ours, parameters)
    for a, dropped in zip(found, losses[True], strict=True):
        torch.testing.assert_close(a, dropped)
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(found, losses[False], strict=True)]
    assert max(apart) > 1e-3


def query_loss(method: LSTMOptimiser, head: CoordinateLSTM, source: StripesSource) -> float:
    """Mean query loss on raw pixels of new tasks."""
    losses = []
    for i in range(20):
        task = source.task("test", i)
        support = Support(task.support.inputs.flatten(1), task.support.labels, 3, (i,))
        losses.append(method.loss(head, support, task.query.flatten(1), task.query_labels).item())
    return sum(losses) / len(losses)


def test_a_learned_optimiser_beats_its_start_and_gradient_descent() -> None:
    source = StripesSource()
    method = LSTMOptimiser(inner_steps=4)
    head = method.build(SmallConv())
    before = query_loss(method, head, source)
    adam = torch.optim.Adam(head.parameters(), lr=1e-2)
    for step in range(60):
        (task,) = source.tasks(step)
        support = Support(task.support.inputs.flatten(1), task.support.labels, 3, (step,))
        loss = method.loss(head, support, task.query.flatten(1), task.query_labels)
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    after = query_loss(method, head, source)
    assert after < 0.8 * before
    assert after < 0.9 * math.log(3)  # better than knowing nothing


def test_steps_at_test_are_those_asked_for() -> None:
    support, query = feature_episodes()
    torch.manual_seed(3)
    head = CoordinateLSTM(10.0, 0.1)
    scores = with_head(LSTMOptimiser(inner_steps=2, inner_steps_test=6), head).adapt(support)
    wide = CoordinateLSTM(10.0, 0.1).double()
    wide.load_state_dict(head.state_dict())
    weight, bias = unroll(wide, support.inputs.double(), hot(support.labels, 4), 6)
    expected = (query.double() @ weight.mT + bias.unsqueeze(-2)).detach().float()
    torch.testing.assert_close(scores.predict(query), expected)
    assert scores.n_adapted == 4 * (N_FEATURES + 1)


# --- meta-training -------------------------------------------------------------------------------


class NoisySource(StripesSource):
    """Tasks have seeds of their own, as a real source's: else training would know its noise."""

    def task(self, *name: object) -> Task:
        found = super().task(*name)
        support = replace(found.support, seeds=(derive_seed(*name),))
        return replace(found, support=support)


TRAINED: dict[str, tuple[type[Episodic[Any]], dict[str, Any], int]] = {
    "metaoptnet": (MetaOptNet, {"lr": 3e-3}, 40),
    "metaoptnet-ridge": (MetaOptNet, {"lr": 3e-3, "head": "ridge"}, 40),
    "r2d2": (R2D2, {"lr": 3e-3}, 40),
    "lrd2": (R2D2, {"lr": 3e-3, "head": "logistic"}, 40),
    "leo": (LEO, {"lr": 3e-3}, 60),
    "versa": (Versa, {"width": 32, "lr": 1e-3}, 200),
    "lstm-optimiser": (LSTMOptimiser, {"lr": 3e-3, "inner_steps": 4}, 40),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_rises_well_above_chance_and_prepares(name: str) -> None:
    make, params, n_steps = TRAINED[name]
    torch.manual_seed(5)
    source, backbone = NoisySource(), SmallConv()
    run = FakeRun(source, n_steps, images=n_steps * source.images_per_task)
    method = make(**params)
    learned = method.meta_train(backbone, source, run)
    assert all(key.startswith(("backbone.", "head.")) for key in learned)
    episodes = [loss for loss in run.losses if method.pretrain_share == 0.0]
    assert sum(episodes[-8:]) <= 0.95 * sum(episodes[:8])
    ready = make(**params)
    ready.prepare(backbone.eval(), {k: v for k, v in learned.items() if k.startswith("head.")})
    hits = []
    with torch.no_grad():
        for i in range(30):
            task = source.task("test", i)
            support = Support(backbone(task.support.inputs), task.support.labels, 3, (i,))
            scores = ready.adapt(support).predict(backbone(task.query))
            hits.append((scores.argmax(-1) == task.query_labels).float().mean().item())
    assert sum(hits) / len(hits) > 0.65  # chance is a third


@pytest.mark.parametrize("make", [MetaOptNet, R2D2, LEO, Versa, LSTMOptimiser])
def test_adapting_untrained_says_what_is_missing(make: type[Episodic[Any]]) -> None:
    with pytest.raises(ContractError, match="Meta-train it first"):
        make().prepare(SmallConv(), {})
    with pytest.raises(ContractError, match="before prepare"):
        make().adapt(feature_episodes()[0])
