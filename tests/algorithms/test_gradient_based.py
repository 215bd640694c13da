"""MAML's family: gradients through the inner loop, BatchNorm, heads, and what they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import ContractError, Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.anil import ANIL
from medbench_algorithms.optimisation.boil import BOIL
from medbench_algorithms.optimisation.cavia import CAVIA
from medbench_algorithms.optimisation.episodic_head import EpisodicHead
from medbench_algorithms.optimisation.gradient_based import GradientBased, Start
from medbench_algorithms.optimisation.imaml import IMAML
from medbench_algorithms.optimisation.inner_loop import descend_inner
from medbench_algorithms.optimisation.maml import FOMAML, MAML
from medbench_algorithms.optimisation.maml_plus_plus import MAMLPlusPlus
from medbench_algorithms.optimisation.meta_sgd import MetaSGD
from medbench_algorithms.optimisation.protomaml import ProtoMAML
from medbench_algorithms.optimisation.reptile import Reptile

from .conftest import SmallConv, StripesSource

Method = GradientBased[Any]
Kind = type[Any]
ALL = [MAML, FOMAML, ANIL, BOIL, MetaSGD, MAMLPlusPlus, IMAML, ProtoMAML, CAVIA, Reptile]
# Those whose outer gradient goes through the inner loop; iMAML's and Reptile's have other tests.
DIFFERENTIATED = [MAML, ANIL, BOIL, MetaSGD, MAMLPlusPlus, ProtoMAML, CAVIA]
OF_ANY_WAY = [MAML, FOMAML, ANIL, MetaSGD, MAMLPlusPlus, IMAML, ProtoMAML]


def start_for(method: Method, backbone: SmallConv, n_rows: int = 3) -> Start[Any]:
    """A start as meta-training would begin with it."""
    if isinstance(method, ProtoMAML):
        n_rows = 0
    like = next(backbone.parameters())
    head = EpisodicHead(backbone.n_features, n_rows).to(like.dtype)
    body = FunctionalBody(backbone)
    return Start(body, head, method.build(body, head))


def prepared(method: Method, backbone: SmallConv, n_rows: int = 3) -> Method:
    start = start_for(method, backbone, n_rows)
    learned = {f"head.{k}": v.detach() for k, v in start.head.state_dict().items()}
    learned |= {f"parts.{k}": v.detach() for k, v in start.parts.state_dict().items()}
    method.prepare(backbone.eval(), learned)
    return method


@pytest.fixture
def task(source: StripesSource) -> Task:
    return source.task("test")


# --- gradients -----------------------------------------------------------------------------------


def quadratic(values: Sequence[Tensor]) -> Tensor:
    """3 a^2 / 2 + 5 b^2 / 2 + a b: gradient (3 a + b, 5 b + a)."""
    (w,) = values
    a, b = w
    return 1.5 * a**2 + 2.5 * b**2 + a * b


@pytest.mark.parametrize("n_steps", [1, 3])
def test_inner_loop_on_a_quadratic_has_its_closed_form(n_steps: int) -> None:
    H = torch.tensor([[3.0, 1.0], [1.0, 5.0]], dtype=torch.float64)
    lr, target = 0.1, torch.tensor([1.0, -2.0], dtype=torch.float64)
    w = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    (end,) = descend_inner(quadratic, [w], lr, n_steps, second_order=True)
    A = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - lr * H, n_steps)
    torch.testing.assert_close(end, A @ w)
    (gradient,) = torch.autograd.grad(0.5 * (end - target).square().sum(), w)
    torch.testing.assert_close(gradient, A.T @ (A @ w - target))
    (end,) = descend_inner(quadratic, [w], lr, n_steps, second_order=False)
    (gradient,) = torch.autograd.grad(0.5 * (end - target).square().sum(), w)
    torch.testing.assert_close(gradient, A @ w - target)  # first order: A counts as the identity


class SmoothNet(SmallConv):
    """Small and smooth, so that finite differences are exact enough."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        middle = [nn.BatchNorm2d(2)] if norm else []
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3), *middle, nn.Tanh(), nn.AvgPool2d(2))
        self.n_features = 8


def settings(kind: Kind) -> dict[str, Any]:
    """Inner loops long and wild enough to bring out what is of second order."""
    if kind is MetaSGD:
        return {"inner_lr_min": 0.5, "inner_lr_max": 0.5, "inner_steps": 2}
    if kind is MAMLPlusPlus:
        return {"inner_lr": 0.5, "inner_steps": 2, "first_order_share": 0.5}
    return {"inner_lr": 0.5, "inner_steps": 2}


def smooth_task() -> Task:
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    support = Support(torch.randn(6, 1, 6, 6, dtype=torch.float64), labels, 3, (0,))
    return Task(support, torch.randn(9, 1, 6, 6, dtype=torch.float64), torch.arange(9) % 3)


@pytest.mark.parametrize(
    ("kind", "n_rows"),
    [(k, 3) for k in DIFFERENTIATED] + [(k, 1) for k in DIFFERENTIATED if k in OF_ANY_WAY],
)
@pytest.mark.parametrize("batch_norm", ["query", "support"])
@pytest.mark.parametrize("norm", [True, False])
def test_outer_gradients_equal_finite_differences(
    kind: Kind, n_rows: int, batch_norm: str, norm: bool
) -> None:
    torch.manual_seed(1)
    backbone = SmoothNet(norm).double().train()
    given = settings(kind) | {"batch_norm": batch_norm}
    if kind is not MAMLPlusPlus:
        given["first_order"] = False
    method = kind(**given)
    start = start_for(method, backbone, n_rows)
    with torch.no_grad():
        start.head.weight.mul_(4)  # away from the start, where second-order terms are small
        for part in start.parts.parameters():
            part.mul_(1 + 0.3 * torch.randn_like(part))
    task = smooth_task()
    parameters = [*backbone.parameters(), *start.head.parameters(), *start.parts.parameters()]

    def outer(first_order: bool = False) -> Tensor:
        if isinstance(method, MAMLPlusPlus):
            # In the first half of training it is first-order; the losses of all steps count.
            method.multi_step_share = 1.0
            return method.outer_loss(start, task, 0.4 if first_order else 0.6)
        method.first_order = first_order
        found: Tensor = method.outer_loss(start, task)
        return found

    exact = torch.autograd.grad(outer(), parameters, allow_unused=True)
    first = torch.autograd.grad(outer(first_order=True), parameters, allow_unused=True)
    differs = 0.0
    for value, gradient, approximate in zip(parameters, exact, first, strict=True):
        flat = value.data.view(-1)
        for i in range(0, len(flat), max(5, len(flat) // 10)):
            keep = flat[i].item()
            flat[i] = keep + 1e-5
            above = outer().item()
            flat[i] = keep - 1e-5
            below = outer().item()
            flat[i] = keep
            slope = (above - below) / 2e-5
            found = 0.0 if gradient is None else gradient.view(-1)[i].item()
            assert found == pytest.approx(slope, abs=2e-8, rel=1e-6)
            other = 0.0 if approximate is None else approximate.view(-1)[i].item()
            differs = max(differs, abs(other - slope))
    if not isinstance(method, MAMLPlusPlus):  # its weights differ between the two as well
        assert differs > 1e-4  # the test can tell first from second order


def test_first_order_gradients_are_those_at_the_adapted_weights() -> None:
    """FOMAML by hand: a loop on a deep copy, and the query gradient where it ends."""
    torch.manual_seed(1)
    backbone = SmoothNet(norm=True).double().train()
    method = FOMAML(inner_lr=0.5, inner_steps=3)
    start = start_for(method, backbone)
    task = smooth_task()
    found = torch.autograd.grad(
        method.outer_loss(start, task), [*backbone.parameters(), *start.head.parameters()]
    )
    net = nn.Sequential(copy.deepcopy(backbone), nn.Linear(8, 3).double())
    with torch.no_grad():
        net[1].weight.copy_(start.head.weight)
        net[1].bias.copy_(start.head.bias)
    descent = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):
        descent.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(task.support.inputs), task.support.labels))
        descent.step()
    descent.zero_grad()
    torch.autograd.backward(F.cross_entropy(net(task.query), task.query_labels))
    for gradient, value in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, value.grad)


# --- BatchNorm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_support_statistics_predict_each_query_alone(kind: Kind, task: Task) -> None:
    predictor = prepared(kind(batch_norm="support"), SmallConv()).adapt(task.support)
    together = predictor.predict(task.query)
    alone = torch.cat([predictor.predict(q.unsqueeze(0)) for q in task.query])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_query_statistics_are_transductive_as_the_trait_says(kind: Kind, task: Task) -> None:
    predictor = prepared(kind(batch_norm="query"), SmallConv()).adapt(task.support)
    together = predictor.predict(task.query)
    alone = torch.cat([predictor.predict(q.unsqueeze(0)) for q in task.query])
    assert (alone - together).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [k for k in ALL if k not in (IMAML, Reptile)])
@pytest.mark.parametrize("batch_norm", ["query", "support"])
def test_training_and_test_see_the_same_support_statistics(
    kind: Kind, batch_norm: str, task: Task
) -> None:
    """The outer loss equals the loss of the predictions that adapt would give."""
    given = {"batch_norm": batch_norm, "inner_steps": 3, "inner_steps_test": 3}
    given |= {} if kind is MetaSGD else {"inner_lr": 0.1}
    method = prepared(kind(**given), SmallConv())
    assert method._start is not None
    outer = method.outer_loss(method._start, task, 1.0)
    inner = F.cross_entropy(method.adapt(task.support).predict(task.query), task.query_labels)
    torch.testing.assert_close(outer, inner, rtol=1e-4, atol=1e-5)


def test_functional_body_equals_the_network_in_both_modes(task: Task) -> None:
    backbone = SmallConv()
    backbone.train()(task.query)  # running statistics away from their start
    body = FunctionalBody(backbone.eval())
    expected = {k: v.clone() for k, v in backbone.state_dict().items()}
    of_batch = body.of_batch(body.parameters(), task.query)
    notes: dict[str, tuple[Tensor, Tensor]] = {}
    of_first = body.of_first(body.parameters(), task.query, len(task.query), notes)
    given = body.given(body.parameters(), task.query, notes)
    assert not backbone.training
    assert not any(m.training for m in backbone.modules())
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key
    own = body.given(body.parameters(), task.query, body._running())
    torch.testing.assert_close(own, backbone(task.query))
    trained = backbone.train()(task.query)
    for features in (of_batch, of_first, given):
        torch.testing.assert_close(features, trained, rtol=1e-4, atol=1e-5)


def test_networks_without_batch_norm_work_and_are_inductive(task: Task) -> None:
    for batch_norm in ("query", "support"):
        method = prepared(MAML(batch_norm=batch_norm), SmallConv(norm=False))  # type: ignore[arg-type]
        predictor = method.adapt(task.support)
        alone = torch.cat([predictor.predict(q.unsqueeze(0)) for q in task.query])
        torch.testing.assert_close(alone, predictor.predict(task.query), rtol=1e-4, atol=1e-5)


# --- what adaptation changes ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("batch_norm", ["query", "support"])
def test_adapting_changes_nothing_it_was_given(kind: Kind, batch_norm: str, task: Task) -> None:
    backbone = SmallConv()
    method = prepared(kind(batch_norm=batch_norm), backbone)  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    inputs, random = task.support.inputs.clone(), torch.get_rng_state()
    first = method.adapt(task.support).predict(task.query)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())
    assert not any(m._forward_pre_hooks for m in backbone.modules())
    assert torch.equal(task.support.inputs, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(method.adapt(task.support).predict(task.query), first)


def test_maml_adapts_all_weights_and_anil_the_head_alone(task: Task) -> None:
    backbone = SmallConv()
    n_head = 3 * backbone.n_features + 3
    maml = prepared(MAML(), backbone).adapt(task.support)
    anil = prepared(ANIL(), backbone).adapt(task.support)
    assert maml.n_adapted == sum(p.numel() for p in backbone.parameters()) + n_head
    assert anil.n_adapted == n_head
    own = dict(backbone.named_parameters())
    for name, value in anil.adapted.body.items():  # type: ignore[attr-defined]
        assert torch.equal(value, own[name])
    changed = maml.adapted.body["net.0.weight"]  # type: ignore[attr-defined]
    assert not torch.equal(changed, own["net.0.weight"])
    assert not changed.requires_grad


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("batch_norm", ["query", "support"])
def test_adapting_works_in_inference_mode(kind: Kind, batch_norm: str, task: Task) -> None:
    method = prepared(kind(batch_norm=batch_norm), SmallConv())  # type: ignore[arg-type]
    expected = method.adapt(task.support).predict(task.query)
    with torch.inference_mode():
        images, labels = task.support.inputs.clone(), task.support.labels.clone()
        predictor = method.adapt(Support(images, labels, 3, task.support.seeds))
        assert torch.equal(predictor.predict(task.query.clone()), expected)


@pytest.mark.parametrize("kind", [k for k in ALL if k is not CAVIA])  # too few numbers for that
def test_adapting_fits_the_support_set(kind: Kind, task: Task) -> None:
    given: dict[str, Any] = {"inner_steps_test": 50}
    if kind is MetaSGD:
        given |= {"inner_lr_min": 0.3, "inner_lr_max": 0.3}
    elif kind is IMAML:
        given |= {"proximal": 0.01}
    elif kind is not Reptile:
        given |= {"inner_lr": 0.01 if kind is ProtoMAML else 0.3}
    method = prepared(kind(**given), SmallConv())
    predictor = method.adapt(task.support)
    assert (predictor.predict(task.support.inputs).argmax(-1) == task.support.labels).all()


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in ALL if k is not ProtoMAML])
def test_learned_rows_serve_fewer_classes_and_refuse_more(kind: Kind, task: Task) -> None:
    method = prepared(kind(), SmallConv(), n_rows=5)
    assert method.adapt(task.support).predict(task.query).shape == (12, 3)
    method = prepared(kind(), SmallConv(), n_rows=2)
    with pytest.raises(ContractError, match=r"3 classes.*trained for 2.*head: shared"):
        method.adapt(task.support)


@pytest.mark.parametrize("kind", OF_ANY_WAY)
def test_a_shared_head_serves_any_way_and_knows_no_order(kind: Kind, task: Task) -> None:
    method = prepared(kind() if kind is MetaSGD else kind(inner_lr=0.1), SmallConv(), n_rows=1)
    scores = method.adapt(task.support).predict(task.query)
    renamed = torch.tensor([2, 0, 1])
    support = Support(task.support.inputs, renamed[task.support.labels], 3, (7,))
    permuted = method.adapt(support).predict(task.query)
    torch.testing.assert_close(permuted[:, renamed], scores, rtol=1e-4, atol=1e-5)


def test_adapting_before_training_says_so(task: Task) -> None:
    head = {"head.weight": torch.zeros(3, 512), "head.bias": torch.zeros(3)}
    with pytest.raises(ContractError, match=r"MetaSGD needs.*body-net-0-weight.*Meta-train it"):
        MetaSGD().prepare(SmallConv(), head)
    with pytest.raises(ContractError, match="Meta-train first"):
        MAML().prepare(SmallConv(), {})
    with pytest.raises(ContractError, match="before prepare"):
        MAML().adapt(task.support)
