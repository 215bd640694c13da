"""Meta-training of MAML's family against plain loops, a step of the outer loop each.

Conv-4 with 64 channels on 28x28x1, 5-way 1-shot with 15 queries, 5 inner steps. Both sides run in
one process that keeps freed memory, as medbench's workers do; elsewhere the plain loop is slower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from plain_maml import anil, maml, outer_loop, reptile
from torch import Tensor, nn

from medbench.api import Budget, Support, Task, derive_seed
from medbench.bench import _keep_freed_memory
from medbench.crew import Crew
from medbench.distributed import Group, Seat, joined
from medbench_algorithms.optimisation.anil import ANIL
from medbench_algorithms.optimisation.maml import FOMAML, MAML
from medbench_algorithms.optimisation.reptile import Reptile
from medbench_backbones.conv4 import Conv4

LR = 0.05


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


class FixedSource:
    """Outer steps with tasks drawn once: each class a pattern, each image that and noise."""

    n_classes = 64
    ways = (5,)

    def __init__(self, n_steps: int, meta_batch: int, n_query: int = 15) -> None:
        self.n_query = n_query
        self.images_per_task = 5 * (1 + n_query)
        self.steps = [
            [self._task(meta_batch * step + i) for i in range(meta_batch)]
            for step in range(n_steps)
        ]

    def _task(self, number: int) -> Task:
        generator = torch.Generator().manual_seed(number)
        patterns = torch.rand(5, 1, 28, 28, generator=generator)
        labels, query_labels = torch.arange(5), torch.arange(5 * self.n_query) % 5

        def images(of: Tensor) -> Tensor:
            return 0.5 * patterns[of] + 0.5 * torch.rand(len(of), 1, 28, 28, generator=generator)

        support = Support(images(labels), labels, 5, (number,))
        return Task(support, images(query_labels), query_labels)

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        return [self.steps[step][i] for i in (range(count) if only is None else only)]


class Run:
    """The core's side of a training, without checkpoints and validation."""

    seed = 0
    device = torch.device("cpu")

    def __init__(self, source: FixedSource, meta_batch: int, group: Group) -> None:
        self.group = group
        self.n_steps = len(source.steps)
        episodes = self.n_steps * meta_batch
        self.budget = Budget(images=source.images_per_task * episodes, episodes=episodes)
        self.net: nn.Sequential
        self.losses: list[float] = []

    def steps(self, state: Mapping[str, Any], **_: Any) -> Iterator[int]:
        body, head = self.net
        state["backbone"].load_state_dict(body.state_dict())
        state["head"].load_state_dict(head.state_dict())
        yield from range(self.n_steps)

    def log(self, loss: float) -> None:
        self.losses.append(loss)

    def share(self, count: int) -> range:
        return self.group.share(count)

    def reseed(self, number: int) -> None:
        torch.manual_seed(derive_seed("task", len(self.losses), number))

    def together(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        return self.group.add_up(parameters, loss)

    def best(self) -> dict[str, Tensor]:
        return {}


def train(
    method: Any, net: nn.Sequential, source: FixedSource, group: Group | None = None
) -> list[float]:
    run = Run(source, method.meta_batch, group or Group())
    run.net = net
    method.meta_train(copy.deepcopy(net[0]), source, run)
    return run.losses


def start(n_query: int, meta_batch: int) -> tuple[nn.Sequential, FixedSource]:
    """What both sides begin with: weights, and the tasks of two steps."""
    torch.manual_seed(0)
    backbone = Conv4(image_size=28, channels=1).train()
    net = nn.Sequential(backbone, nn.Linear(backbone.n_features, 5))
    return net, FixedSource(2, meta_batch, n_query=n_query)


def race_steps(
    race: Any,
    case: str,
    method: Any,
    plain: Callable[[nn.Sequential, Sequence[Sequence[Task]]], list[float]],
    *,
    goal: float | None = None,
    floor_s: Callable[[Any], float] | None = None,
    shared: Callable[[], list[float]] | None = None,
) -> None:
    """Race `plain` against the training of `method`, which start alike and must go alike.

    `shared`: the same training by several processes.

    Adam's first step goes by the signs of gradients, also of those that are nothing but rounding:
    in float32 losses after it agree to a few percent. So it is float64 that tells, when not timed.
    """
    if race.quick:
        torch.set_default_dtype(torch.float64)
    else:
        _keep_freed_memory()
    net, source = start(2 if race.quick else 15, method.meta_batch)
    ours, theirs = race(
        case,
        ours=shared or (lambda: train(method, net, source)),
        loop=lambda: plain(copy.deepcopy(net), source.steps),
        n_ours=2,
        n_loop=2,
        unit="step",
        goal=goal,
        floor_s=floor_s,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9 if race.quick else 0.05)


@pytest.mark.parametrize(("meta_batch", "at_once"), [(4, None), (4, 1), (16, None)])
def test_maml_of_second_order(race: Any, meta_batch: int, at_once: int | None) -> None:
    n_steps = 5
    if race.quick:
        meta_batch, n_steps = 3, 2
    race_steps(
        race,
        f"MAML, meta-batch {meta_batch}" + (", 1 at once" if at_once == 1 else ""),
        MAML(
            inner_lr=LR,
            inner_steps=n_steps,
            meta_batch=meta_batch,
            tasks_at_once=at_once,
        ),
        partial(outer_loop, loss_of=partial(maml, lr=LR, n_steps=n_steps)),
        goal=1.5,
        floor_s=lambda machine: machine.floor_s(flops=8.7e9 * meta_batch),
    )


SHARED: dict[str, Any] = {"inner_lr": LR, "meta_batch": 4}


def assist(seat: Seat, dtype: torch.dtype, n_query: int, n_steps: int) -> None:
    """A further process: trains whenever the first one does, until it says no more."""
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    _keep_freed_memory()
    net, source = start(n_query, 4)
    with joined(seat, torch.device("cpu")) as group:
        while float(group.sum(torch.zeros(1))):
            train(MAML(inner_steps=n_steps, **SHARED), net, source, group)


def test_maml_shared_by_two_processes_of_one_thread(race: Any) -> None:
    """Against the plain loop on two threads."""
    n_steps, n_query = (2, 2) if race.quick else (5, 15)
    if race.quick:
        torch.set_default_dtype(torch.float64)
    method = MAML(inner_steps=n_steps, **SHARED)
    net, source = start(n_query, 4)

    def plain(net: nn.Sequential, steps: Sequence[Sequence[Task]]) -> list[float]:
        torch.set_num_threads(2)
        found = outer_loop(net, steps, partial(maml, lr=LR, n_steps=n_steps))
        torch.set_num_threads(1)
        return found

    arguments = (torch.get_default_dtype(), n_query, n_steps)
    with (
        Crew(2, assist, arguments, lambda lost: None) as crew,
        joined(crew.seat, torch.device("cpu")) as group,
    ):

        def shared() -> list[float]:
            group.sum(torch.ones(1))
            return train(method, net, source, group)

        race_steps(race, "MAML on two cores", method, plain, goal=1.5, shared=shared)
        group.sum(torch.zeros(1))


def test_maml_of_first_order(race: Any) -> None:
    meta_batch = 2 if race.quick else 4
    race_steps(
        race,
        f"FOMAML, meta-batch {meta_batch}",
        FOMAML(inner_lr=LR, meta_batch=meta_batch),
        partial(outer_loop, loss_of=partial(maml, lr=LR, n_steps=5, second_order=False)),
        floor_s=lambda machine: machine.floor_s(flops=5.9e9 * meta_batch),
    )


def test_anil(race: Any) -> None:
    meta_batch = 2 if race.quick else 4
    race_steps(
        race,
        f"ANIL, meta-batch {meta_batch}",
        ANIL(inner_lr=LR, meta_batch=meta_batch),
        partial(outer_loop, loss_of=partial(anil, lr=LR, n_steps=5)),
    )


def test_reptile(race: Any) -> None:
    meta_batch = 2 if race.quick else 4
    race_steps(
        race,
        f"Reptile, meta-batch {meta_batch}",
        Reptile(meta_batch=meta_batch),
        partial(reptile, lr=1e-3, n_steps=5, size=10),
    )
