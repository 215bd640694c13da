"""Each method on features against values computed by hand or by somebody else's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from medbench.api import ContractError, NonFinite, Support
from medbench_algorithms.common.geometry import class_means, few_at_a_time, squared_distances
from medbench_algorithms.common.linear import one_hot
from medbench_algorithms.common.logistic import solve, solve_many
from medbench_algorithms.fine_tuning.baseline import Baseline
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe
from medbench_algorithms.metric.nearest_neighbour import NearestNeighbour
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.metric.simpleshot import SimpleShot

from .conftest import SmallConv, feature_episodes, one_of, ready


def line(points: list[float], labels: list[int]) -> Support:
    """A support set on a line."""
    return Support(torch.tensor(points).unsqueeze(-1), torch.tensor(labels), max(labels) + 1, (0,))


def test_protonet_by_hand() -> None:
    support = line([0.0, 4.0, 2.0], [0, 1, 0])
    scores = ready(ProtoNet()).adapt(support).predict(torch.tensor([[0.0], [3.0]]))
    torch.testing.assert_close(scores, torch.tensor([[-1.0, -16.0], [-4.0, -1.0]]))
    warm = ready(ProtoNet(temperature=2.0)).adapt(support).predict(torch.tensor([[0.0]]))
    torch.testing.assert_close(warm, torch.tensor([[-0.5, -8.0]]))


def test_protonet_against_loops() -> None:
    support, query = feature_episodes()
    scores = ready(ProtoNet()).adapt(support).predict(query)
    cosines = ready(ProtoNet(distance="cosine")).adapt(support).predict(query)
    for e in range(6):
        x, y, q = (t[e].double().numpy() for t in (support.inputs, support.labels, query))
        means = np.stack([x[y == c].mean(0) for c in range(4)])
        np.testing.assert_allclose(scores[e], -cdist(q, means, "sqeuclidean"), rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(cosines[e], 1 - cdist(q, means, "cosine"), atol=1e-5)


def test_distances_survive_a_large_common_offset() -> None:
    a, b = torch.randn(5, 8) + 1000, torch.randn(4, 8) + 1000
    expected = cdist(a.double().numpy(), b.double().numpy(), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(a, b), expected, rtol=1e-3)
    assert squared_distances(a, a).min() >= 0


@pytest.mark.parametrize("normalize", ["none", "l2", "cl2"])
def test_simpleshot_against_loops(normalize: str) -> None:
    support, query = feature_episodes()
    mean = torch.linspace(-1, 1, 7)
    method = SimpleShot(normalize=normalize)  # type: ignore[arg-type]
    method.prepare(SmallConv(), {"mean": mean})
    scores = method.adapt(support).predict(query)
    assert method.adapt(support).n_adapted == 0

    def transform(f: np.ndarray) -> np.ndarray:
        if normalize == "cl2":
            f = f - mean.double().numpy()
        return f if normalize == "none" else f / np.linalg.norm(f, axis=-1, keepdims=True)

    for e in range(6):
        x, y, q = (t[e].double().numpy() for t in (support.inputs, support.labels, query))
        x, q, y = transform(x), transform(q), support.labels[e].numpy()
        means = np.stack([x[y == c].mean(0) for c in range(4)])
        np.testing.assert_allclose(scores[e], -cdist(q, means, "sqeuclidean"), rtol=2e-5, atol=1e-5)


def test_simpleshot_without_the_mean_says_what_to_do() -> None:
    with pytest.raises(ContractError, match="normalize: l2"):
        SimpleShot().prepare(SmallConv(), {})
    SimpleShot(normalize="l2").prepare(SmallConv(), {})


def test_nearest_neighbour_by_hand() -> None:
    support = line([0.0, 4.0, 1.0, 9.0], [0, 1, 0, 1])
    scores = NearestNeighbour().adapt(support).predict(torch.tensor([[3.0]]))
    torch.testing.assert_close(scores, torch.tensor([[-4.0, -1.0]]))
    # Of the nearest three (4, 1, 0) two are of class 0; half a vote is divided by nearness.
    scores = NearestNeighbour(k=3).adapt(support).predict(torch.tensor([[3.0]]))
    share = torch.tensor([-4.0, -1.0]).softmax(0) / 2
    expected = (torch.tensor([2.0, 1.0]) + share) / 3.5
    torch.testing.assert_close(scores.softmax(-1)[0], expected)
    # A tie goes to the nearer class.
    scores = NearestNeighbour(k=2).adapt(line([0.0, 3.0], [0, 1])).predict(torch.tensor([[2.0]]))
    assert scores.argmax() == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_nearest_neighbour_against_scikit_learn(k: int, metric: str) -> None:
    support, query = feature_episodes(shots=(9, 6, 8, 7), d=3)
    scores = NearestNeighbour(k=k, metric=metric).adapt(support).predict(query)  # type: ignore[arg-type]
    for e in range(6):
        judge = KNeighborsClassifier(k, metric=metric, algorithm="brute")
        judge.fit(support.inputs[e].numpy(), support.labels[e].numpy())
        votes = judge.predict_proba(query[e].numpy())
        best = votes.max(1, keepdims=True)
        chosen = scores[e].argmax(-1).numpy()
        np.testing.assert_array_equal(votes[np.arange(9), chosen], best[:, 0])


def test_nearest_neighbour_stays_finite_far_away() -> None:
    support = line([0.0, 1e4, 2e4], [0, 1, 2])
    scores = NearestNeighbour(k=2).adapt(support).predict(torch.tensor([[0.0], [-1e6]]))
    assert torch.isfinite(scores).all()


SCALES = {
    "good": lambda x: x,
    "tiny": lambda x: x * 1e-3,
    "large": lambda x: x * 100,
    "offset": lambda x: x + 100,
    "uneven": lambda x: x * np.logspace(-3, 3, x.shape[-1]),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (2, 20), (5, 1), (5, 20)])
def test_linear_probe_is_at_the_optimum(way: int, shot: int, C: float, scale: str) -> None:
    """The gradient of scikit-learn's objective, in primal weights and float64, vanishes."""
    rng = np.random.default_rng(way * shot)
    y = rng.permutation(np.tile(np.arange(way), shot))
    x = rng.normal(size=(way, 24))[y] + 1.5 * rng.normal(size=(len(y), 24))
    x = SCALES[scale](x).astype(np.float32)
    head = LinearProbe(C=C).adapt(Support(torch.tensor(x), torch.tensor(y), way, (0,)))
    w, b = head.weight.numpy(), head.bias.numpy()
    x = x.astype(np.float64)
    centred = x - x.mean(0)
    p = torch.softmax(torch.tensor(centred @ w.T + b), -1).numpy()
    penalty = 2.0 if way == 2 else 1.0
    gradient = penalty * w - C * (np.eye(way)[y] - p).T @ centred
    # As a share of what one example can pull.
    assert np.abs(gradient).max() <= 1e-10 * C * max(np.abs(centred).max(), 1)
    assert np.abs((np.eye(way)[y] - p).sum(0)).max() < 1e-9


# Its Newton solver warns when rounding ends the line search, which at this tolerance is the end.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("scale", ["good", "tiny", "offset", "large"])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (2, 5), (5, 1), (5, 20)])
def test_linear_probe_equals_scikit_learn(way: int, shot: int, C: float, scale: str) -> None:
    rng = np.random.default_rng(way * shot)
    y = rng.permutation(np.tile(np.arange(way), shot))
    x = rng.normal(size=(way, 12))[y] + 1.5 * rng.normal(size=(len(y), 12))
    query = 1.5 * rng.normal(size=(30, 12))
    x, query = (SCALES[scale](v).astype(np.float32) for v in (x, query))
    support = Support(torch.tensor(x), torch.tensor(y), way, (0,))
    found = LinearProbe(C=C).adapt(support).predict(torch.tensor(query).double()).softmax(-1)
    # Judged on centred features: the same problem, as the intercept is free, but one that
    # scikit-learn's own solvers solve to the end.
    centre = x.astype(np.float64).mean(0)
    judge = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-13, max_iter=10_000)
    judge.fit(x - centre, y)
    np.testing.assert_allclose(found, judge.predict_proba(query - centre), atol=1e-7)


def test_linear_probe_in_float32_is_within_a_millionth() -> None:
    support, query = feature_episodes(shots=(5, 5, 5, 5), d=64)
    scores = LinearProbe().adapt(support).predict(query)
    assert scores.dtype == torch.float32
    judge = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-13, max_iter=10_000)
    judge.fit(support.inputs[0].double().numpy(), support.labels[0].numpy())
    expected = judge.predict_proba(query[0].double().numpy())
    np.testing.assert_allclose(scores[0].softmax(-1), expected, atol=1e-6)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e4])
def test_many_problems_on_a_gram_matrix_are_solved_as_one_by_one(d: int, C: float) -> None:
    """Also where the examples span fewer dimensions than there are of them, and from a start."""
    support, _ = feature_episodes(shots=(5, 5, 5, 5), d=d)
    x = support.inputs.double()
    x = x - x.mean(-2, keepdim=True)
    gram, y = x @ x.mT, one_hot(support.labels, 4)
    weights = torch.ones(6, 3, 20, dtype=torch.float64)
    for fold in range(3):
        weights[:, fold, fold::7] = 0.0
    targets = y.unsqueeze(1).expand(-1, 3, -1, -1)
    near = solve_many(gram, targets, C / 10, weights)
    for start in (None, near):
        dual, bias = solve_many(gram, targets, C, weights, start)
        for fold in range(3):
            own, own_bias = solve(gram, y, C, weights[:, fold])
            found = (gram @ dual[:, fold] + bias[:, fold].unsqueeze(-2)).softmax(-1)
            expected = (gram @ own + own_bias.unsqueeze(-2)).softmax(-1)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_work_on_few_episodes_at_a_time_is_the_same_work() -> None:
    a, b = torch.randn(3, 7, 200, 64), torch.randn(3, 7, 5, 64)
    expected = squared_distances(a, b)
    torch.testing.assert_close(few_at_a_time(squared_distances, a, b), expected)
    torch.testing.assert_close(few_at_a_time(squared_distances, a[0, 0], b[0, 0]), expected[0, 0])


def test_linear_probe_takes_identical_and_null_features() -> None:
    for inputs in (torch.ones(6, 5), torch.zeros(6, 5)):
        support = Support(inputs, torch.tensor([0, 1, 2, 0, 0, 0]), 3, (0,))
        p = LinearProbe().adapt(support).predict(torch.ones(1, 5)).softmax(-1)
        torch.testing.assert_close(p, torch.tensor([[4 / 6, 1 / 6, 1 / 6]]))


def test_linear_probe_refuses_what_is_not_finite() -> None:
    support, _ = feature_episodes()
    support.inputs[0, 0, 0] = float("nan")
    with pytest.raises(NonFinite):
        LinearProbe().adapt(support)


def test_linear_heads_count_their_parameters() -> None:
    support, _ = feature_episodes()
    assert LinearProbe().adapt(support).n_adapted == 7 * 4 + 4
    assert Baseline(head_epochs=1).adapt(support).n_adapted == 7 * 4 + 4


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_baseline_equals_a_loop_of_torch_sgd(scale: float) -> None:
    support, query = feature_episodes(n_episodes=2, d=20)
    support.inputs.mul_(scale)
    method = Baseline(head_epochs=30)
    scores = method.adapt(support).predict(query)
    for e in range(2):
        one = one_of(support, e)
        n, d = one.inputs.shape
        # The draws are the method's own; the descent is torch's.
        weight, bias, orders = method._draw(one, n, d)
        head = nn.Linear(d, 4).double()
        with torch.no_grad():
            head.weight.copy_(weight[0])
            head.bias.copy_(bias[0])
        sgd = torch.optim.SGD(
            head.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001
        )
        for order in orders[:, 0]:
            for batch in order.split(4):
                sgd.zero_grad()
                logits = head(one.inputs[batch].double())
                nn.functional.cross_entropy(logits, one.labels[batch]).backward()
                sgd.step()
        expected = head(query[e].double()).float()
        torch.testing.assert_close(scores[e], expected, rtol=1e-5, atol=1e-5)


def test_baseline_draws_as_torch_linear_does() -> None:
    support = Support(torch.randn(1, 10, 400), torch.zeros(1, 10, dtype=torch.int64), 5, (3,))
    weight, bias, orders = Baseline(head_epochs=7)._draw(support, 10, 400)
    assert weight.abs().max() <= 0.05
    assert weight.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert bias.abs().max() <= 0.05
    assert orders.shape == (7, 1, 10)
    assert torch.equal(orders.sort(-1).values, torch.arange(10).expand(7, 1, 10))
    assert not torch.equal(orders[0], orders[1])


def test_class_means_of_unequal_shots() -> None:
    x = torch.tensor([[1.0], [2.0], [6.0], [10.0]])
    means = class_means(x, torch.tensor([1, 0, 1, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[2.0], [17 / 3]]))
