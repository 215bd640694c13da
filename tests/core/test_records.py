"""Records are plain, whole, and checked when they are read."""

from __future__ import annotations

import errno
import json
import math
import os

import numpy as np
import pytest

from medbench.briefs import read_brief
from medbench.errors import DataError, OutputError, UsageError
from medbench.files import atomic, locked, write_json
from medbench.leaderboard.render import FORMATS, render
from medbench.leaderboard.table import build_board
from medbench.records import SCHEMA, find_records, read_record, write_record


def document(algorithm="protonet", seed=0, status="ok", target="d:5w1s", created="1", **more):
    way, shot = (int(x) for x in target.rpartition(":")[2].rstrip("s").split("w"))
    cell = {
        "protocol": "p", "protocol_version": 1, "target": target, "way": way, "shot": shot,
        "backbone": "conv4", "algorithm": algorithm, "seed": seed,
    }  # fmt: skip
    base = {"schema": SCHEMA, "key": f"{algorithm}{seed}{target}", "status": status, "cell": cell,
            "created": created, "ingredients": {}}  # fmt: skip
    if status == "ok":
        cell["sources"] = ["s"]
        base |= {
            "hardware": {"class": "some CPU, 1 thread"},
            "traits": {"transductive": algorithm == "maml"},
            "costs": {
                "times": {
                    k: {"median": 0.01, "p95": 0.02} for k in ("adaptation_s", "prediction_s")
                },
                "memory": {"peak_host_bytes": 2**29, "peak_host_added_bytes": 2**20},
                "parameters_adapted": 5,
            },
            "training": {"train_s": 12.0},
            "licences": {"d": "CC BY 4.0"},
        }
    else:
        base["error"] = "it | broke\nbadly"
    return base | more


def write(folder, scores=None, **kwargs):
    data = document(**kwargs)
    cell = data["cell"]
    name = f"{cell['algorithm']}-{cell['seed']}-{cell['target'].replace(':', '_')}.json"
    values = np.full(20, 0.8) if scores is None else scores
    both = {"accuracy": values, "auroc": values} if data["status"] == "ok" else None
    write_record(folder / "records" / name, data, both)
    return folder / "records" / name


def test_a_record_comes_back_as_it_was_written(tmp_path):
    scores = np.random.default_rng(0).random(30)
    record = read_record(write(tmp_path, scores))
    np.testing.assert_array_equal(record.scores()["accuracy"], scores)
    assert record.ok


def test_not_finite_numbers_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": (1,)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": [1]}


def test_changed_missing_and_damaged_files_are_found(tmp_path):
    path = write(tmp_path)
    scores = path.with_suffix(".parquet")
    original = scores.read_bytes()
    scores.write_bytes(original[:-1] + b"x")
    with pytest.raises(DataError, match="changed after they were recorded"):
        read_record(path).scores()
    scores.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_record(path).scores()
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match="not a readable record"):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": SCHEMA + 1}, "upgrade"),
        ({"schema": "1"}, "record schema '1'"),
        ({"status": "fine"}, "is not one of"),
        ({"cell": {}}, "lacks protocol"),
    ],
)
def test_records_of_another_kind_are_refused(tmp_path, change, words):
    path = tmp_path / "r.json"
    write_json(path, document() | {"scores_file": "x"} | change)
    with pytest.raises(DataError, match=words):
        read_record(path)


def test_folders_without_records_are_explained(tmp_path):
    with pytest.raises(UsageError, match="holds no records"):
        find_records([tmp_path])
    with pytest.raises(UsageError, match=r"none does not exist\. Name the output folder of a run"):
        find_records([tmp_path / "none"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, and not a folder"):
        find_records([tmp_path / "file"])


def test_an_interrupted_or_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(OutputError, match="disk is full"), atomic(path) as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path):
    with locked(tmp_path / "lock", wait=False):
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
            with locked(tmp_path / "lock", wait=False):
                pass
    with locked(tmp_path / "lock", wait=False):
        pass


def board_of(folder, metric="accuracy"):
    return build_board(find_records([folder]), metric)


def test_a_board_ranks_rows_and_keeps_failures_visible(tmp_path):
    for target in ("d:5w1s", "e:5w1s"):
        write(tmp_path, np.full(20, 0.9), algorithm="best", target=target)
        write(tmp_path, np.full(20, 0.6), algorithm="maml", target=target)
    write(tmp_path, np.full(20, 0.7), algorithm="partly", target="d:5w1s")
    write(tmp_path, algorithm="partly", target="e:5w1s", status="timeout")
    one, two, overall, worst = board_of(tmp_path).tables
    assert [r.algorithm for r in one.rows] == ["best", "partly", "maml"]
    assert [r.algorithm for r in two.rows] == ["best", "maml", "partly"]
    assert two.rows[-1].failures == {"timeout": 1}
    assert [r.algorithm for r in overall.rows] == ["best", "maml", "partly"]
    assert overall.rows[-1].score is None
    assert overall.rows[-1].targets_ok == 1
    assert [r.mean_rank for r in overall.rows] == [1.0, 2.5, 2.5]
    assert worst.rule == "worst case"
    assert [(r.algorithm, r.score.mean, r.mean_rank) for r in worst.rows] == [
        ("best", pytest.approx(0.9), 1.0),
        ("partly", pytest.approx(0.65), 2.25),
        ("maml", pytest.approx(0.6), 2.75),
    ]
    text = render(board_of(tmp_path), "table")
    assert "FAILED (1 timeout)" in text
    assert "maml (T)" in text
    assert "CC BY 4.0" in text


def test_a_row_with_one_failed_seed_has_no_score(tmp_path):
    write(tmp_path, algorithm="a", seed=0)
    write(tmp_path, algorithm="a", seed=1, status="crash")
    (table,) = board_of(tmp_path).tables
    assert table.rows[0].score is None
    assert (table.rows[0].n_ok, table.rows[0].n_failed) == (1, 1)


def test_other_sources_and_other_hardware_stand_in_other_tables(tmp_path):
    for i, (sources, hardware) in enumerate(
        [(["s"], "slow"), (["s", "t"], "slow"), (["s"], "fast")]
    ):
        data = document(seed=0, hardware={"class": hardware}, key=str(i))
        data["cell"]["sources"] = sources
        write_record(tmp_path / "records" / f"{i}.json", data, {"accuracy": np.full(5, 0.5)})
    assert len([t for t in board_of(tmp_path).tables if t.target]) == 3


def test_of_two_records_of_one_cell_the_newer_counts(tmp_path):
    write_record(
        tmp_path / "records" / "a.json", document(created="2026-01-02"), {"accuracy": np.ones(5)}
    )
    write_record(
        tmp_path / "records" / "b.json", document(created="2026-01-01"), {"accuracy": np.zeros(5)}
    )
    (table,) = board_of(tmp_path).tables
    assert table.rows[0].score.mean == 1.0


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_rendered_and_strange_names_break_no_row(tmp_path, form):
    write(tmp_path, algorithm="a|b_c*<script>\nx")
    write(tmp_path, algorithm="broken", status="oom")
    text = render(board_of(tmp_path), form)
    if form == "md":
        rows = [line for line in text.splitlines() if line.startswith("| a")]
        assert rows == [r for r in rows if "<script>" not in r]
        assert "a\\|b\\_c\\*&lt;script&gt; x" in text
    if form == "json":
        assert json.loads(text)["tables"][0]["rows"][0]["score"]["mean"] == pytest.approx(0.8)
    if form == "csv":
        assert len([x for x in text.splitlines() if "oom" in x]) == 1


def test_a_board_needs_neither_torch_nor_plugins():
    import subprocess
    import sys

    code = (
        "import sys, medbench.leaderboard.render, medbench.leaderboard.table, medbench.stats\n"
        "bad = [m for m in ('torch', 'medbench.plugins', 'timm') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cell_that_failed_and_was_repaired_has_not_failed(tmp_path):
    failed = document(status="contract", created="2026-01-01", key="old")
    failed["cell"]["sources"] = ["s"]
    write_record(tmp_path / "records" / "cell-old.json", failed)
    write_record(
        tmp_path / "records" / "cell-new.json",
        document(created="2026-01-02", key="new"),
        {"accuracy": np.ones(5)},
    )
    (table,) = board_of(tmp_path).tables
    assert (table.rows[0].n_ok, table.rows[0].n_failed) == (1, 0)


def test_the_planned_key_counts_and_not_the_newest_record(tmp_path):
    for key, created, value in (("a", "2026-01-01", 1.0), ("b", "2026-01-02", 0.0)):
        write_record(
            tmp_path / "records" / f"cell-{key}.json",
            document(created=created, key=key),
            {"accuracy": np.full(5, value)},
        )
    write_json(tmp_path / "plan.json", {"cell": "a"})
    (table,) = board_of(tmp_path).tables
    assert table.rows[0].score.mean == 1.0


COUNTS = {"group": np.arange(3), "answers": np.array([4, 4, 2]), "right": np.array([4, 1, 0])}


def test_answers_by_group_come_back_as_they_were_written_and_are_held_to_their_digest(tmp_path):
    path = tmp_path / "records" / "x.json"
    write_record(path, document(), {"accuracy": np.full(5, 0.5)}, ("patient", COUNTS))
    brief = read_brief(path)
    assert brief.own.groups_kind == "patient"
    assert {k: v.tolist() for k, v in brief.groups().items()} == {
        k: v.tolist() for k, v in COUNTS.items()
    }
    (groups,) = path.parent.glob("*.groups.parquet")
    groups.write_bytes(groups.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="the groups were changed after they were recorded"):
        brief.groups()
    groups.unlink()
    with pytest.raises(DataError, match=r"x\.json: its groups file x\.groups\.parquet is missing"):
        brief.groups()
    # Without them the record is as good as one of an earlier version.
    assert read_record(path).scores()["accuracy"].tolist() == [0.5] * 5
    assert read_brief(write(tmp_path)).own.groups_kind == ""
