"""What the cost lane keeps for comparisons: raw times, waiting, calibration, and exact bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medbench.allocations import TensorBytes
from medbench.backbones import build_backbone
from medbench.calibration import VERSION, Calibration
from medbench.config import BackboneRef
from medbench.contention import CoreWait
from medbench.gate.measurements import CALIBRATIONS, STAGES, WAITS
from medbench.lanes import Bench, Lanes
from medbench.opened import default_place
from medbench.plugins import load_factory, registry
from medbench.protocols import load_protocol
from medbench.tasks import alone


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    registry.cache_clear()
    found = registry()
    protocol, _ = load_protocol(found, "synthetic-classes")
    target = alone(found, protocol, default_place(), "synthetic:cells", 1)
    reference = BackboneRef(name="conv4", params={"width": 4})
    backbone = build_backbone(found, reference, image_size=28, channels=3, seed=0).eval()
    entry = found.get("algorithms", "nearest-centroid")
    bench = Bench(found, target, backbone, entry, {}, torch.device("cpu"), 0)
    block = target.pool.draw(target.shape, target.episode_key, 0, 4)
    folder = tmp_path_factory.mktemp("cache")
    return Lanes(bench, load_factory(entry)(), block, folder)


@pytest.fixture(scope="module")
def costs(lanes):
    return [lanes.cost(4)[0] for _ in range(2)]


def test_the_summary_is_that_of_the_episodes_that_are_kept(costs):
    for found in costs:
        for name, stages in STAGES.items():
            total = np.sum([found["episodes"][s] for s in stages], axis=0)
            assert found["times"][name]["median"] == pytest.approx(np.median(total), abs=2e-7)
            assert len(total) == 4


def test_waiting_is_part_of_the_time_and_calibration_has_both_ends(costs):
    for found in costs:
        assert found["calibration"]["version"] == VERSION
        for name in CALIBRATIONS:
            assert len(found["calibration"][name]) == 2
            assert min(found["calibration"][name]) > 0
        for name, stages in STAGES.items():
            waits = np.array(found["episodes"][WAITS[name]])
            total = np.sum([found["episodes"][s] for s in stages], axis=0)
            assert (waits >= 0).all()
            # Both are rounded, and the kernel's clock is not ours: microseconds.
            assert (waits <= total + 1e-5).all()


class Preempted:
    """A kernel that gives the core to another for three milliseconds whenever it is asked."""

    known = True
    waited = 0.0

    def seconds(self):
        start = time.perf_counter()
        while (took := time.perf_counter() - start) < 3e-3:
            pass
        self.waited += took
        return self.waited

    def close(self):
        pass


def test_a_turn_of_another_process_beside_a_clock_is_not_more_than_the_time(lanes, monkeypatch):
    monkeypatch.setattr("medbench.lanes.CoreWait", Preempted)
    found = lanes.cost(4)[0]
    for name, stages in STAGES.items():
        waits = np.array(found["episodes"][WAITS[name]])
        total = np.sum([found["episodes"][s] for s in stages], axis=0)
        assert (waits >= 3e-3 - 1e-6).all()
        assert (waits < total).all()
    # The work takes milliseconds; taken out, the waits leave it.
    for name in CALIBRATIONS:
        assert min(found["calibration"][name]) > 1e-4


def test_tensor_bytes_are_the_same_at_every_run(costs):
    one, two = (c["memory"] for c in costs)
    assert one["peak_tensor_bytes"] == two["peak_tensor_bytes"] > 0
    assert one["total_tensor_bytes"] == two["total_tensor_bytes"] >= one["peak_tensor_bytes"]


def test_tensor_bytes_are_those_that_are_live_at_once():
    kept = torch.ones(1000)
    with TensorBytes() as counted:
        first = kept + 1  # 4,000 bytes
        second = first * 2  # 8,000 live
        del first
        third = second.double()  # 4,000 + 8,000
        del second, third
    assert counted.peak_bytes == 12_000
    # Beside the numbers 1 and 2, which are tensors for a moment.
    assert 16_000 <= counted.total_bytes < 16_100
    with TensorBytes() as nothing:
        pass
    assert (nothing.peak_bytes, nothing.total_bytes) == (0, 0)


def test_a_copy_shows_as_its_size():
    x = torch.ones(256, 256)
    sizes = []
    for copies in (1, 2):
        with TensorBytes() as counted:
            held = [x.clone() for _ in range(copies)]
        del held
        sizes.append(counted.peak_bytes)
    assert sizes[1] - sizes[0] == x.numel() * 4


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_a_sleep_is_not_waiting_for_a_core():
    wait = CoreWait()
    assert wait.known
    before, start = wait.seconds(), time.perf_counter()
    time.sleep(0.3)
    slept, waited = time.perf_counter() - start, wait.seconds() - before
    wait.close()
    # Waking up may wait for a core; the sleep itself does not.
    assert slept - waited > 0.25


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_sharing_a_core_is_waiting_for_it():
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    core = min(os.sched_getaffinity(0))
    mine = os.sched_getaffinity(0)
    other = context.Process(target=_spin, args=(core, 20.0), daemon=True)
    other.start()
    try:
        os.sched_setaffinity(0, {core})
        time.sleep(1.0)
        wait = CoreWait()
        before, start, own = wait.seconds(), time.perf_counter(), time.thread_time()
        while time.thread_time() - own < 0.2:
            pass
        wall, waited = time.perf_counter() - start, wait.seconds() - before
        wait.close()
    finally:
        os.sched_setaffinity(0, mine)
        other.kill()
        other.join()
    # Wall time less waiting is the work.
    assert wall - waited == pytest.approx(0.2, abs=0.06)


def _spin(core, seconds):
    os.sched_setaffinity(0, {core})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_where_the_system_does_not_tell_there_is_no_waiting(monkeypatch, tmp_path):
    from medbench import contention

    monkeypatch.setattr(contention, "_SCHEDSTAT", tmp_path / "none")
    wait = CoreWait()
    assert (wait.known, wait.seconds()) == (False, 0.0)


def test_calibration_is_made_of_medians_that_are_net_of_waiting(monkeypatch):
    class Machine:
        now = waited = 0.0
        turns = iter([1.0, 1.0, 9.0] * 8)

        def seconds(self):
            return self.waited

        def work(self):
            took = next(self.turns)
            # Beside the work, it waited twice as long for the core.
            self.now, self.waited = self.now + 3 * took, self.waited + 2 * took

    machine = Machine()
    calibration = Calibration(torch.device("cpu"), machine)
    monkeypatch.setattr("medbench.calibration.clock", lambda device: machine.now)
    monkeypatch.setattr(calibration, "_work", {"matmul_s": machine.work})
    calibration.sample()
    assert calibration.as_dict()["matmul_s"] == [1.0]
