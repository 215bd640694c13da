"""Processes that share a training find what one process finds, and notice when one is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medbench.api import Backbone, Budget, InputSpec, Support, Task, derive_seed
from medbench.crew import Crew, Lost
from medbench.distributed import Group, PeerLost, RunningStatistics, Seat, joined
from medbench.errors import ContractError
from medbench.training import Run
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.optimisation.anil import ANIL
from medbench_algorithms.optimisation.cavia import CAVIA
from medbench_algorithms.optimisation.maml import FOMAML, MAML
from medbench_algorithms.optimisation.meta_sgd import MetaSGD

CPU = torch.device("cpu")
SIZE = 8


class Net(Backbone):
    """One block with BatchNorm and, in training, dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.n_features = 4 * (SIZE // 4) ** 2
        self.input = InputSpec(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))

    def feature_map(self, images: Tensor) -> Tensor:
        found: Tensor = self.dropout(self.norm(self.conv(images)).relu())
        return nn.functional.max_pool2d(found, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).flatten(1)


class Patterns:
    """Noisy patterns; every draw depends on its numbers alone. Notes which tasks were read."""

    n_classes = 6
    ways = (3,)
    images_per_task = 12

    def __init__(self) -> None:
        self.read: list[int] = []

    def _task(self, *name: object) -> Task:
        generator = torch.Generator().manual_seed(derive_seed(*name))
        labels = torch.arange(3).repeat(4)
        images = 0.4 * torch.rand(3, 1, SIZE, SIZE, generator=generator)[labels]
        images = images + torch.rand(12, 1, SIZE, SIZE, generator=generator)
        images = images.to(torch.get_default_dtype())
        return Task(Support(images[:6], labels[:6], 3, (1,)), images[6:], labels[6:])

    def tasks(self, step: int, count: int = 1, only: Any = None) -> list[Task]:
        numbers = list(range(count) if only is None else only)
        self.read += numbers
        return [self._task("train", step, i) for i in numbers]

    def validation(self, count: int) -> Iterator[Task]:
        return (self._task("val", i) for i in range(count))

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        task = self._task("batch", step)
        return torch.cat([task.support.inputs, task.query]), torch.arange(12) % 6


METHODS: dict[str, Any] = {
    "MAML": lambda: (MAML(inner_steps=2, meta_batch=3), 0.0),
    "MAML, one of the processes idle": lambda: (MAML(inner_steps=2, meta_batch=1), 0.0),
    "MAML, random network": lambda: (MAML(inner_steps=2, meta_batch=3), 0.3),
    "FOMAML": lambda: (FOMAML(inner_steps=2, meta_batch=4), 0.0),
    "Meta-SGD": lambda: (MetaSGD(meta_batch=3), 0.0),
    "ANIL": lambda: (ANIL(inner_steps=2, meta_batch=3), 0.0),
    "CAVIA": lambda: (CAVIA(n_context=5, meta_batch=3), 0.0),
    "ProtoNet": lambda: (ProtoNet(meta_batch=3, pretrain_share=0.4), 0.0),
    "ProtoNet, random network": lambda: (ProtoNet(meta_batch=3), 0.3),
}
N_STEPS = 6


def train(
    name: str, group: Group, checkpoint: Path | None = None, stop: int | None = None
) -> dict[str, Any]:
    """A short training in double precision, as far as one process sees it."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        method, dropout = METHODS[name]()
        source = Patterns()
        net = Net(dropout)
        images = N_STEPS * method.meta_batch * source.images_per_task
        run = Run(
            budget=Budget(images=images, episodes=images // 12), seed=5, device=CPU,
            source=source, validation_episodes=3, checkpoint=checkpoint, group=group,
        )  # fmt: skip
        if stop is not None:
            run.log = _stopping(run.log, stop)  # type: ignore[method-assign]
        try:
            learned = method.meta_train(net, source, run)
        except Interrupted:
            learned = {}
    finally:
        torch.set_default_dtype(torch.float32)
    return {
        "learned": learned,
        "curve": [(p["step"], p["loss"], p["val_accuracy"]) for p in run.curve],
        "read": source.read,
        "resumed_at": run.resumed_at,
    }


class Interrupted(Exception):
    """The node went away."""


def _stopping(log: Any, after: int) -> Any:
    seen: list[float] = []

    def wrapped(loss: float) -> None:
        if len(seen) == after:
            raise Interrupted
        seen.append(loss)
        log(loss)

    return wrapped


def sums(group: Group) -> dict[str, Any]:
    """Gradients some of which a process lacks, and a value."""
    both, mine, nobodys = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.full((2,), 1.0 + group.rank)
    if group.rank == 1:
        mine.grad = torch.tensor([3.0, 4.0])
    total = group.add_up([both, mine, nobodys], 0.5 + group.rank)
    return {"total": total, "gradients": [both.grad, mine.grad, nobodys.grad]}


def statistics(group: Group, momentum: float | None) -> list[Tensor]:
    """Running statistics after five batches, of which the processes have two and three."""
    norm = nn.BatchNorm1d(2, momentum=momentum).double()
    norm(_batch(9))
    before = RunningStatistics([nn.Sequential(norm)])
    for i in group.share(5):
        norm(_batch(i))
    before.merge(group)
    return [b.clone() for b in norm.buffers()]


def _batch(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return number + torch.randn(4, 2, generator=generator, dtype=torch.float64)


def differing(group: Group) -> str:
    """What is said of a tensor that is not the same in all processes."""
    try:
        group.check_alike({"a": torch.zeros(3), "b": torch.ones(2) * group.rank}, "after step 7")
    except ContractError as error:
        return str(error)
    return ""


def forgetful(group: Group) -> str:
    """What is said of a trainer that does not add up gradients."""
    run = Run(
        budget=Budget(images=24, episodes=2), seed=5, device=CPU,
        source=Patterns(), validation_episodes=1, group=group,
    )  # fmt: skip
    try:
        for _ in run.steps({"net": Net()}, images_per_step=12):
            run.log(1.0)
    except ContractError as error:
        return str(error)
    return ""


def everything(group: Group, folder: Path) -> dict[str, Any]:
    """All that one meeting of processes is asked, as starting them takes seconds."""
    found: dict[str, Any] = {name: train(name, group) for name in METHODS}
    path = folder / "checkpoint.safetensors"
    train("MAML", group, path, stop=4)
    found["resumed"] = train("MAML", group, path)
    path.write_bytes(b"not a checkpoint")
    group.wait()
    found["damaged"] = train("MAML", group, path)
    found["sums"] = sums(group)
    found["statistics"] = [statistics(group, 0.1), statistics(group, None)]
    found["differing"] = differing(group)
    found["forgetful"] = forgetful(group)
    return found


def work(seat: Seat, folder: Path) -> None:
    """The part of the second process."""
    import medbench.training

    torch.set_num_threads(1)
    medbench.training.CHECKPOINT_EVERY_S = -1.0
    with joined(seat, CPU) as group:
        everything(group, folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """What the first of two processes finds."""
    patch = pytest.MonkeyPatch()
    patch.setattr("medbench.training.CHECKPOINT_EVERY_S", -1.0)  # after every step
    folder = tmp_path_factory.mktemp("shared")
    lost: list[Lost] = []
    with Crew(2, work, (folder,), lost.append) as crew, joined(crew.seat, CPU) as group:
        found = everything(group, folder)
    patch.undo()
    assert not lost
    return found


def alike(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found["learned"].keys() == expected["learned"].keys()
    for name, tensor in expected["learned"].items():
        torch.testing.assert_close(found["learned"][name], tensor, rtol=1e-9, atol=1e-10)
    for (a, b, c), (d, e, f) in zip(found["curve"], expected["curve"], strict=True):
        assert (a, b, c) == (d, pytest.approx(e, rel=1e-9), f)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_what_one_learns(shared: Mapping[str, Any], name: str) -> None:
    alone = train(name, Group())
    alike(shared[name], alone)
    assert 0 < len(shared[name]["read"]) < len(alone["read"]) or name.endswith("idle")


def test_each_process_reads_its_own_tasks_alone(shared: Mapping[str, Any]) -> None:
    assert shared["MAML"]["read"] == [0] * N_STEPS  # of three tasks the second process has two
    assert shared["MAML, one of the processes idle"]["read"] == []


def test_a_shared_training_goes_on_from_its_checkpoint(shared: Mapping[str, Any]) -> None:
    assert shared["resumed"]["resumed_at"] == [4]
    alike(shared["resumed"], shared["MAML"])


def test_all_processes_begin_anew_where_the_first_cannot_read_the_checkpoint(
    shared: Mapping[str, Any],
) -> None:
    assert shared["damaged"]["resumed_at"] == []
    alike(shared["damaged"], shared["MAML"])


def test_gradients_are_added_up_whoever_has_them(shared: Mapping[str, Any]) -> None:
    both, mine, nobodys = shared["sums"]["gradients"]
    assert shared["sums"]["total"] == 2.0
    assert both.tolist() == [3.0, 3.0]
    assert mine.tolist() == [3.0, 4.0]
    assert nobodys is None


def test_running_statistics_are_those_of_all_batches_in_order(shared: Mapping[str, Any]) -> None:
    for momentum, found in zip((0.1, None), shared["statistics"], strict=True):
        for one, other in zip(found, statistics(Group(), momentum), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_processes_that_differ_are_an_error_that_names_the_tensor(
    shared: Mapping[str, Any],
) -> None:
    assert "differ in 'b' after step 7 (1 of 2 tensors do)" in shared["differing"]
    assert "ended without run.together" in shared["forgetful"]


@pytest.mark.parametrize(("count", "world"), [(4, 2), (5, 2), (3, 4), (1, 3), (16, 3)])
def test_shares_are_neighbours_and_as_equal_as_can_be(count: int, world: int) -> None:
    parts = [Group(rank, world).share(count) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_alone_nothing_changes() -> None:
    group = Group()
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    assert group.add_up([weight], 0.25) == 0.25
    assert group.share(7) == range(7)
    assert weight.grad.tolist() == [1.0, 1.0]


# --- processes that are lost ---------------------------------------------------------------------


def dying(seat: Seat, how: str) -> tuple[str, str, str] | None:
    """A second process that ends before its work does."""
    with joined(seat, CPU) as group:
        group.wait()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(3)
        return "oom", "meta_train", "no memory"


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("killed", "crash", "Process 2 of 2 was killed by SIGKILL"),
        ("exit", "crash", "Process 2 of 2 ended with exit code 3"),
        ("error", "oom", "Process 2 of 2: no memory"),
    ],
)
def test_a_lost_process_ends_the_others_with_its_reason(how: str, status: str, words: str) -> None:
    given_up: list[Lost] = []
    crew = Crew(2, dying, (how,), given_up.append)
    with pytest.raises(PeerLost) as error, crew, joined(crew.seat, CPU) as group:
        group.wait()
        group.wait()
    cause = crew.cause(error.value)
    assert cause is not None
    assert cause.status == status
    assert words in cause.message
    assert not given_up
    assert crew.cause(KeyError("of this process")) is None


def test_where_this_process_does_not_come_out_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medbench.crew._GRACE_S", 0.2)
    given_up: list[Lost] = []
    over = threading.Event()

    def give_up(lost: Lost) -> None:
        given_up.append(lost)
        over.set()

    with Crew(2, dying, ("exit",), give_up) as crew, joined(crew.seat, CPU) as group:
        group.wait()
        assert over.wait(60)  # busy with something else, for ever
    assert "exit code 3" in given_up[0].message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs a GPU")
def test_nccl_adds_up_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    crew = Crew(1, dying, (), lambda lost: None)
    with crew, joined(crew.seat, device) as group:
        weight = nn.Parameter(torch.ones(2, device=device))
        weight.grad = torch.ones(2, device=device)
        values = Group(0, 2, device)  # of a world of one, but by the path of several
        assert values.add_up([weight], 0.5) == 0.5
        assert weight.grad.tolist() == [1.0, 1.0]
        assert group.sum(torch.ones(2)).tolist() == [1.0, 1.0]
