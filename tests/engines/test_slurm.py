"""The SLURM engine, with submitit's local executor and with SLURM itself where there is one.

Real processes, killed and pre-empted.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from engine_runs import (
    ONLY,
    alive,
    checkpoints,
    family,
    medbench,
    processes,
    scores,
    trainings,
    wait_for,
)

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'medbench[slurm]'")
pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(params=["local", "slurm"])
def engine(request) -> tuple[object, ...]:
    """Options for submitit's local executor, and for a SLURM that answers here."""
    if request.param == "slurm":
        sinfo = shutil.which("sinfo")
        if sinfo is None or subprocess.run([sinfo], capture_output=True, check=False).returncode:
            pytest.skip("there is no SLURM here")
    return ("--engine", "slurm", "--slurm", f"cluster={request.param}", "--workers", 2)


def tasks(out: Path) -> list[psutil.Process]:
    """What runs in the allocations of a run: one process of submitit's for each job."""
    found = processes("-m submitit.core._submit", str(out))
    return [p for p in found if not p.name().startswith("srun")]


def test_a_killed_task_and_a_preempted_one_go_on_from_their_checkpoints(
    suite, start, calm, gate, tmp_path, engine
):
    out = tmp_path / "out"
    run = start(suite, "--out", out, *engine, *ONLY)
    wait_for(lambda: len(checkpoints(out)) == 2, run)
    killed, preempted = tasks(out)
    children = [*family(killed), *family(preempted)[1:]]
    killed.kill()
    preempted.send_signal(signal.SIGUSR2)
    wait_for(lambda: not any(alive(c) for c in children), run)
    gate.unlink()
    told = run.ended()
    assert "ended without a result" in told
    assert "it is tried again" in told
    found = trainings(out)
    assert all(t["resumed_at"] for t in found)
    # Of the pre-empted one only SLURM knows: it was not tried again.
    assert sorted(len(t["earlier_tries"]) for t in found) == [0, 1]
    assert scores(out) == calm
    assert not list((out / "slurm" / "locks").iterdir())


def test_what_a_killed_coordinator_left_running_is_ended_before_anything_runs_again(
    suite, start, calm, gate, tmp_path, engine
):
    out = tmp_path / "out"
    first = start(suite, "--out", out, *engine, *ONLY)
    wait_for(lambda: len(checkpoints(out)) == 2, first)
    orphans = [p for task in tasks(out) for p in family(task)]
    first.process.kill()
    first.process.wait()
    assert all(alive(p) for p in orphans)
    second = start(suite, "--out", out, *engine, *ONLY)
    wait_for(lambda: [p for p in tasks(out) if p not in orphans], second)
    assert not any(alive(p) for p in orphans)
    gate.unlink()
    second.ended()
    assert all(t["resumed_at"] for t in trainings(out))
    assert scores(out) == calm


def test_without_slurm_the_message_says_what_is_missing(suite, tmp_path):
    if shutil.which("sbatch"):
        pytest.skip("SLURM is here")
    done = medbench("run", suite, "--out", tmp_path / "o", "--engine", "slurm", code=2)
    assert "sbatch is not on PATH" in done.stderr
    assert "cluster=local" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--slurm", "partition=x"], "--slurm is for --engine slurm"),
        (["--engine", "slurm", "--gpus", "0"], "--gpus is for --engine local"),
        (["--engine", "slurm", "--store", "s3://b"], "--store is for --engine ray"),
        (["--engine", "slurm", "--slurm", "partitoin=x"], "Did you mean 'partition'"),
    ],
)
def test_options_of_another_engine_are_refused(suite, tmp_path, options, words):
    done = medbench("run", suite, "--out", tmp_path / "o", *options, code=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
