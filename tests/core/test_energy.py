"""Energy is measured where a counter can be read, and said not to be elsewhere; Zeus is acted."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from medbench.energy import episode_energy

GPU = torch.device("cuda", 1)


class Counter:
    """As Zeus's monitor (0.16): a counter of each GPU, here of so many joules an episode."""

    joules, has_counter, trouble = 3.0, True, ""

    def __init__(self, gpu_indices, cpu_indices):
        if self.trouble:
            raise RuntimeError(self.trouble)
        assert (gpu_indices, cpu_indices) == ([1], []), "the GPU of the cell, and no processor"
        self.gpus = SimpleNamespace(supportsGetTotalEnergyConsumption=lambda i: self.has_counter)
        self.open, self.cancelled = set(), False
        type(self).last = self

    def begin_window(self, key):
        self.open.add(key)
        self.began = Counter.spent

    def end_window(self, key, cancel=False):
        self.open.remove(key)
        self.cancelled = cancel
        return SimpleNamespace(gpu_energy={1: Counter.spent - self.began}, time=0.05)


@pytest.fixture
def zeus(monkeypatch):
    found = type("ZeusMonitor", (Counter,), {})
    monkeypatch.setattr(Counter, "spent", 100.0, raising=False)
    module = ModuleType("zeus.monitor")
    module.ZeusMonitor = found
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "0.16.0" if n == "zeus" else version(n)
    )
    return found


def test_an_episode_has_its_share_of_what_the_counter_counts(zeus):
    seen = []

    def episode(i):
        seen.append(i)
        Counter.spent += 3.0
        time.sleep(0.002)

    found = episode_energy(GPU, episode, 3, window_s=0.05)
    assert found["episode_j"] == pytest.approx(3.0)
    assert found["n_episodes"] == len(seen) > 3
    assert seen[:5] == [0, 1, 2, 0, 1]
    assert found["counter"] == "of the GPU, by Zeus 0.16.0"
    assert not zeus.last.open


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"has_counter": False}, "this GPU has no counter of energy"),
        ({"trouble": "NVML is not here"}, "Zeus: RuntimeError: NVML is not here"),
        ({}, "the counter stood still"),
    ],
)
def test_what_cannot_be_measured_says_why(zeus, change, why):
    for name, value in change.items():
        setattr(zeus, name, value)
    found = episode_energy(GPU, lambda i: None, 2, window_s=0.0)
    assert found == {"episode_j": None, "not_measured_because": why}


def test_without_zeus_or_a_gpu_nothing_is_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert "medbench[energy]" in episode_energy(GPU, _never, 2)["not_measured_because"]
    assert "root's" in episode_energy(torch.device("cpu"), _never, 2)["not_measured_because"]


def test_an_episode_that_fails_is_no_fault_of_the_counter(zeus):
    with pytest.raises(AssertionError, match="it ran"):
        episode_energy(GPU, _never, 2)
    assert zeus.last.cancelled


def _never(i):
    raise AssertionError("it ran")
