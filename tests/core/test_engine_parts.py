"""Order of trainings, the pulse of a run, and the guard over memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from medbench.engine import pulse as pulse_module
from medbench.engine.coordinator import longest_first
from medbench.engine.executor import Told
from medbench.engine.memory import Guard, machine_memory, resident
from medbench.engine.pulse import Pulse, read_pulse
from medbench.jobs import Folders, Job


def job(name: str, kind: str = "training", trainer: str = "t", images: int = 100) -> Job:
    return Job(
        kind=kind,
        key=name,
        title=name,
        slug=name,
        ingredients={"trainer": trainer, "backbone": "b"},
        training_key=None,
        request={"budget_images": images},
    )


def timed(out, trainer: str, seconds: float, images: int) -> None:
    folder = out / "trainings" / trainer
    folder.mkdir(parents=True)
    data = {
        "ingredients": {"trainer": trainer, "backbone": "b"},
        "train_s": seconds,
        "images_seen": images,
    }
    (folder / "training.json").write_text(json.dumps(data))


def test_the_longest_training_begins_first_as_far_as_is_known(tmp_path):
    timed(tmp_path, "slow", seconds=100, images=100)
    timed(tmp_path, "fast", seconds=1, images=100)
    (tmp_path / "trainings" / "odd").mkdir()
    (tmp_path / "trainings" / "odd" / "training.json").write_text("{")
    jobs = [
        job("a", trainer="fast", images=1000),
        job("b", trainer="slow", images=50),
        job("c", trainer="new", images=40),
        job("d", trainer="slow", images=60),
    ]
    found = [j.key for j in longest_first(jobs, Folders(tmp_path))]
    assert found == ["d", "b", "c", "a"]


def test_without_history_the_largest_budget_begins_first(tmp_path):
    jobs = [job("a", images=10), job("b", images=30), job("c", images=20)]
    assert [j.key for j in longest_first(jobs, Folders(tmp_path))] == ["b", "c", "a"]


def test_the_pulse_counts_every_cell_once_and_guesses_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse_module, "EVERY_S", 0.0)
    cells, trainings = [job(f"c{i}", "cell") for i in range(4)], [job("t")]
    pulse = Pulse(tmp_path, 2, ["ok", "crash"], cells, trainings)
    pulse.beat()
    state = read_pulse(tmp_path)
    assert state is not None
    assert state.going
    assert state.cells == {"ok": 1, "crash": 1, "waiting": 4}
    assert state.left_s is None
    pulse.started(trainings[0], "gpu0")
    pulse.finished(trainings[0], "ok", 50.0)
    pulse.started(cells[0], "gpu0")
    pulse.started(cells[1], "gpu1")
    pulse.told(Told(cells[1], 0.5, "episode 20/40"))
    pulse.finished(cells[0], "ok", 10.0)
    pulse.beat()
    state = read_pulse(tmp_path)
    assert state is not None
    assert state.cells == {"ok": 2, "crash": 1, "running": 1, "waiting": 2}
    assert state.trainings == {"ok": 1}
    (doing,) = state.running
    assert (doing.where, doing.fraction, doing.text) == ("gpu1", 0.5, "episode 20/40")
    # Two and a half cells of ten seconds, on two slots.
    assert state.left_s == 12.5
    pulse.again(cells[1])
    pulse.end("stopped")
    state = read_pulse(tmp_path)
    assert state is not None
    assert not state.going
    assert state.tried_again == 1
    assert state.cells == {"ok": 2, "crash": 1, "waiting": 3}


def test_a_pulse_that_cannot_be_read_is_none(tmp_path):
    assert read_pulse(tmp_path) is None
    (tmp_path / "pulse.json").write_text('{"host": 1}')
    assert read_pulse(tmp_path) is None


HOLDS = "x = bytearray(b'1') * {size}; print('ready', flush=True); input()"
STARTS = (
    "import subprocess, sys; "
    "p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE, "
    "stdin=subprocess.PIPE); p.stdout.readline(); print('ready', flush=True); input(); p.kill()"
)


def test_memory_of_a_job_is_that_of_all_it_started(tmp_path):
    code = HOLDS.format(size=200 << 20)
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert 200 << 20 < resident(process.pid) < 300 << 20
        ((index, lost),) = Guard(100 << 20).look([os.getpid(), process.pid])[-1:]
        assert index == 1
        assert lost.status == "oom"
        assert "--memory allows 0.10 GiB" in lost.message
        assert not Guard(None).look([process.pid])
    finally:
        process.communicate("\n", timeout=30)
    assert resident(process.pid) == 0


def test_the_largest_job_goes_when_the_machine_has_no_memory_left(monkeypatch):
    from medbench.engine import memory

    monkeypatch.setattr(memory, "machine_memory", lambda: (1 << 20, 1 << 30))
    monkeypatch.setattr(memory, "resident", {1: 5, 2: 9, 3: 7}.__getitem__)
    ((index, lost),) = Guard(None).look([1, 2, 3])
    assert index == 1
    assert "the most of all jobs" in lost.message


def test_memory_is_looked_at_now_and_then_only(monkeypatch):
    guard = Guard(1)
    assert guard.look([os.getpid()])
    assert not guard.look([os.getpid()])
    time.sleep(0.5)
    assert guard.look([os.getpid()])


def test_free_memory_is_less_than_all_of_it():
    free, total = machine_memory()
    assert 0 < free < total
