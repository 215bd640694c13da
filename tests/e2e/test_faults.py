"""What happens to a run from outside: kills, memory, full disks, and two hands on one folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from e2e.runs import MEDBENCH, alive, children, medbench, records, scores, wait_for


def once(name: str, file: Path, times: int = 1) -> str:
    return f"{{name: toy/{name}, params: {{file: {file}, p: {times}}}}}"


# --- a job dies ----------------------------------------------------------------------------------


def test_a_job_that_is_killed_is_tried_again_and_its_record_tells_of_it(suite, tmp_path):
    out = tmp_path / "out"
    path = suite(once("dies-once", tmp_path / "mark"), "toy/mean")
    done = medbench("run", path, "--out", out, "--only", "3w1s", "--workers", 1)
    assert "it is tried again" in done.stderr
    found = records(out)
    died = found["toy/dies-once toy:3w1s 0"]
    (before,) = died["earlier_tries"]
    assert before["status"] == "crash"
    assert "killed by SIGKILL" in before["error"]
    assert found["toy/mean toy:3w1s 0"]["earlier_tries"] == []
    same = scores(out)
    assert same["toy/dies-once toy:3w1s 0"] == same["toy/mean toy:3w1s 0"]


def test_tries_end_and_a_later_run_can_try_again(suite, tmp_path):
    out = tmp_path / "out"
    path = suite(once("dies-once", tmp_path / "mark", times=3))
    medbench("run", path, "--out", out, "--only", "3w1s", code=3)
    (record,) = records(out).values()
    assert record["status"] == "crash"
    assert len(record["earlier_tries"]) == 1
    medbench("run", path, "--out", out, "--only", "3w1s", code=3)  # nothing to do
    # Two tries are used up; the third is the last that dies.
    medbench("retry", "--failed", out, "--only", "3w1s", "--retries", 1)
    (record,) = records(out).values()
    assert record["status"] == "ok"


def test_a_worker_that_is_killed_from_outside_is_tried_again(suite, tmp_path):
    out, calm = tmp_path / "out", tmp_path / "calm"
    path = suite("toy/slow-training", budget="{episodes: 60}")
    medbench("run", path, "--out", calm, "--only", "3w1s")
    command = [*MEDBENCH, "run", path, "--out", str(out), "--only", "3w1s", "--workers", "1"]
    slow = os.environ | {"TOY_SLEEP": "0.1", "MEDBENCH_CHECKPOINT_S": "0.2"}
    run = subprocess.Popen(command, env=slow, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("trainings/*/checkpoint.safetensors")))
    killed = [p for p in children(run.pid) if os.getpgid(p) != os.getpgid(run.pid)]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert killed
    (training,) = out.glob("trainings/*/training.json")
    data = json.loads(training.read_text())
    assert data["resumed_at"], "the training began anew"
    assert "killed by SIGKILL" in data["earlier_tries"][0]["error"]
    assert scores(out) == scores(calm)


def test_coordinator_and_workers_killed_together_leave_a_run_that_goes_on(suite, tmp_path):
    out, calm = tmp_path / "out", tmp_path / "calm"
    path = suite("toy/mean", "toy/slow-training", budget="{episodes: 60}")
    medbench("run", path, "--out", calm)
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "2"]
    run = subprocess.Popen(
        command, env=os.environ | {"TOY_SLEEP": "0.1"}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(out.glob("records/*.json"))) == 2)
    for pid in [run.pid, *children(run.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()
    # The lock of a dead process is nobody's.
    medbench("run", path, "--out", out)
    assert scores(out) == scores(calm)
    assert not list(out.rglob("*.tmp"))


def test_a_job_whose_native_code_keeps_pythons_lock_dies_with_a_killed_run(suite, tmp_path):
    mark, out = tmp_path / "pid", tmp_path / "out"
    path = suite(once("keeps-the-lock", mark))
    run = subprocess.Popen(
        [*MEDBENCH, "run", path, "--out", str(out), "--only", "3w1s"], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: mark.exists() and mark.read_text())
    job = int(mark.read_text())
    assert alive(job)
    run.kill()
    run.wait()
    wait_for(lambda: not alive(job), 15)


# --- memory --------------------------------------------------------------------------------------


def test_a_job_that_takes_ever_more_memory_is_ended_and_no_other_with_it(suite, tmp_path):
    out = tmp_path / "out"
    path = suite("toy/grows", "toy/mean")
    told = medbench(
        "run", path, "--out", out, "--only", "3w1s", "--memory", "900MB", "--retries", 0, code=1
    ).stderr
    found = records(out)
    assert found["toy/mean toy:3w1s 0"]["status"] == "ok"
    grown = found["toy/grows toy:3w1s 0"]
    assert grown["status"] == "oom"
    assert "--memory allows 0.84 GiB" in grown["error"]
    assert "oom" in told


def test_after_memory_ran_out_blocks_are_smaller(suite, tmp_path):
    out = tmp_path / "out"
    path = suite("toy/hungry", "toy/mean")
    medbench("run", path, "--out", out, "--only", "3w1s")
    found = records(out)
    hungry = found["toy/hungry toy:3w1s 0"]
    assert [t["status"] for t in hungry["earlier_tries"]] == ["oom"]
    assert hungry["earlier_tries"][0]["stage"] == "accuracy_lane"
    same = scores(out)
    assert same["toy/hungry toy:3w1s 0"] == same["toy/mean toy:3w1s 0"]


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_leaves_nobody_behind(suite, tmp_path, number):
    path, out = suite("toy/mean", "toy/hangs"), tmp_path / "out"
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "1", "--only", "3w1s"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "cost lane" in pulse(out) and list(out.glob("records/*.json")))
    jobs = children(run.pid)
    run.send_signal(number)
    time.sleep(0.05)
    if run.poll() is None:
        run.send_signal(number)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in told
    wait_for(lambda: not any(alive(p) for p in jobs), 15)
    (record,) = records(out).values()
    assert record["status"] == "ok"
    medbench("status", out, code=1)


def pulse(out: Path) -> str:
    try:
        return (out / "pulse.json").read_text()
    except OSError:
        return ""


# --- the folder ----------------------------------------------------------------------------------


def test_a_plugin_that_fills_the_disk_stops_the_run_and_what_is_recorded_is_whole(
    suite, tmp_path, small_disk
):
    path = suite("toy/mean", once("fills-the-disk", small_disk / "big"))
    out = small_disk / "out"
    run = medbench("run", path, "--out", out, "--only", "3w1s", "--workers", 1, code=None)
    assert run.returncode in (1, 2)
    assert scores(out).keys() >= {"toy/mean toy:3w1s 0"}
    for data in records(out).values():
        assert data["status"] == "ok" or data["error"]
    (small_disk / "big").unlink()
    medbench("run", suite("toy/mean"), "--out", out)
    assert len(scores(out)) >= 2


def test_what_a_plugin_prints_goes_to_its_log_alone(suite, tmp_path):
    out = tmp_path / "out"
    done = medbench("run", suite("toy/chatty"), "--out", out, "--only", "3w1s", code=3)
    assert len(done.stdout) + len(done.stderr) < 5000
    (record,) = records(out).values()
    assert sum(map(len, record["log_tail"])) < 10_000
    (log,) = (out / "logs").glob("*.log")
    assert log.stat().st_size > 2_000_000


def test_a_clock_that_was_set_back_makes_no_old_record_count(suite, tmp_path):
    out = tmp_path / "out"
    medbench("run", suite("toy/mean"), "--out", out, "--only", "3w1s")
    (old,) = records(out).values()
    # As if it had been written by a clock that ran ahead.
    data = {k: v for k, v in old.items() if k != "path"} | {"created": "2090-01-01T00:00:00+00:00"}
    old["path"].write_text(json.dumps(data))
    path = suite("{name: toy/mean, params: {p: 1}}")
    done = medbench("run", path, "--out", out, "--only", "3w1s")
    assert "1 cell measured" in done.stderr
    shown = json.loads(medbench("status", out, "--json", code=1).stdout)
    states = {r["title"]: r["state"] for r in shown["cells"]}
    assert states["toy:3w1s / conv4 / toy/mean / seed0"] == "ok"
    chosen = subprocess.run(
        [sys.executable, "-c", _CHOSEN, str(out)], capture_output=True, text=True, check=True
    )
    assert chosen.stdout.strip() == "1"


_CHOSEN = """
import sys
from pathlib import Path
from medbench.records import find_records
(record,) = find_records([Path(sys.argv[1])])
print(record.data["ingredients"]["algorithm"]["params"]["p"])
"""


def test_a_cost_lane_has_the_device_alone_unless_told_otherwise(suite, tmp_path):
    path = suite("toy/mean", "toy/slow-training", budget="{episodes: 40}")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    medbench("run", path, "--out", alone, "--workers", 2, TOY_SLEEP="0.05")
    medbench("run", path, "--out", shared, "--workers", 2, "--cost-lane", "shared")
    for data in records(alone).values():
        assert data["costs"]["exclusive"], data["costs"]
    for data in records(shared).values():
        assert not data["costs"]["exclusive"]
        assert data["costs"]["not_exclusive_because"] == "other jobs were let run beside it"
    assert scores(alone) == scores(shared)


def test_a_run_can_be_watched_while_it_goes_and_after_it_was_killed(suite, tmp_path):
    path, out = suite("toy/mean", "toy/slow-training", budget="{episodes: 4000}"), tmp_path / "out"
    assert "No run of this version" not in medbench("list", "suites").stdout
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "2"]
    run = subprocess.Popen(
        command, env=os.environ | {"TOY_SLEEP": "0.02"}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(list(out.glob("records/*.json"))) == 2)
        wait_for(lambda: '"fraction": 0.' in pulse(out))
        told = medbench("status", out, code=1).stdout
        assert "running now:" in told
        watch = subprocess.Popen(
            [*MEDBENCH, "status", str(out), "--watch"], stdout=subprocess.PIPE, text=True
        )
        assert watch.stdout is not None
        lines = ""
        while "train toy/slow-training" not in lines:
            lines += (line := watch.stdout.readline())
            assert line, lines
    finally:
        run.terminate()
        run.wait(30)
    rest, _ = watch.communicate(timeout=60)
    lines += rest
    assert "2 ok" in lines
    assert "stopped" in lines.splitlines()[-2]
    assert watch.returncode == 1


# --- any of it, in any order ---------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(["kill", "kill all", "stop", "cut a record", "cut scores", "lose weights"]),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    # A failing example of a minute each is short enough; looking for shorter ones took ten.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_whatever_happens_in_between_the_records_end_up_the_same(suite, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("any")
    path = suite("toy/mean", "toy/slow-training", budget="{episodes: 30}")
    calm, out = tmp_path_factory.getbasetemp() / "any-calm", folder / "out"
    if not (calm / "records").exists():
        medbench("run", path, "--out", calm)
    for step in steps:
        command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "2"]
        slow = os.environ | {"TOY_SLEEP": "0.1", "MEDBENCH_CHECKPOINT_S": "0.2"}
        run = subprocess.Popen(command, env=slow, stderr=subprocess.DEVNULL)
        wait_for(lambda run=run: run.poll() is not None or list(out.glob("records/*.json")))
        if step == "kill all":
            for pid in [run.pid, *children(run.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif step == "stop":
            # It may come before medbench listens; a background process would ignore SIGINT then.
            run.send_signal(signal.SIGTERM)
        else:
            run.kill()
        run.wait(180)
        damage(out, step)
    medbench("run", path, "--out", out)
    assert scores(out) == scores(calm)
    assert not list(out.rglob("*.tmp"))


def damage(out: Path, how: str) -> None:
    for suffix, step in ((".json", "cut a record"), (".parquet", "cut scores")):
        files = sorted(p for p in (out / "records").glob(f"*{suffix}") if ".groups" not in p.name)
        if how == step and files:
            files[0].write_bytes(files[0].read_bytes()[:-20])
    learned = sorted((out / "trainings").glob("*/*.safetensors"))
    if how == "lose weights" and learned:
        learned[0].write_bytes(learned[0].read_bytes()[:50])


def test_a_job_sees_the_gpu_of_its_slot_and_no_other(suite, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_SLOT, suite("toy/gpu"), str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "3,7"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for record in records(out).values():
        assert record["error"] == "ValueError: sees 7"


_ON_A_SLOT = """
import sys
from pathlib import Path
from medbench.config import load_suite
from medbench.engine.coordinator import run_plan
from medbench.engine.local import LocalExecutor
from medbench.engine.slots import gpu_slots
from medbench.opened import default_place
from medbench.plan import build_plan
from medbench.plugins import registry

out, place = Path(sys.argv[2]), default_place()
suite, _ = load_suite(sys.argv[1], registry())
limits = {"cell": 60.0, "training": 60.0}
executor = LocalExecutor(out, place, gpu_slots(["1"], 1), timeouts=limits)
run_plan(build_plan(suite, registry(), place), registry(), out, executor, suite_text="name: toy")
"""
