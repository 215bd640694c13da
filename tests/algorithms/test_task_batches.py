"""Tasks vectorised together learn what they learn one after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medbench.api import Support, Task
from medbench_algorithms.common.batch_statistics import FunctionalBody
from medbench_algorithms.optimisation.anil import ANIL
from medbench_algorithms.optimisation.boil import BOIL
from medbench_algorithms.optimisation.cavia import CAVIA
from medbench_algorithms.optimisation.gradient_based import GradientBased, Start
from medbench_algorithms.optimisation.imaml import IMAML
from medbench_algorithms.optimisation.maml import FOMAML, MAML
from medbench_algorithms.optimisation.maml_plus_plus import MAMLPlusPlus
from medbench_algorithms.optimisation.meta_sgd import MetaSGD
from medbench_algorithms.optimisation.protomaml import ProtoMAML
from medbench_algorithms.optimisation.reptile import Reptile
from medbench_algorithms.optimisation.task_batches import (
    can_vectorise,
    fitting,
    graph_bytes,
    task_batches,
)
from medbench_algorithms.optimisation.task_by_task import summed_loss

from .conftest import FakeRun, SmallConv, StripesSource, small_vit
from .test_gradient_based import settings, start_for

VECTORISED = [MAML, FOMAML, ANIL, BOIL, MetaSGD, MAMLPlusPlus, ProtoMAML, CAVIA]
SECOND_ORDER = [k for k in VECTORISED if k is not FOMAML]


def doubled(task: Task) -> Task:
    support = Support(task.support.inputs.double(), task.support.labels, 3, task.support.seeds)
    return Task(support, task.query.double(), task.query_labels)


@pytest.fixture
def tasks(source: StripesSource) -> list[Task]:
    return [doubled(task) for task in source.tasks(0, 3)]


def outer_gradients(
    method: GradientBased[Any], start: Start[Any], tasks: list[Task], at_once: int
) -> tuple[float, list[Tensor]]:
    """The loss of a meta-batch, and the gradients of all that is learned."""
    learned = [
        *start.body.backbone.parameters(),
        *start.head.parameters(),
        *start.parts.parameters(),
    ]
    for value in learned:
        value.grad = None
    batches = task_batches(tasks, at_once)
    loss = sum(method.accumulate(start, batch, 0.5) for batch in batches)
    return loss, [torch.zeros_like(v) if v.grad is None else v.grad for v in learned]


# The head of some starts from one row for all classes, or from none.
KINDS_AND_ROWS = [(kind, 3) for kind in VECTORISED] + [
    (kind, 1) for kind in VECTORISED if kind not in (BOIL, CAVIA, ProtoMAML)
]


@pytest.mark.parametrize(("kind", "n_rows"), KINDS_AND_ROWS)
@pytest.mark.parametrize("batch_norm", ["query", "support"])
@pytest.mark.parametrize("network", ["with BatchNorm", "without", "transformer"])
def test_outer_gradients_of_tasks_at_once_are_those_one_by_one(
    kind: Any, n_rows: int, batch_norm: str, network: str, tasks: list[Task]
) -> None:
    torch.manual_seed(1)
    backbone = small_vit() if network == "transformer" else SmallConv(network == "with BatchNorm")
    method = kind(**settings(kind), batch_norm=batch_norm)
    start = start_for(method, backbone.double().train(), n_rows)  # type: ignore[arg-type]
    start.parts.double()
    loss, expected = outer_gradients(method, start, tasks, 1)
    for at_once in (2, 3):
        found_loss, found = outer_gradients(method, start, tasks, at_once)
        assert found_loss == pytest.approx(loss, rel=1e-9)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", SECOND_ORDER)
@pytest.mark.parametrize("at_once", [1, 3])
def test_steps_taken_again_have_the_same_gradients(
    kind: Any, at_once: int, tasks: list[Task]
) -> None:
    torch.manual_seed(1)
    backbone = SmallConv().double().train()
    given = settings(kind) | ({} if kind is MAMLPlusPlus else {"first_order": False})
    start = start_for(kind(**given), backbone)
    start.parts.double()
    loss, expected = outer_gradients(kind(**given), start, tasks, at_once)
    again, found = outer_gradients(kind(**given, recompute=True), start, tasks, at_once)
    assert again == pytest.approx(loss, rel=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_steps_taken_again_keep_less(tasks: list[Task]) -> None:
    start = start_for(MAML(), SmallConv().double().train())
    kept = {}
    for steps in (2, 8):
        for again in (False, True):
            method = MAML(inner_steps=steps, recompute=again)
            kept[steps, again] = graph_bytes(partial(method.outer_loss, start, tasks[0]))
    assert kept[8, False] > 2.5 * kept[2, False]
    assert kept[8, True] < 0.4 * kept[8, False]


@pytest.mark.parametrize("kind", [MAML, FOMAML, MetaSGD, CAVIA])
def test_the_curve_of_losses_is_that_of_one_task_at_a_time(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(StripesSource, "task", _in_double(StripesSource.task))
    try:
        curves = {}
        for at_once in (1, 2, 4):
            torch.manual_seed(0)
            source = StripesSource()
            run = FakeRun(source, 4)
            kind(meta_batch=4, tasks_at_once=at_once).meta_train(SmallConv(), source, run)
            curves[at_once] = run.losses
    finally:
        torch.set_default_dtype(torch.float32)
    assert curves[2] == pytest.approx(curves[1], rel=1e-9)
    assert curves[4] == pytest.approx(curves[1], rel=1e-9)


def _in_double(draw: Any) -> Any:
    return lambda self, *name: doubled(draw(self, *name))


@pytest.mark.parametrize("kind", [IMAML, Reptile])
def test_methods_that_go_from_task_to_task_get_one_at_a_time(kind: Any) -> None:
    seen = []

    class Watched(StripesSource):
        pass

    source = Watched()
    method = kind(meta_batch=3)
    accumulate = method.accumulate

    def watch(start: Any, task: Task, progress: float) -> Any:
        seen.append(task.query.ndim)
        return accumulate(start, task, progress)

    method.accumulate = watch
    method.meta_train(SmallConv(), source, FakeRun(source, 2))
    assert seen == [4] * 6


# --- which tasks are put together ----------------------------------------------------------------


def test_neighbours_of_one_shape_are_stacked_up_to_the_bound() -> None:
    small, large = StripesSource(), StripesSource(way=4)
    tasks = [*small.tasks(0, 3), *large.tasks(0, 1), *small.tasks(1, 1)]
    found = list(task_batches(tasks, 2))
    assert [tuple(t.query.shape[:-3]) for t in found] == [(2, 12), (12,), (16,), (12,)]
    assert found[1] is tasks[2]
    first = found[0]
    assert torch.equal(first.support.inputs[1], tasks[1].support.inputs)
    assert torch.equal(first.support.labels[1], tasks[1].support.labels)
    assert torch.equal(first.query_labels[1], tasks[1].query_labels)
    assert first.support.seeds == tasks[0].support.seeds + tasks[1].support.seeds
    assert list(task_batches(tasks, 1)) == tasks


@pytest.mark.parametrize(
    ("n_support", "size", "width", "expected"),
    [(5, 28, 8, 8), (25, 28, 8, 1), (5, 14, 8, 33), (5, 84, 8, 1), (5, 14, 150, 5)],
    ids=["28 px 1-shot", "28 px 5-shot", "14 px 1-shot", "84 px", "many weights"],
)
def test_a_cpu_takes_several_small_tasks(
    n_support: int, size: int, width: int, expected: int
) -> None:
    body = FunctionalBody(SmallConv(width=width))
    support = Support(torch.zeros(n_support, 3, size, size), torch.arange(n_support), 5, (0,))
    found = fitting(body, support, lambda: pytest.fail("nothing to measure"))
    assert found == expected


def test_a_gpu_takes_what_its_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 10 * 8000

    class Somewhere:
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    weight = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    # One block of 8,000 bytes is kept, twice over, and it is counted once.
    assert graph_bytes(lambda: (weight * weight).sum()) == 8000
    support: Any = Support(Somewhere, weight, 5, ())  # type: ignore[arg-type]
    assert fitting(FunctionalBody(SmallConv()), support, lambda: (weight * weight).sum()) == 4


def test_losses_taken_in_turns_have_the_gradients_of_their_sum() -> None:
    torch.manual_seed(0)
    own, shared = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (4,)))
    unused = torch.zeros(2, dtype=torch.float64)
    for value in (own, shared, unused):
        value.requires_grad_()

    def loss(i: int, values: Any) -> Tensor:
        mine, common, _ = values
        return ((i + 1) * mine.square() * common.exp()).sum()

    def in_turns(*values: Tensor) -> Tensor:
        return summed_loss(loss, values, (True, False, False), 3).square()

    total = torch.stack([loss(i, (own[i], shared, unused)) for i in range(3)]).sum()
    torch.testing.assert_close(in_turns(own, shared, unused), total.square())
    assert torch.autograd.gradcheck(in_turns, (own, shared, unused))


def test_losses_taken_in_turns_hold_one_graph_at_a_time() -> None:
    alive: list[int] = []

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            alive.append(1)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            assert len(alive) == 1
            alive.clear()
            return g

    values = torch.ones(4, 2, requires_grad=True)
    summed_loss(lambda i, v: Held.apply(v[0]).sum(), [values], [True], 4).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(values.grad, torch.ones(4, 2))  # type: ignore[arg-type]


class Random(SmallConv):
    """A network that draws random numbers in training."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), 0.5, self.training)


class Deciding(SmallConv):
    """A network that looks at numbers to decide what to do."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        return features if features.sum() > 0 else -features


class Viewing(SmallConv):
    """A network that flattens as PyTorch's older tutorials do."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.feature_map(images)
        return features.view(len(features), -1)


@pytest.mark.parametrize("kind", [SmallConv, Random, Deciding, Viewing])
def test_networks_that_cannot_be_vectorised_are_looped(kind: Any, source: StripesSource) -> None:
    task = source.task("x")
    assert can_vectorise(FunctionalBody(kind().train()), task) == (kind is SmallConv)
    losses = []
    for at_once in (1, 4):
        torch.manual_seed(0)
        run = FakeRun(source, 2)
        method = MAML(inner_steps=2, tasks_at_once=at_once)
        method.meta_train(kind(), source, run)
        losses.append(run.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_layout_is_left_alone_where_a_network_refuses_channels_last(source: StripesSource) -> None:
    images = source.task("x").query
    torch.manual_seed(0)
    viewing = Viewing().train()
    plain = SmallConv().train()
    plain.load_state_dict(viewing.state_dict())
    bodies = [FunctionalBody(viewing), FunctionalBody(plain)]
    found, expected = (body.of_batch(body.parameters(), images) for body in bodies)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
