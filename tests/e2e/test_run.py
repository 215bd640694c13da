"""The main job with real processes: run, fail, kill, resume, and the same scores every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from e2e.runs import MEDBENCH, alive, children, medbench, records, scores, wait_for


def test_scores_are_identical_with_one_worker_with_two_and_again(suite, tmp_path):
    path = suite("toy/mean", "toy/slow-training", "maml", seeds="[0, 1]", budget="{episodes: 12}")
    medbench("run", path, "--out", tmp_path / "one", "--only", "3w1s", "--workers", 1)
    medbench("run", path, "--out", tmp_path / "two", "--only", "3w1s", "--workers", 2)
    one, two = scores(tmp_path / "one"), scores(tmp_path / "two")
    assert len(one) == 6
    assert one == two
    assert one["toy/slow-training toy:3w1s 0"] != one["toy/slow-training toy:3w1s 1"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "one" / "records").iterdir()}
    done = medbench("run", path, "--out", tmp_path / "one", "--only", "3w1s")
    assert "0 cells measured, 6 kept from before" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "one" / "records").iterdir()}
    shown = medbench("leaderboard", tmp_path / "one").stdout
    assert "toy/slow-training" in shown
    assert "training seeds and episodes" in shown
    assert medbench("status", tmp_path / "one", code=1).stdout.startswith("suite toy")


STATUS = {
    "toy/raises": ("crash", "KeyError"),
    "toy/exits": ("crash", "exit code 7"),
    "toy/segfaults": ("crash", "SIGSEGV"),
    "toy/hangs": ("timeout", "Stopped after"),
    "toy/nan": ("non_finite", "not finite"),
    "toy/wrong-shape": ("contract", "predict returned"),
    "toy/cheats": ("contract", "declares itself inductive"),
    "toy/touches": ("contract", "changed the backbone"),
    "toy/memory": ("oom", "MemoryError"),
    "toy/unequal": ("contract", "in batches and one by one"),
    "toy/chatty": ("crash", "after much talk"),
    "toy/edits-support": ("contract", "changed the support set"),
    "toy/no-predictor": ("contract", "adapt returned int"),
    "toy/no-meta": ("contract", "has no meta_train"),
    "toy/bad-training": ("non_finite", "training loss is nan at step 3"),
}


def test_a_faulty_algorithm_becomes_a_record_and_takes_no_other_with_it(suite, tmp_path):
    path = suite(*STATUS, "toy/mean", cell_timeout_s=20, budget="{episodes: 5}")
    out = tmp_path / "out"
    medbench("run", path, "--out", out, "--only", "3w1s", code=1)
    found = {data["cell"]["algorithm"]: data for data in records(out).values()}
    assert found["toy/mean"]["status"] == "ok"
    for name, (status, words) in STATUS.items():
        assert found[name]["status"] == status, (name, found[name])
        assert words in found[name]["error"], (name, found[name]["error"])
    assert any("KeyError" in line for line in found["toy/raises"]["log_tail"])
    assert "meta_train" in found["toy/bad-training"]["stage"]
    shown = medbench("leaderboard", out).stdout
    assert "FAILED (1 timeout)" in shown
    again = medbench("run", path, "--out", out, "--only", "3w1s", code=1)
    assert "15 failed before ('medbench retry" in again.stderr
    status = medbench("status", out, code=1).stdout
    assert "timeout" in status


def test_a_training_that_runs_out_of_time_goes_on_from_its_checkpoint(suite, tmp_path):
    calm, out = tmp_path / "calm", tmp_path / "short"
    path = suite("toy/slow-training", budget="{episodes: 150}", training_timeout_s=30)
    medbench("run", path, "--out", calm, "--only", "3w1s", "--set", "training_timeout_s=600")
    slow = {"TOY_SLEEP": "0.6", "MEDBENCH_CHECKPOINT_S": "0.2"}
    medbench("run", path, "--out", out, "--only", "3w1s", code=3, **slow)
    (record,) = records(out).values()
    assert record["status"] == "timeout"
    assert "30 s (training_timeout_s" in record["error"]
    longer = ("--retry-failed", "--set", "training_timeout_s=600")
    medbench("run", path, "--out", out, "--only", "3w1s", *longer)
    (record,) = records(out).values()
    assert record["training"]["resumed_at"]
    assert scores(out) == scores(calm)


def test_children_that_a_plugin_leaves_behind_die_with_it(suite, tmp_path):
    mark = tmp_path / "pid"
    text = "{name: toy/children, params: {file: " + str(mark) + "}}"
    medbench("run", suite(text), "--out", tmp_path / "o", "--only", "3w1s", code=3)
    child = int(mark.read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.1)
    assert not alive(child)


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_scores(suite, tmp_path):
    path = suite("toy/slow-training", "toy/mean", budget="{episodes: 150}")
    medbench("run", path, "--out", tmp_path / "calm", "--workers", 1)
    out = tmp_path / "killed"
    environment = os.environ | {"TOY_SLEEP": "0.05", "MEDBENCH_CHECKPOINT_S": "0.2"}
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "1"]
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(out.glob("trainings/*/checkpoint.safetensors")))
        time.sleep(1.0)
        workers = children(run.pid)
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not any(alive(p) for p in workers), 15)
    assert list(out.glob("trainings/*/checkpoint.safetensors"))
    medbench("run", path, "--out", out, "--workers", 1)
    (training,) = out.glob("trainings/*/training.json")
    assert json.loads(training.read_text())["resumed_at"], "the training began anew"
    assert scores(out) == scores(tmp_path / "calm")
    assert not list(out.rglob("*.tmp"))


def test_a_stop_keeps_what_is_done_and_says_how_to_go_on(suite, tmp_path):
    path = suite("toy/mean", "toy/slow-training", budget="{episodes: 4000}")
    out = tmp_path / "out"
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "2"]
    run = subprocess.Popen(
        command, env=os.environ | {"TOY_SLEEP": "0.02"}, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(out.glob("records/*.json"))) == 2)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "the same command goes on from there" in told
    assert len(records(out)) == 2


def test_damaged_records_and_checkpoints_are_made_again(suite, tmp_path):
    path, out = suite("toy/slow-training", budget="{episodes: 10}"), tmp_path / "out"
    medbench("run", path, "--out", out)
    before = scores(out)
    one, two = sorted((out / "records").glob("*.json"))
    one.write_text(one.read_text()[:100])
    scored = two.with_suffix(".parquet")
    scored.write_bytes(scored.read_bytes()[:-10])
    (training,) = (out / "trainings").iterdir()
    (training / "training.json").unlink()
    (training / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    for cached in (out / "cache" / "features").glob("*.safetensors"):
        cached.write_bytes(cached.read_bytes()[:64])
    debris = out / "records" / ".begun.parquet.x.tmp"
    debris.write_bytes(b"of a killed job")
    done = medbench("run", path, "--out", out)
    assert "2 cells measured" in done.stderr
    assert not debris.exists()
    assert scores(out) == before
    assert "could not be read" in (training / "training.json").read_text()


def test_two_runs_on_one_folder_are_refused(suite, tmp_path):
    path, out = suite("toy/slow-training", budget="{episodes: 4000}"), tmp_path / "out"
    command = [*MEDBENCH, "run", path, "--out", str(out)]
    first = subprocess.Popen(
        command, env=os.environ | {"TOY_SLEEP": "0.02"}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list(out.glob("logs/*")))
        done = medbench("run", path, "--out", out, code=2)
        assert f"is in use by process {first.pid}" in done.stderr
    finally:
        first.terminate()
        first.wait(30)


def test_a_change_of_parameters_or_plugin_makes_records_stale_and_says_why(suite, tmp_path):
    out = tmp_path / "out"
    medbench("run", suite("toy/mean"), "--out", out)
    text = (out / "suite.yaml").read_text()
    (out / "suite.yaml").write_text(
        text.replace("- toy/mean", "- {name: toy/mean, params: {p: 1}}")
    )
    told = medbench("status", out, code=1).stdout
    assert "stale" in told
    assert "algorithm.params.p: 0 -> 1" in told


def test_one_training_serves_all_shots_and_adaptation_parameters(suite, tmp_path):
    again = "{name: toy/slow-training, label: other, params: {p: 3}}"
    done = medbench("run", suite("toy/slow-training", again), "--dry-run")
    assert done.stdout.startswith("1 training:")
    assert "4 cells:" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_leave_one_site_out_runs(suite, tmp_path):
    path = suite("protonet", protocol="toy/sites", budget="{episodes: 5}")
    medbench("run", path, "--out", tmp_path / "o", "--only", "@b")
    found = records(tmp_path / "o")
    assert {d["cell"]["site"] for d in found.values()} == {"b"}
    for data in found.values():
        assert data["cell"]["sources"] == ["toy@a", "toy@c"]
        assert data["overlap"] == ["meta-trained on other sites of the same dataset"]


def test_a_record_tells_costs_hardware_and_provenance(suite, tmp_path):
    medbench("run", suite("toy/slow-training", budget="{episodes: 6}"), "--out", tmp_path / "o")
    data = records(tmp_path / "o")["toy/slow-training toy:3w2s 0"]
    times = data["costs"]["times"]
    for name in ("support_feature_s", "adapt_s", "query_feature_s", "predict_s", "adaptation_s"):
        assert 0 < times[name]["median"] <= times[name]["p95"]
    assert data["costs"]["memory"]["peak_host_bytes"] > 2**26
    assert data["costs"]["lanes_agree"] == 1.0
    assert data["n_episodes"] == 40
    assert data["training"]["budget_images"] == 6 * 15
    assert data["training"]["images_seen"] >= 6 * 15
    assert data["training"]["curve"][-1]["val_accuracy"] > 0
    assert data["hardware"]["threads"] == 1
    assert data["versions"]["torch"]
    assert data["overlap"] == ["meta-trained on other classes of the same dataset"]
    assert str(tmp_path) not in data["path"].read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda:9"], "this machine has"),
        (["--device", "tpu"], "There is no device 'tpu'"),
        (["--only", "nothing"], "no cell matches"),
        (["--set", "sedes=[1]"], "Did you mean 'seeds'"),
        (["--out", "/proc/none"], "/proc/none"),
    ],
)
def test_wrong_options_end_with_one_clear_message(suite, arguments, words):
    done = medbench("run", suite("toy/mean"), *arguments, code=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_stops_the_run_and_harms_no_record(suite, small_disk):
    path = suite("toy/mean", "protonet", budget="{episodes: 5}")
    (small_disk / "filler").write_bytes(b"x" * 330_000)
    done = medbench("run", path, "--out", small_disk / "out", "--workers", 1, code=2)
    assert "disk is full" in done.stderr
    for name in (small_disk / "out" / "records").glob("*.json"):
        json.loads(name.read_text())
    (small_disk / "filler").unlink()
    medbench("run", path, "--out", small_disk / "out", "--workers", 1)
    assert all(d["status"] == "ok" for d in records(small_disk / "out").values())


def test_the_run_needs_no_home_and_no_writable_current_folder(suite, tmp_path):
    folder = tmp_path / "ro"
    folder.mkdir()
    done = medbench("run", suite("toy/mean"), "--out", tmp_path / "o", HOME=str(folder))
    assert "2 cells measured" in done.stderr


def test_a_folder_that_vanishes_stops_the_run_and_fails_no_cell(suite, tmp_path):
    path, out = suite("toy/slow-training", budget="{episodes: 60}"), tmp_path / "out"
    command = [*MEDBENCH, "run", path, "--out", str(out), "--workers", "1"]
    run = subprocess.Popen(
        command, env=os.environ | {"TOY_SLEEP": "0.02"}, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list(out.glob("logs/*")))
    # Moved and not removed, as a job that writes at that moment would keep a folder from going.
    out.rename(tmp_path / "elsewhere")
    _, told = run.communicate(timeout=120)
    assert run.returncode == 2, told
    assert "or is gone" in told
    assert not list(out.glob("records/*"))


def test_several_findings_an_image_are_asked_of_two_class_methods_and_refused_by_others(
    suite, tmp_path
):
    path = tmp_path / "findings.yaml"
    suite()
    path.write_text(
        "name: findings\n"
        "protocols: [{name: synthetic-findings, shots: [1], episodes: 12, cost_episodes: 3}]\n"
        "backbones: [{name: conv4, params: {width: 8}}]\n"
        "algorithms: [linear-probe, {name: anil, budget: {episodes: 4}}, toy/mean]\n"
        "seeds: [0]\n"
    )
    out = tmp_path / "out"
    medbench("run", path, "--out", out, "--workers", 2, code=1)
    found = {k.split()[0]: v for k, v in records(out).items()}
    assert found["toy/mean"]["status"] == "unavailable"
    assert (
        "toy/mean does classification, and protocol synthetic-findings asks for multilabel"
        in (found["toy/mean"]["error"])
    )
    for name in ("linear-probe", "anil"):
        assert found[name]["status"] == "ok"
        assert found[name]["cell"]["way"] == 11
        assert 0.4 < found[name]["summary"]["auroc"] < 1
        assert found[name]["costs"]["lanes_agree"] == 1.0
    assert found["linear-probe"]["costs"]["parameters_adapted"] == 11 * (2 * 8 + 2)
    shown = medbench("leaderboard", out, "--metric", "average_precision").stdout
    assert "mean AP" in shown
