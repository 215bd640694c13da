"""Heads fitted to frozen features, as the accuracy lane calls them, against plain loops."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import plain_probes as plain
import pytest
import torch
from contest import PER_CLASS, Contest, features
from torch import Tensor

from medbench.api import Support
from medbench.episodes import Shape
from medbench_algorithms.augmentation.distribution_calibration import DistributionCalibration
from medbench_algorithms.fine_tuning.baseline import Baseline
from medbench_algorithms.fine_tuning.baseline_plus_plus import BaselinePlusPlus
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe
from medbench_algorithms.fine_tuning.swept_probe import SweptProbe
from medbench_algorithms.fine_tuning.tip_adapter import TipAdapter, TipAdapterF


def of(shot: int) -> Shape:
    return Shape(5, shot, 15)


def batches(n: int, size: int, epochs: int) -> list[Tensor]:
    """Random batches of `n` rows, as a data loader would make them."""
    return [b for _ in range(epochs) for b in torch.randperm(n).split(size)]


def tuned(x: Tensor, y: Tensor, q: Tensor, *, size: int, epochs: int) -> Tensor:
    rows = batches(len(x), size, epochs)
    with torch.enable_grad():
        return plain.fine_tuned_head(x, y, q, start=None, batches=rows)


def tuned_as_ours(x: Tensor, y: Tensor, q: Tensor, *, method: Baseline, seed: int) -> Tensor:
    """The loop from the head and through the batches that medbench draws."""
    weight, bias, orders = method._draw(Support(x, y, 5, (seed,)), *x.shape)
    rows = [b for order in orders[:, 0] for b in order.split(method.batch_size)]
    with torch.enable_grad():
        return plain.fine_tuned_head(x, y, q, start=(weight[0], bias[0]), batches=rows)


@pytest.mark.parametrize(
    ("case", "shot", "size", "epochs", "goal"),
    [
        ("head, 50 steps", 5, 25, 50, 30),
        ("head, 50 steps, 1-shot", 1, 5, 50, 30),
        ("linear probe, 100 SGD steps", 5, 25, 100, 40),
        ("Baseline, 100 epochs in fours", 5, 4, 100, None),
    ],
)
def test_head_by_sgd(race, case, shot, size, epochs, goal):
    method = Baseline(head_epochs=epochs, head_batch_size=size)
    contest = Contest(
        features(),
        of(shot),
        method,
        partial(tuned, size=size, epochs=epochs),
        as_ours=lambda i: partial(tuned_as_ours, method=method, seed=i),
    )
    contest.run(race, case, 2 if size == 4 else 10, 100 if size == 4 else 500, goal)


def cosine_tuned(x: Tensor, y: Tensor, q: Tensor, *, epochs: int) -> Tensor:
    start = (torch.rand(5, x.shape[1]) * 2 - 1) / x.shape[1] ** 0.5
    rows = batches(len(x), 4, epochs)
    with torch.enable_grad():
        return plain.cosine_head(x, y, q, start=start, batches=rows, scale=2.0)


def cosine_tuned_as_ours(
    x: Tensor, y: Tensor, q: Tensor, *, method: BaselinePlusPlus, seed: int
) -> Tensor:
    start, orders = method.head.draw(Support(x, y, 5, (seed,)))
    rows = [b for order in orders[:, 0] for b in order.split(4)]
    with torch.enable_grad():
        return plain.cosine_head(x, y, q, start=start[0], batches=rows, scale=2.0)


def test_cosine_head_by_sgd(race):
    epochs = 10 if race.quick else 100
    method = BaselinePlusPlus(head_epochs=epochs)
    contest = Contest(
        features(),
        of(5),
        method,
        partial(cosine_tuned, epochs=epochs),
        as_ours=lambda i: partial(cosine_tuned_as_ours, method=method, seed=i),
    )
    contest.run(race, "Baseline++, 100 epochs in fours", 2, 100, 20)


@pytest.mark.parametrize(("shot", "goal", "n_ours"), [(1, 80, 1000), (5, 20, 500), (20, 8, 100)])
def test_logistic_regression(race, shot, goal, n_ours):
    precise = partial(plain.logistic_regression, precise=True)
    contest = Contest(
        features(),
        of(shot),
        LinearProbe(),
        plain.logistic_regression,
        as_ours=lambda i: precise,
        probabilities=1e-6,
    )
    contest.run(race, f"logistic regression, {shot}-shot", 20, n_ours, goal)


@pytest.mark.parametrize(("shot", "n_loop", "n_ours"), [(1, 20, 200), (5, 1, 20), (20, 1, 3)])
def test_swept_probe(race, shot, n_loop, n_ours):
    contest = Contest(
        features(), of(shot), SweptProbe(), plain.swept_probe, scores_alike=False, n_check=1
    )
    contest.run(race, f"swept probe, {shot}-shot", n_loop, n_ours, None)


@pytest.mark.parametrize("shot", [1, 5, 20])
def test_tip_adapter(race, shot):
    contest = Contest(features(), of(shot), TipAdapter(), plain.tip_adapter)
    contest.run(race, f"Tip-Adapter, {shot}-shot", 200, 1000, 20)


def tip_adapter_f(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    with torch.enable_grad():
        return plain.tip_adapter_f(x, y, q)


def test_tip_adapter_f(race):
    contest = Contest(features(), of(5), TipAdapterF(), tip_adapter_f)
    contest.run(race, "Tip-Adapter-F", 10, 100, None)


@cache
def calibration(d: int) -> tuple[DistributionCalibration, dict[str, np.ndarray]]:
    """The method with statistics of the classes, and these as the loop wants them."""
    by_class = features(d).inputs.unflatten(0, (-1, PER_CLASS))
    means, covariances = by_class.mean(1), torch.stack([torch.cov(x.T) for x in by_class])
    method = DistributionCalibration()
    method.prepare(  # the network is not looked at
        None,  # type: ignore[arg-type]
        {"base_means": means, "base_covariances": covariances},
    )
    arrays = {"means": means.double().numpy(), "covariances": covariances.double().numpy()}
    return method, arrays


@pytest.mark.parametrize("shot", [1, 5])
def test_distribution_calibration(race, shot):
    method, arrays = calibration(64)
    loop = partial(plain.distribution_calibration, drawn=None, **arrays)

    def as_ours(i: int) -> object:
        def fit(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
            raised = (x.double().sign() * x.double().abs().sqrt()).unsqueeze(0)
            support = Support(x.unsqueeze(0), y.unsqueeze(0), 5, (i,))
            counts = method.counts(y.unsqueeze(0), 5)
            drawn, _ = method.sample(support, torch.tensor([0]), raised, counts)
            given = drawn[0].unflatten(0, (len(x), -1))
            return plain.distribution_calibration(x, y, q, drawn=given, **arrays)

        return fit

    contest = Contest(
        features(64), of(shot), method, loop, as_ours=as_ours, scores_alike=False, n_check=1
    )
    contest.run(race, f"Distribution Calibration, 64-d, {shot}-shot", 2, 4, None)
