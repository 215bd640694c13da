"""Cells run again from their records: the same scores, or the exit code says otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import toy
from medbench import plugins, sourcecode
from medbench.cli import main
from medbench.errors import DataError, UsageError
from medbench.files import file_digest
from medbench.records import find_records, read_record
from medbench.rerun import draw_sample, suite_of


@pytest.fixture
def medbench(capsys):
    """Run a command in this process, whose server of processes then serves all tests here."""

    def call(*arguments, code=0) -> str:
        plugins.registry.cache_clear()
        sourcecode.source_digest.cache_clear()  # as a command that starts anew
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.out + shown.err
        return shown.out + shown.err

    return call


@pytest.fixture
def run(distribute, tmp_path, tmp_path_factory, medbench) -> Path:
    """A finished run of a method that trains and one that does not, made once and copied."""
    toy.install(distribute)
    once = tmp_path_factory.getbasetemp() / "rerun"
    if not once.exists():
        suite = tmp_path / "suite.yaml"
        suite.write_text(toy.suite("toy/mean", "toy/slow-training", budget="{episodes: 6}"))
        medbench("run", suite, "--out", once, "-q", "--workers", 1)
    shutil.copytree(once, tmp_path / "run")
    return tmp_path / "run"


def record(run: Path, name: str) -> Path:
    return next(p for p in sorted(run.glob("records/*.json")) if name in p.name)


def invent(path: Path, by: float) -> None:
    """Raise all accuracies of a record, as one who knows how digests are made."""
    data = json.loads(path.read_text())
    scores = {k: v.copy() for k, v in read_record(path).scores().items()}
    scores["accuracy"] = np.minimum(scores["accuracy"] + by, 1.0)
    pq.write_table(pa.table(scores), path.with_suffix(".parquet"))
    data["scores_digest"] = file_digest(path.with_suffix(".parquet"))
    data["summary"]["accuracy"] = float(scores["accuracy"].mean())
    path.write_text(json.dumps(data))


def test_a_cell_comes_out_the_same_its_training_included(run, medbench):
    told = medbench("reproduce", record(run, "slow-training"))
    assert "100 % of 40 episodes have the same accuracy" in told
    assert "reproduced: within 0.005" in told
    assert "over episodes and images;" in medbench("leaderboard", run, "--interval", "groups")
    assert "changed" not in told
    # It ran in a folder of its own.
    assert len(list(run.glob("records/*.json"))) == 4


def test_an_invented_record_is_not_reproduced(run, medbench):
    path = record(run, "mean")
    invent(path, 0.03)
    told = medbench("reproduce", path, code=1)
    assert "not reproduced within 0.005" in told
    assert "reproduced: within 0.2" in medbench("reproduce", path, "--tolerance", 0.2)


def test_a_sample_of_episodes_is_run_again(run, medbench):
    told = medbench("verify", run, "--sample", 10)
    assert "10 episodes of 4 cells (of 4 records)" in told
    assert "10 of 10 episodes came out exactly as recorded; 4 of 4 cells agree" in told
    told = medbench("verify", run / "records", "--sample", 5, "--cells", 1, "--seed", 3)
    assert "5 of 5 episodes came out exactly as recorded; 1 of 1 cells agree" in told


def test_a_sample_finds_what_was_invented(run, medbench):
    for path in run.glob("records/*.json"):
        invent(path, 0.1)
    told = medbench("verify", run, "--sample", 8, code=1)
    assert "DIFFERS" in told
    assert "of 4 cells agree within 0.02" in told


def test_another_cell_is_no_reproduction(run, medbench):
    path = record(run, "mean")
    data = json.loads(path.read_text())
    data["ingredients"]["target"]["dataset"]["digest"] = "other"
    path.write_text(json.dumps(data))
    told = medbench("reproduce", path, code=2)
    assert "it is not the cell that can be run here: target.dataset.digest: other -> toy-0" in told
    data["status"] = "oom"
    path.write_text(json.dumps(data))
    assert "nothing to compare" in medbench("reproduce", path, code=2)


def test_a_changed_plugin_is_told_and_its_failure_too(run, tmp_path, medbench):
    path = record(run, "mean")
    parts = tmp_path / "site" / "toy_parts.py"
    text = parts.read_text()
    parts.write_text(text + "\n# another edition\n")
    told = medbench("reproduce", path)
    assert "changed: algorithm.plugin.source" in told
    parts.write_text(
        text.replace("return P(sums / one.sum", "raise KeyError; return P(sums / one.sum")
    )
    told = medbench("reproduce", path, code=1)
    assert "failed: KeyError" in told


def test_a_sample_is_random_reproducible_and_spread(run):
    records = find_records([run])
    drawn = draw_sample(records, 20, None, 0)
    again = draw_sample(list(reversed(records)), 20, None, 0)
    assert [(r.key, e) for r, e in drawn] == [(r.key, e) for r, e in again]
    assert sorted(len(e) for _, e in drawn) == [5, 5, 5, 5]
    assert all(len(set(e)) == len(e) and max(e) < 40 for _, e in drawn)
    other = draw_sample(records, 20, None, 1)
    assert [e for _, e in other] != [e for _, e in drawn]
    assert sum(len(e) for _, e in draw_sample(records, 10_000, None, 0)) == 160
    assert len(draw_sample(records, 20, 2, 0)) == 2
    with pytest.raises(DataError, match="nothing to verify"):
        draw_sample([], 5, None, 0)


def test_weights_from_a_file_must_be_given(run):
    found = read_record(record(run, "mean"))
    found.data["request"]["backbone"]["weights"] = "my.safetensors"
    with pytest.raises(UsageError, match="Give that file with --weights"):
        suite_of(found, None, None)
    assert suite_of(found, None, "/x/my.safetensors").backbones[0].weights == "/x/my.safetensors"
    assert suite_of(found, 7, "/x").protocols[0].episodes == 7
