"""A training that several processes share, through the command line: same result, kill, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toy
from e2e.runs import MEDBENCH, alive, children, medbench, wait_for

MAML = "{name: maml, params: {meta_batch: 3, inner_steps: 2, train_shot: 1}}"


@pytest.fixture
def suite(distribute: Any, tmp_path: Path) -> Callable[..., str]:
    """Write a suite; returns the path."""
    toy.install(distribute)

    def write(*algorithms: str, **more: object) -> str:
        path = tmp_path / "suite.yaml"
        path.write_text(toy.suite(*algorithms, **more))
        return str(path)

    return write


def trainings(out: Path) -> dict[str, dict[str, Any]]:
    """Every training's record by its algorithm, with what was learned."""
    found = {}
    for path in out.glob("trainings/*/training.json"):
        data = json.loads(path.read_text())
        if data["status"] == "ok":
            data["learned"] = load_file(path.with_name("learned.safetensors"))
        found[data["title"].split()[0]] = data
    return found


def test_a_training_that_two_processes_share_is_that_of_one(
    suite: Callable[..., str], tmp_path: Path
) -> None:
    path = suite(MAML, "toy/slow-training", budget="{episodes: 15}")
    found = []
    for n in (1, 2):
        out = tmp_path / str(n)
        medbench("run", path, "--out", out, "--only", "3w1s", "--training-processes", n)
        found.append(trainings(out))
    one, two = (f["maml"] for f in found)
    assert (one["key"], one["images_seen"]) == (two["key"], two["images_seen"])
    assert (one["processes"], two["processes"]) == (1, 2)
    # In single precision, where Adam's first steps go by the sign of what may be rounding; the
    # processes themselves are compared in double precision, in tests/core/test_distributed.py.
    for a, b in zip(one["curve"], two["curve"], strict=True):
        assert (a["step"], pytest.approx(a["loss"], rel=0.01)) == (b["step"], b["loss"])
    for name, tensor in one["learned"].items():
        torch.testing.assert_close(two["learned"][name], tensor, rtol=0.01, atol=0.011)
    other = found[1]["toy/slow-training"]
    assert other["processes"] == 1
    assert other["notes"][0].startswith("2 processes were asked for, and one trained")
    told = [json.loads(p.read_text())["training"] for p in (tmp_path / "2/records").glob("*.json")]
    assert sorted(t["processes"] for t in told) == [1, 2]


def test_a_shared_training_whose_process_is_killed_is_a_failure_that_can_be_gone_on_from(
    suite: Callable[..., str], tmp_path: Path
) -> None:
    path, out = suite(MAML, budget="{episodes: 240}"), tmp_path / "out"
    arguments = ["--out", str(out), "--only", "3w1s", "--training-processes", "2"]
    run = subprocess.Popen(
        [*MEDBENCH, "run", path, *arguments],
        env=os.environ | {"MEDBENCH_CHECKPOINT_S": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: list(out.glob("trainings/*/checkpoint.safetensors")), 240)
        before = children(run.pid)
        (second,) = [p for p in before if "spawn_main" in _command(p)]
        os.kill(second, signal.SIGKILL)
        _, told = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 3, told
    failed = trainings(out)["maml"]
    assert failed["status"] == "crash"
    assert "Process 2 of 2 was killed by SIGKILL" in failed["error"]
    wait_for(lambda: not any(alive(p) for p in before), 15)
    medbench("run", path, *arguments, "--retry-failed")
    again = trainings(out)["maml"]
    assert again["resumed_at"]
    assert again["resumed_at"][0] > 0
    assert again["curve"][-1]["step"] == again["steps"] == 100


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
