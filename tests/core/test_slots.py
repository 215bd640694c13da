"""Slots: which GPU a job sees, and how many jobs there is room for."""

from __future__ import annotations

import os

import pytest

from medbench.api import Place
from medbench.cli.engine import size
from medbench.engine.local import LocalExecutor
from medbench.engine.slots import cpu_slots, gpu_slots, jobs_that_fit
from medbench.errors import UsageError
from medbench.jobs import Job


def test_gpus_get_their_jobs_in_turn(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [s.gpu for s in gpu_slots(["0", "2"], 2)] == ["0", "2", "0", "2"]
    assert [s.device for s in gpu_slots(["0", "2"], 1)] == ["gpu0", "gpu2"]
    assert len(gpu_slots(["0", "1"], 4, workers=3)) == 3


def test_indices_count_among_the_gpus_that_the_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert [s.gpu for s in gpu_slots(["0", "1"], 1)] == ["5", "GPU-abc"]
    with pytest.raises(UsageError, match="there is no GPU 2; CUDA_VISIBLE_DEVICES shows 2"):
        gpu_slots(["0", "2"], 1)


def test_jobs_fit_the_smallest_gpu():
    assert jobs_that_fit([80 << 30, 24 << 30], 10 << 30) == 2
    with pytest.raises(UsageError, match=r"smallest GPU has 24.0 GiB"):
        jobs_that_fit([80 << 30, 24 << 30], 30 << 30)


def test_the_cpu_has_a_slot_for_every_share_of_its_cores():
    cores = len(os.sched_getaffinity(0))
    assert len(cpu_slots(None, 1)) == cores
    assert len(cpu_slots(None, 10 * cores)) == 1
    assert len(cpu_slots(5, 4)) == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [("12GiB", 12 << 30), ("500MB", 500_000_000), ("1.5g", 1_500_000_000), ("1024", 1024)],
)
def test_sizes_are_read(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "-1", "12 apples", "0"])
def test_what_is_no_size_is_refused(text):
    import click

    with pytest.raises(click.BadParameter, match="is not a size; write such as 12GiB"):
        size(text)


def a_job(kind: str, parallel: bool = False) -> Job:
    return Job(kind, "k", "t", "s", {}, None, {"parallel": parallel})


def an_executor(slots, processes: int, tmp_path) -> LocalExecutor:
    return LocalExecutor(
        tmp_path, Place(None, tmp_path), slots, training_processes=processes, timeouts={}
    )


def test_a_shared_training_takes_a_slot_on_each_of_several_gpus(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = an_executor(gpu_slots(["0", "1"], 2), 2, tmp_path)
    free = executor._slots
    taken = executor._free_for(a_job("training", parallel=True))
    assert [slot.gpu for slot in taken] == ["0", "1"]
    # Two slots are left, both on one GPU: not enough for a training of two processes.
    free[:] = [slot for slot in free if slot.gpu == "0"]
    assert not executor.has_room(a_job("training", parallel=True))
    assert executor.has_room(a_job("training"))
    assert executor.has_room(a_job("cell"))
    free.clear()
    assert not executor.has_room(a_job("cell"))


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UsageError, match="--training-processes 3 needs as many GPUs"):
        an_executor(gpu_slots(["0", "1"], 2), 3, tmp_path)


def test_on_the_cpu_a_shared_training_takes_all_there_is_at_most(tmp_path):
    executor = an_executor(cpu_slots(2, 1), 4, tmp_path)
    assert len(executor._free_for(a_job("training", parallel=True))) == 2
