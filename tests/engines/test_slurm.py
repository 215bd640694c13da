"""The SLURM engine with submitit's local executor: real processes, killed and pre-empted."""

from __future__ import annotations

import signal

import pytest
from engine_runs import (
    ONLY,
    alive,
    checkpoints,
    family,
    processes,
    scores,
    trainings,
    wait_for,
)

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'medbench[slurm]'")
pytestmark = pytest.mark.xdist_group("engines")

LOCAL = ("--engine", "slurm", "--slurm", "cluster=local", "--workers", 2)
SLOW = {"TOY_SLEEP": "0.1", "MEDBENCH_CHECKPOINT_S": "0.3"}


def test_a_killed_task_and_a_preempted_one_go_on_from_their_checkpoints(
    suite, start, calm, tmp_path
):
    out = tmp_path / "out"
    run = start(suite, "--out", out, *LOCAL, *ONLY, **SLOW)
    wait_for(lambda: len(checkpoints(out)) == 2, run)
    killed, preempted = processes("submitit.local._local", str(out))
    children = family(killed)[1:]
    (task,) = killed.children()
    task.kill()
    # As SLURM does it: the signal goes to what runs in the allocation.
    preempted.children()[0].send_signal(signal.SIGUSR2)
    wait_for(lambda: not any(alive(c) for c in children), run)
    told = run.ended()
    assert "ended without a result" in told
    assert "it is tried again" in told
    found = trainings(out)
    assert all(t["resumed_at"] for t in found)
    # Of the pre-empted one nobody but SLURM knows: it was not tried again.
    assert sorted(len(t["earlier_tries"]) for t in found) == [0, 1]
    assert scores(out) == calm
    assert not list((out / "slurm" / "locks").iterdir())


def test_what_a_killed_coordinator_left_running_is_ended_before_anything_runs_again(
    suite, start, calm, tmp_path
):
    out = tmp_path / "out"
    first = start(suite, "--out", out, *LOCAL, *ONLY, **SLOW)
    wait_for(lambda: len(checkpoints(out)) == 2, first)
    orphans = [p for c in processes("submitit.local._local", str(out)) for p in family(c)]
    first.process.kill()
    first.process.wait()
    assert all(alive(p) for p in orphans)
    second = start(suite, "--out", out, *LOCAL, *ONLY, **SLOW)

    def fresh():
        return [p for p in processes("submitit.local._local", str(out)) if p not in orphans]

    wait_for(fresh, second)
    assert not any(alive(p) for p in orphans)
    second.ended()
    assert all(t["resumed_at"] for t in trainings(out))
    assert scores(out) == calm
