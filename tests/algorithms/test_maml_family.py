"""Each method of MAML's family against closed forms, and against loops written as papers do."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import medbench.training
from medbench.api import Budget, Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.optimisation.adapted import support_loss
from medbench_algorithms.optimisation.boil import BOIL
from medbench_algorithms.optimisation.cavia import CAVIA, _conditioned
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import Start
from medbench_algorithms.optimisation.imaml import IMAML, conjugate_gradient, implicit_gradient
from medbench_algorithms.optimisation.inner_loop import descend_inner
from medbench_algorithms.optimisation.maml import FOMAML, MAML
from medbench_algorithms.optimisation.maml_plus_plus import MAMLPlusPlus, loss_weights
from medbench_algorithms.optimisation.meta_sgd import MetaSGD
from medbench_algorithms.optimisation.protomaml import ProtoMAML
from medbench_algorithms.optimisation.reptile import Reptile, mini_batches
from medbench_backbones.conv4 import Conv4

from .conftest import FakeRun, SmallConv, StripesSource
from .test_gradient_based import SmoothNet, prepared, smooth_task, start_for

H = torch.tensor([[3.0, 1.0, 0.5], [1.0, 5.0, 0.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
W = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
TARGET = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


def quadratic(values: Sequence[Tensor]) -> Tensor:
    (w,) = values
    return 0.5 * w @ H @ w - w.sum()


def to_target(values: Sequence[Tensor]) -> Tensor:
    (w,) = values
    return 0.5 * (w - TARGET).square().sum()


@pytest.fixture
def task(source: StripesSource) -> Task:
    return source.task("test")


class Net(nn.Module):
    """A copy of body and head that an ordinary optimiser may change."""

    def __init__(self, backbone: SmallConv, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.body = copy.deepcopy(backbone).train()
        self.head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images))
        return out

    def norms(self) -> list[nn.Parameter]:
        parts = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        return [p for m in parts for p in m.parameters()]

    def loss(self, support: Support) -> Tensor:
        return F.cross_entropy(self(support.inputs), support.labels)


def descend(net: Net, support: Support, lr: float, n_steps: int, moving: list[Any]) -> None:
    optimiser = torch.optim.SGD(moving, lr=lr)
    for _ in range(n_steps):
        net.zero_grad()
        torch.autograd.backward(net.loss(support))
        optimiser.step()


def own_start(method: Any, backbone: SmallConv) -> Start[Any]:
    """The start that `prepared` gave a method."""
    prepared(method, backbone)
    start: Start[Any] = method._start
    return start


# --- Meta-SGD ------------------------------------------------------------------------------------


def test_meta_sgd_on_a_quadratic_has_its_closed_form_in_start_and_rates() -> None:
    w = W.clone().requires_grad_()
    alpha = torch.tensor([0.1, -0.05, 0.2], dtype=torch.float64, requires_grad=True)
    (end,) = descend_inner(quadratic, [w], [alpha], 1, second_order=True)
    slope = H @ W - 1
    torch.testing.assert_close(end, W - alpha * slope)
    by_start, by_rate = torch.autograd.grad(to_target([end]), [w, alpha])
    away = (end - TARGET).detach()
    torch.testing.assert_close(by_start, (EYE - alpha.diag() @ H).T @ away)
    torch.testing.assert_close(by_rate, -slope * away)


def test_rates_of_meta_sgd_start_equal_within_their_range_and_are_learned(task: Task) -> None:
    first = {}
    for seed in range(20):
        torch.manual_seed(seed)
        method = MetaSGD()
        body = FunctionalBody(SmallConv())
        rates = torch.cat(
            [r.flatten() for r in method.build(body, EpisodicHead(128, 3)).parameters()]
        )
        assert (rates == rates[0]).all()
        first[seed] = rates[0].item()
    assert 0.005 <= min(first.values()) < 0.02
    assert 0.08 < max(first.values()) <= 0.1
    source = StripesSource()
    learned = MetaSGD().meta_train(SmallConv(), source, FakeRun(source, 3))
    moved = learned["parts.body-net-0-weight"]
    assert moved.shape == (8, 1, 3, 3)
    assert moved.unique().numel() > 8


def test_meta_sgd_with_constant_rates_is_maml(task: Task) -> None:
    torch.manual_seed(3)
    backbone = SmallConv()
    torch.manual_seed(4)
    one = prepared(MetaSGD(inner_lr_min=0.2, inner_lr_max=0.2, inner_steps_test=3), backbone)
    torch.manual_seed(4)
    two = prepared(MAML(inner_lr=0.2, inner_steps_test=3), backbone)
    torch.testing.assert_close(
        one.adapt(task.support).predict(task.query), two.adapt(task.support).predict(task.query)
    )


# --- iMAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_implicit_gradient_on_a_quadratic_has_its_closed_form(strength: float) -> None:
    """w* = (H + s I)^-1 (1 + s w), so the gradient by w is s (H + s I)^-1 (w* - target)."""
    inverse = torch.linalg.inv(H + strength * EYE)
    solved = inverse @ (1 + strength * W)
    expected = strength * inverse @ (solved - TARGET)
    (found,), loss = implicit_gradient(quadratic, to_target, [solved], strength, 3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss, to_target([solved]))
    (short,), _ = implicit_gradient(quadratic, to_target, [solved], strength, 1)
    assert (short - expected).abs().max() > 1e-3  # the test can tell how many steps were taken


def test_conjugate_gradient_solves_and_stops_where_it_has_no_meaning() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6), torch.randn(6, generator=generator).double()
    found = conjugate_gradient(lambda v: matrix @ v, b, 6)
    np.testing.assert_allclose(found, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-6)
    assert torch.equal(conjugate_gradient(lambda v: -v, b, 5), torch.zeros(6).double())
    assert torch.equal(conjugate_gradient(lambda v: v, 0 * b, 5), torch.zeros(6).double())
    torch.testing.assert_close(conjugate_gradient(lambda v: 2 * v, b, 50), b / 2)


@pytest.mark.parametrize("batch_norm", ["query", "support"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_imaml_gradients_equal_finite_differences_of_the_solved_problem(
    batch_norm: str, n_rows: int
) -> None:
    torch.manual_seed(1)
    backbone = SmoothNet(norm=True).double().train()
    method = IMAML(
        proximal=4.0,
        inner_lr=0.15,
        inner_steps=40,
        cg_steps=40,
        batch_norm=batch_norm,  # type: ignore[arg-type]
        meta_batch=2,
    )
    start, task = start_for(method, backbone, n_rows), smooth_task()
    with torch.no_grad():
        start.head.weight.mul_(4)
    loss = method.accumulate(start, task, 0.0)
    parameters = [*backbone.parameters(), *start.head.parameters()]

    def outer() -> float:
        adapted = method.fit(start, task.support, 40, second_order=False)
        return method.query_loss(start.body, adapted, task).item()

    assert loss == pytest.approx(outer())
    exact = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    method.cg_steps = 1  # one step: the query gradient, scaled
    method.accumulate(start, task, 0.0)
    differs = 0.0
    for value, gradient in zip(parameters, exact, strict=True):
        flat, rough = value.data.view(-1), value.grad
        assert gradient is not None
        assert rough is not None
        i = len(flat) // 2
        keep = flat[i].item()
        flat[i] = keep + 1e-5
        above = outer()
        flat[i] = keep - 1e-5
        below = outer()
        flat[i] = keep
        slope = (above - below) / 2e-5
        assert gradient.view(-1)[i].item() == pytest.approx(slope / 2, abs=1e-7, rel=1e-5)
        differs = max(differs, abs(rough.view(-1)[i].item() - slope / 2))
    assert differs > 1e-4  # the test can tell the solution from its first approximation


def test_imaml_stays_near_the_start_as_the_proximal_term_grows(task: Task) -> None:
    away = []
    method = IMAML()
    start = own_start(method, SmallConv())
    for strength in (0.01, 1.0, 4.0):
        method.proximal = strength
        end = method.fit(start, task.support, 16, second_order=False)
        away.append((end.weight - start.head.weight).norm().item())
    assert away[0] > away[1] > away[2] > 0


# --- MAML++ --------------------------------------------------------------------------------------

PLAIN = {
    "multi_step_share": 0.0,
    "first_order_share": 0.0,
    "per_step_norm": False,
    "learned_rates": False,
    "cosine": False,
}


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_loss_weights_sum_to_one_and_move_to_the_last_step(n_steps: int) -> None:
    tables = [loss_weights(n_steps, done) for done in (0.0, 0.25, 0.5, 0.99, 1.0)]
    assert tables[0] == pytest.approx([1 / n_steps] * n_steps)
    for earlier, later in itertools.pairwise(tables):
        assert sum(later) == pytest.approx(1)
        assert later[-1] >= earlier[-1]
        assert all(a >= b for a, b in zip(earlier[:-1], later[:-1], strict=True))
    if n_steps == 5:  # 15 epochs, after 6 of them: 1/5 - 6/75 and 1/5 + 4 * 6/75
        assert loss_weights(5, 6 / 15) == pytest.approx([0.12] * 4 + [0.52])
        assert tables[-1] == pytest.approx([0.006] * 4 + [0.976])


def test_maml_plus_plus_without_its_parts_is_maml() -> None:
    found = []
    for make in (
        lambda: MAML(inner_lr=0.1, inner_steps=2, inner_steps_test=4, meta_batch=2),
        lambda: MAMLPlusPlus(  # type: ignore[call-arg]
            inner_lr=0.1, inner_steps=2, inner_steps_test=4, meta_batch=2, **PLAIN
        ),
    ):
        torch.manual_seed(5)
        source = StripesSource()
        run, backbone, method = FakeRun(source, 4), SmallConv(), make()
        learned = method.meta_train(backbone, source, run)
        method.prepare(backbone.eval(), learned)
        task = source.task("x")
        found.append((run.losses, method.adapt(task.support).predict(task.query)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def stepwise_start(method: MAMLPlusPlus, backbone: SmallConv) -> Start[Any]:
    start = own_start(method, backbone)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in start.parts.parameters():
            part.mul_(1 + 0.5 * torch.rand(part.shape, generator=generator))
    return start


def by_hand(method: MAMLPlusPlus, start: Start[Any], task: Task, n_steps: int) -> Iterator[Net]:
    """Inner loop with norms and rates by step, on a network of its own."""
    backbone = start.body.backbone
    assert isinstance(backbone, SmallConv)
    net = Net(backbone, start.head.weight, start.head.bias)
    named = {k.removeprefix("body."): v for k, v in net.named_parameters() if k[:4] == "body"}
    norms = {k: v for k, v in named.items() if k.startswith("net.1.") or k.startswith("net.5.")}
    moving = {f"body.{k}": v for k, v in named.items() if k not in norms}
    moving |= {"head.weight": net.head.weight, "head.bias": net.head.bias}
    for i in range(n_steps):
        step = min(i, method.inner_steps - 1)
        with torch.no_grad():
            for name, value in norms.items():
                value.copy_(start.parts.norms[name][step])
        slopes = torch.autograd.grad(net.loss(task.support), list(moving.values()))
        with torch.no_grad():
            for (name, value), slope in zip(moving.items(), slopes, strict=True):
                value -= start.parts.rates[name][step] * slope
        yield net


@pytest.mark.parametrize("n_steps", [3, 5])
def test_norms_and_rates_by_step_against_a_loop(n_steps: int, task: Task) -> None:
    method = MAMLPlusPlus(inner_steps=3, inner_steps_test=n_steps, inner_lr=0.1)
    start = stepwise_start(method, SmallConv())
    *_, net = by_hand(method, start, task, n_steps)
    predictor = method.adapt(task.support)
    torch.testing.assert_close(predictor.predict(task.query), net(task.query), rtol=1e-4, atol=1e-4)
    n_norms = sum(p.numel() for p in net.norms())
    assert n_norms == 32
    assert predictor.n_adapted == sum(p.numel() for p in net.parameters()) - n_norms


def test_losses_of_all_steps_count_at_first_and_the_last_alone_later(task: Task) -> None:
    method = MAMLPlusPlus(inner_steps=3, inner_lr=0.1, multi_step_share=0.5)
    start = stepwise_start(method, SmallConv())
    losses = [
        F.cross_entropy(net(task.query), task.query_labels).item()
        for net in by_hand(method, start, task, 3)
    ]
    for progress, weights in (
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (0.25, [1 / 6, 1 / 6, 2 / 3]),
        (0.5, [0, 0, 1]),
        (0.9, [0, 0, 1]),
    ):
        expected = sum(w * x for w, x in zip(weights, losses, strict=True))
        assert method.outer_loss(start, task, progress).item() == pytest.approx(expected, rel=1e-4)


def test_training_is_of_first_order_until_its_share_is_over(task: Task) -> None:
    given = PLAIN | {"first_order_share": 0.5}
    method = MAMLPlusPlus(inner_lr=0.3, inner_steps=2, **given)  # type: ignore[arg-type]
    start = own_start(method, SmallConv())
    plain = Start(start.body, start.head, nn.Identity())
    for progress, first_order in ((0.0, True), (0.49, True), (0.5, False), (0.9, False)):
        judge = MAML(inner_lr=0.3, inner_steps=2, first_order=first_order)
        weight = next(start.body.backbone.parameters())
        (expected,) = torch.autograd.grad(judge.outer_loss(plain, task), [weight])
        (other,) = torch.autograd.grad(
            MAML(inner_lr=0.3, inner_steps=2, first_order=not first_order).outer_loss(plain, task),
            [weight],
        )
        (found,) = torch.autograd.grad(method.outer_loss(start, task, progress), [weight])
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, other)


class Watching(FakeRun):
    """Remembers the outer rate of every step."""

    rates: list[float]

    def log(self, loss: float) -> None:
        super().log(loss)
        self.rates.append(self.state["optimiser"].param_groups[0]["lr"])


def rates_of(method: Any, n_steps: int = 4) -> list[float]:
    source = StripesSource()
    images = n_steps * source.images_per_task * method.meta_batch
    run = Watching(source, n_steps, images=images)
    run.rates = []
    method.meta_train(SmallConv(), source, run)
    return run.rates


def test_outer_rates_are_functions_of_the_step() -> None:
    cosine = [1e-3 + (0.1 - 1e-3) * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    found = rates_of(MAMLPlusPlus(meta_lr=0.1, meta_lr_min=1e-3, inner_steps=1, meta_batch=1))
    assert found == pytest.approx(cosine)
    flat = MAMLPlusPlus(meta_lr=0.1, cosine=False, inner_steps=1, meta_batch=1)
    assert rates_of(flat) == [0.1] * 4
    given: dict[str, Any] = {"meta_lr": 0.1, "meta_lr_decay": 0.5, "meta_lr_decay_every": 2}
    for kind in (CAVIA, ProtoMAML):
        falling = kind(**given, inner_steps=1, meta_batch=1)
        assert rates_of(falling) == pytest.approx([0.1, 0.1, 0.05, 0.05])
    reptile = Reptile(meta_lr=0.8, inner_steps=1, inner_steps_test=1, meta_batch=1)
    assert rates_of(reptile) == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_tasks_are_told_how_far_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def outer_loss(self: Any, start: Start[Any], task: Task, progress: float) -> Tensor:
        seen.append(progress)
        return start.head.bias.square().sum()

    monkeypatch.setattr(MAMLPlusPlus, "outer_loss", outer_loss)
    rates_of(MAMLPlusPlus(inner_steps=1, meta_batch=2, tasks_at_once=1))
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


# --- BOIL ----------------------------------------------------------------------------------------


def test_boil_against_a_loop_that_leaves_the_head(task: Task) -> None:
    backbone = SmallConv()
    method = BOIL(inner_steps_test=3)
    start = own_start(method, backbone)
    net = Net(backbone, start.head.weight, start.head.bias)
    descend(net, task.support, 0.5, 3, list(net.body.parameters()))
    predictor = method.adapt(task.support)
    torch.testing.assert_close(predictor.predict(task.query), net(task.query), rtol=1e-4, atol=1e-4)
    assert torch.equal(predictor.adapted.weight, start.head.weight)  # type: ignore[attr-defined]
    assert torch.equal(predictor.adapted.bias, start.head.bias)  # type: ignore[attr-defined]
    assert predictor.n_adapted == sum(p.numel() for p in backbone.parameters())


def test_boil_learns_the_head_in_the_outer_loop() -> None:
    source = StripesSource()
    torch.manual_seed(0)
    before = EpisodicHead(SmallConv().n_features, 3).weight.detach().clone()
    torch.manual_seed(0)
    learned = BOIL(meta_batch=1).meta_train(SmallConv(), source, FakeRun(source, 2))
    assert learned["head.weight"].shape == before.shape
    assert not torch.allclose(learned["head.weight"], before)


# --- Proto-MAML ----------------------------------------------------------------------------------


def test_protomaml_without_steps_is_protonet_but_for_a_constant_of_each_query(task: Task) -> None:
    backbone = SmallConv()
    method = prepared(ProtoMAML(inner_steps_test=0, batch_norm="query"), backbone)
    found = method.adapt(task.support).predict(task.query)
    body = FunctionalBody(backbone)
    with torch.no_grad():
        support = body.of_batch(body.parameters(), task.support.inputs)
        query = body.of_batch(body.parameters(), task.query)
    judge = ProtoNet()
    judge.prepare(backbone, {})
    expected = judge.adapt(Support(support, task.support.labels, 3, (0,))).predict(query)
    difference = found - expected
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(difference[:, 0], query.square().sum(1), rtol=1e-4, atol=1e-4)


def test_protomaml_against_a_loop_that_leaves_the_norms(task: Task) -> None:
    backbone = SmallConv()
    with torch.no_grad():
        backbone.net[5].weight.mul_(0.1)  # prototypes so near one another that there is a loss
    method = prepared(ProtoMAML(inner_lr=0.1, inner_steps_test=4, batch_norm="query"), backbone)
    with torch.no_grad():
        features = copy.deepcopy(backbone).train()(task.support.inputs)
    labels = task.support.labels
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    net = Net(backbone, 2 * means, -means.square().sum(1))
    fixed = {id(p) for p in net.norms()}
    descend(net, task.support, 0.1, 4, [p for p in net.parameters() if id(p) not in fixed])
    predictor = method.adapt(task.support)
    torch.testing.assert_close(predictor.predict(task.query), net(task.query), rtol=1e-4, atol=1e-4)
    adapted = predictor.adapted.body  # type: ignore[attr-defined]
    own = backbone.named_parameters()
    kept = {name for name, value in own if torch.equal(adapted[name], value)}
    assert kept >= {"net.1.weight", "net.1.bias", "net.5.weight", "net.5.bias"}
    assert not kept & {"net.0.weight", "net.4.weight"}
    n_norms = sum(p.numel() for p in net.norms())
    assert predictor.n_adapted == sum(p.numel() for p in net.parameters()) - n_norms


# --- CAVIA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [True, False])
def test_cavia_without_steps_is_the_plain_network(norm: bool, task: Task) -> None:
    backbone = SmallConv(norm)
    method = CAVIA(inner_steps_test=0)
    start = own_start(method, backbone)
    with torch.no_grad():
        plain = Net(backbone, start.head.weight, start.head.bias)(task.query)
    found = method.adapt(task.support).predict(task.query)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    steps = prepared(CAVIA(), backbone).adapt(task.support)
    assert steps.n_adapted == 100
    assert not torch.allclose(steps.predict(task.query), plain, atol=1e-3)


@pytest.mark.parametrize("norm", [True, False])
def test_cavia_against_a_network_with_a_film_layer(norm: bool, task: Task) -> None:
    backbone = SmallConv(norm)
    with torch.no_grad():
        for part in backbone.net:
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
    method = CAVIA(n_context=5, inner_steps_test=4, inner_lr=0.7)
    start = own_start(method, backbone)
    net = Net(backbone, start.head.weight, start.head.bias)
    context = torch.zeros(5, requires_grad=True)

    def film(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        both = start.parts.weight @ context
        gamma, beta = both[: len(both) // 2], both[len(both) // 2 :]
        shape = (1, -1, 1, 1) if norm else (1, -1)
        return output * (1 + gamma).view(shape) + beta.view(shape)

    (net.body.net[1] if norm else net.body).register_forward_hook(film)
    losses = []
    for _ in range(4):
        loss = net.loss(task.support)
        losses.append(loss.item())
        (slope,) = torch.autograd.grad(loss, [context])
        with torch.no_grad():
            context -= 0.7 * slope
    found = method.adapt(task.support).predict(task.query)
    torch.testing.assert_close(found, net(task.query), rtol=1e-4, atol=1e-4)
    assert losses[-1] < losses[0]


def test_cavia_conditions_the_third_layer_of_conv4() -> None:
    body = FunctionalBody(Conv4(image_size=28, channels=1))
    assert _conditioned(body) == ("blocks.2.1.weight", "blocks.2.1.bias")
    assert _conditioned(FunctionalBody(SmallConv(norm=False))) is None


# --- Reptile -------------------------------------------------------------------------------------


def test_mini_batches_are_shuffled_passes_cut_up() -> None:
    batches = list(mini_batches(7, 5, 3, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [5, 5, 5]
    together = torch.cat(batches)
    assert together[:7].sort().values.tolist() == list(range(7))
    assert together[7:14].sort().values.tolist() == list(range(7))
    assert together[:7].tolist() != together[7:14].tolist()
    few = list(mini_batches(3, 6, 1, torch.Generator().manual_seed(0)))
    assert few[0].bincount().tolist() == [2, 2, 2]
    assert list(mini_batches(3, 6, 0, torch.Generator())) == []


def test_reptile_against_the_loop_of_the_paper() -> None:
    """Start += eps * mean(solutions - start), with one Adam that goes on from task to task."""
    source, n_steps, eps = StripesSource(), 3, 0.8
    torch.manual_seed(5)
    backbone = SmallConv().double()
    kept = copy.deepcopy(backbone)
    method = Reptile(inner_lr=0.01, inner_steps=4, inner_batch=5, meta_batch=2, meta_lr=eps)

    def wide(found: Task) -> Task:
        support = Support(found.support.inputs.double(), found.support.labels, 3, (7,))
        return Task(support, found.query.double(), found.query_labels)

    tasks = [[wide(t) for t in source.tasks(step, 2)] for step in range(n_steps)]

    class Given(StripesSource):
        def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
            return tasks[step]

    run = FakeRun(source, n_steps, images=n_steps * 2 * source.images_per_task)
    run.steps = lambda state, **_: setattr(run, "state", state) or iter(range(n_steps))  # type: ignore[assignment, func-returns-value]
    test = wide(source.task("x"))
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(6)
        learned = method.meta_train(backbone, Given(), run)
        torch.manual_seed(6)
        head = EpisodicHead(backbone.n_features, 3)
    finally:
        torch.set_default_dtype(torch.float32)

    net = Net(kept, head.weight, head.bias)
    adam = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.999))
    losses = []

    def solve(inputs: Tensor, labels: Tensor, size: int, count: int) -> None:
        for chosen in mini_batches(len(labels), size, count, torch.Generator().manual_seed(7)):
            adam.zero_grad()
            loss = F.cross_entropy(net(inputs[chosen]), labels[chosen])
            torch.autograd.backward(loss)
            losses.append(loss.item())
            adam.step()

    def put(values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), values, strict=True):
                parameter.copy_(value)

    for step in range(n_steps):
        start = [p.detach().clone() for p in net.parameters()]
        solutions = []
        for one in tasks[step]:
            solve(
                torch.cat([one.support.inputs, one.query]),
                torch.cat([one.support.labels, one.query_labels]),
                5,
                4,
            )
            solutions.append([p.detach().clone() for p in net.parameters()])
            put(start)
        rate = eps * (1 - step / n_steps)
        put([s + rate * (a - s + b - s) / 2 for s, a, b in zip(start, *solutions, strict=True)])
    means = [sum(losses[i : i + 8]) / 8 for i in range(0, 24, 8)]
    assert run.losses == pytest.approx(means)
    names = dict(kept.named_parameters())
    for name, value in zip(names, net.body.parameters(), strict=True):
        if "bias" in name and name.startswith(("net.0", "net.4")):
            continue  # gradients of biases before BatchNorm are rounding errors, and Adam scales
        torch.testing.assert_close(learned[f"backbone.{name}"], value.data, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(learned["head.weight"], net.head.weight.data, rtol=1e-5, atol=1e-7)
    assert learned["parts.steps"] == 24

    # At test the same Adam goes on, on the support set, in other batches; and more steps.
    method.prepare(backbone.eval(), learned)
    found = method.adapt(test.support).predict(test.query)
    solve(test.support.inputs, test.support.labels, 5, 50)
    torch.testing.assert_close(found, net(test.query).data, rtol=1e-3, atol=1e-3)
    again = method.adapt(test.support).predict(test.query)
    assert torch.equal(found, again)  # and remembers nothing of the task


def test_reptile_validates_as_it_tests_and_more_steps_fit_better(task: Task) -> None:
    backbone = SmallConv()
    assert Reptile(inner_steps_test=7).inner_steps_val == 7
    torch.manual_seed(1)
    losses = []
    for steps in (5, 50):
        torch.manual_seed(1)
        method = Reptile(inner_steps_test=steps)
        start = own_start(method, backbone)
        end = method.fit(start, task.support, steps, second_order=False)
        losses.append(support_loss(start.body, end, task.support).item())
    assert losses[1] < losses[0] < 1.2


# --- training ------------------------------------------------------------------------------------

TRAINED: dict[str, tuple[type[Any], dict[str, Any], int]] = {
    "fomaml": (FOMAML, {"inner_lr": 0.1, "inner_steps": 2, "meta_lr": 3e-3, "meta_batch": 2}, 40),
    "boil": (BOIL, {"inner_lr": 0.5, "meta_lr": 5e-3, "meta_batch": 2}, 40),
    "reptile": (
        Reptile,
        {"inner_lr": 3e-3, "inner_steps_test": 3, "inner_steps": 6, "meta_batch": 2},
        50,
    ),
    "meta-sgd": (MetaSGD, {"meta_lr": 3e-3, "meta_batch": 2}, 40),
    "maml++": (
        MAMLPlusPlus,
        {"inner_lr": 0.1, "inner_steps": 2, "meta_lr": 5e-3, "meta_batch": 2},
        40,
    ),
    "imaml": (IMAML, {"inner_steps": 2, "proximal": 0.5, "meta_lr": 3e-3, "meta_batch": 4}, 60),
    "protomaml": (ProtoMAML, {"inner_steps": 2, "inner_steps_test": 2, "meta_lr": 3e-3}, 40),
    "cavia": (CAVIA, {"meta_lr": 5e-3, "meta_batch": 4}, 120),
}


def train(
    name: str, n_steps: int | None = None
) -> tuple[Any, dict[str, Tensor], FakeRun, SmallConv]:
    make, params, default = TRAINED[name]
    torch.manual_seed(5)
    source, count = StripesSource(), n_steps or default
    method, backbone = make(**params), SmallConv()
    run = FakeRun(source, count, images=count * method.meta_batch * source.images_per_task)
    return method, method.meta_train(backbone, source, run), run, backbone


@pytest.mark.parametrize("name", TRAINED)
def test_training_rises_well_above_chance_and_is_of_use(name: str) -> None:
    make, params, n_steps = TRAINED[name]
    torch.manual_seed(5)
    source, method, backbone = StripesSource(), make(**params), SmallConv()
    run = FakeRun(source, n_steps, images=n_steps * method.meta_batch * source.images_per_task)
    learned = method.meta_train(backbone, source, run)
    assert run.accuracies[-1] > 0.65  # chance is a third
    assert sum(run.losses[-8:]) < 0.9 * sum(run.losses[:8])
    rest = {k: v for k, v in learned.items() if not k.startswith("backbone.")}
    method.prepare(backbone.eval(), rest)
    hits = [
        (method.adapt(t.support).predict(t.query).argmax(-1) == t.query_labels).float().mean()
        for t in (source.task("test", i) for i in range(20))
    ]
    assert torch.stack(hits).mean() > 0.65


class Interrupted(Exception):
    """The node went away."""


class Fragile(StripesSource):
    """Fails once, at a given step; serves validation tasks as the core's source does."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        if step == self.at:
            raise Interrupted
        return super().tasks(step, count, only)

    def validation(self, count: int) -> Iterator[Task]:
        for i in range(count):
            yield self.task("val", i)


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_training_equals_an_undisturbed_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medbench.training, "CHECKPOINT_EVERY_S", 0.0)
    make, params, _ = TRAINED[name]
    kinds = params | ({"first_order_share": 0.5} if name == "maml++" else {})

    def attempt(at: int | None, checkpoint: Path) -> dict[str, Tensor]:
        torch.manual_seed(5)
        method, source, backbone = make(**kinds), Fragile(at), SmallConv()
        images = 4 * method.meta_batch * source.images_per_task
        run = medbench.training.Run(
            budget=Budget(images=images, episodes=4),
            seed=0,
            device=torch.device("cpu"),
            source=source,  # type: ignore[arg-type]
            validation_episodes=0,
            checkpoint=checkpoint,
        )
        learned: dict[str, Tensor] = method.meta_train(backbone, source, run)
        return learned

    expected = attempt(None, tmp_path / "one.safetensors")
    with pytest.raises(Interrupted):
        attempt(2, tmp_path / "two.safetensors")
    torch.manual_seed(99)
    found = attempt(None, tmp_path / "two.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
