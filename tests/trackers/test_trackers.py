"""Trackers are told of records, each in its own files, and read again by its own library."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from medbench.plugins import registry
from medbench_trackers import VARIABLE, medbench_on_record
from medbench_trackers.cells import cell_of

SITES = Path(__file__).parents[2] / "leaderboards" / "sites" / "records"


@pytest.fixture
def record():
    return json.loads(min(SITES.glob("*_anil_*.json")).read_text())


@pytest.fixture
def track(monkeypatch, tmp_path):
    """Tells one tracker of a record; returns the folder that it wrote to."""

    def tell(name, record):
        monkeypatch.setenv(VARIABLE, f"{name}:{tmp_path / name}")
        medbench_on_record(record)
        return tmp_path / name

    return tell


def test_nothing_is_tracked_unless_asked_for(record, monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    medbench_on_record(record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["tensorbord:x", "mlflow", "mlflow:"])
def test_what_is_no_tracker_is_told(record, monkeypatch, word):
    monkeypatch.setenv(VARIABLE, word)
    with pytest.raises(ValueError, match="NAME:FOLDER was expected"):
        medbench_on_record(record)


def test_a_cell_has_its_scores_costs_and_curve(record):
    cell = cell_of(record)
    assert cell.metrics["accuracy"] == record["summary"]["accuracy"]
    assert (
        cell.metrics["costs/adaptation_s_median"]
        == (record["costs"]["times"]["adaptation_s"]["median"])
    )
    assert "costs/peak_device_bytes" not in cell.metrics, "it was not measured"
    assert len(cell.curve) == len(record["training"]["curve"])
    assert cell.curve[0] == (320, {"loss": record["training"]["curve"][0]["loss"]})


def test_a_failed_cell_is_told_with_what_there_is(record):
    failed = {"key": "k", "status": "oom", "cell": record["cell"]}
    cell = cell_of(failed)
    assert (cell.status, cell.metrics, cell.curve) == ("oom", {}, ())
    assert cell.parameters["algorithm"] == "anil"


def test_medbench_tells_the_trackers_and_reports_what_they_cannot_do(
    record, distribute, monkeypatch
):
    distribute("told", "from medbench_trackers import medbench_on_record")
    monkeypatch.setenv(VARIABLE, "papyrus:here")
    faults = [f for f in registry().announce(record) if f.distribution == "told"]
    assert "'papyrus:here'" in str(faults[0])


def test_tensorboard_reads_what_was_written(record, track):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here"
    )
    folder = track("tensorboard", record)
    (place,) = {p.parent for p in folder.rglob("*tfevents*")}
    found = reader.EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
    assert found.Scalars("accuracy")[0].value == pytest.approx(record["summary"]["accuracy"])
    told = [(s.step, s.value) for s in found.Scalars("training/loss")]
    curve = record["training"]["curve"]
    assert told == [(p["images"], pytest.approx(p["loss"], rel=1e-6)) for p in curve]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_reads_what_was_written(record, track, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    library = pytest.importorskip("mlflow", reason="no mlflow here")
    folder = track("mlflow", record)
    track("mlflow", record | {"status": "oom", "summary": {}})
    client = library.MlflowClient(tracking_uri=folder.resolve().as_uri())
    experiment = client.get_experiment_by_name("sites")
    ok, failed = sorted(client.search_runs([experiment.experiment_id]),
                        key=lambda r: r.info.status, reverse=True)  # fmt: skip
    assert (ok.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert ok.data.metrics["accuracy"] == pytest.approx(record["summary"]["accuracy"])
    assert ok.data.params["algorithm"] == "anil"
    assert failed.data.tags["medbench.status"] == "oom"
    losses = client.get_metric_history(ok.info.run_id, "training/loss")
    assert sorted(m.step for m in losses) == [p["images"] for p in record["training"]["curve"]]


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_writes_an_offline_run(record, track):
    pytest.importorskip("wandb", reason="no wandb here")
    folder = track("wandb", record)
    (run,) = folder.rglob("offline-run-*")
    (file,) = run.glob("*.wandb")
    # Another process of wandb's writes it, and the summary last.
    wanted = (b"anil", b"costs/adaptation_s_median")
    until = time.monotonic() + 60
    while not all(w in (body := file.read_bytes()) for w in wanted) and time.monotonic() < until:
        time.sleep(0.1)
    assert all(w in body for w in wanted)
