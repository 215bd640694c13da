"""What is kept of records is used while it is true, and never needed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from medbench import shelf
from medbench.briefs import Brief, brief_of, read_brief
from medbench.cli import main
from medbench.errors import DataError, UsageError
from medbench.jobs import Folders, Job, Waiting, cell_state, cell_states
from medbench.leaderboard.table import build_board
from medbench.records import find_records, read_record, write_record
from medbench.shelf import Shelf, find_briefs, spread


def job(name="protonet", key="0" * 32, training=None) -> Job:
    return Job("cell", key, name, name, {}, training, {})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder with records of two algorithms and three seeds; files settle at once."""
    monkeypatch.setattr(shelf, "_SETTLED_NS", -1)
    (tmp_path / "cache").mkdir()
    for name in ("maml", "protonet"):
        for seed in range(3):
            record(tmp_path, name, seed)
    return tmp_path


def record(run, name, seed, status="ok", **more):
    cell = {
        "protocol": "p", "protocol_version": 1, "target": "d:5w1s", "way": 5, "shot": 1,
        "backbone": "conv4", "algorithm": name, "seed": seed,
    }  # fmt: skip
    key = f"{name}{seed}".ljust(32, "0")
    data = {"schema": 1, "key": key, "status": status, "cell": cell, "created": "1"}
    data |= {"hardware": {"class": "cpu"}, "ingredients": {"seed": seed}, "licences": {"d": "CC0"}}
    scores = {m: np.random.default_rng(seed).random(30) for m in ("accuracy", "auroc")}
    path = run / "records" / f"{name}_seed{seed}-{key[:12]}.json"
    write_record(path, data | more, scores if status == "ok" else None)
    return path


def means(run, metric="accuracy"):
    (table,) = build_board(find_briefs([run])[0], metric).tables
    return {r.algorithm: r.score.mean for r in table.rows if r.score}


def leaderboard(run, capsys, code=0, metric="accuracy") -> str:
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", str(run), "--format", "csv", "--metric", metric])
    assert stop.value.code == code
    shown = capsys.readouterr()
    return shown.out or shown.err


def reads(monkeypatch) -> list[str]:
    """Names of the files read from now on."""
    found: list[str] = []
    brief, scores = shelf.read_brief, Brief.scores
    monkeypatch.setattr(shelf, "read_brief", lambda p: (found.append(p.name), brief(p))[1])
    monkeypatch.setattr(
        Brief, "scores", lambda b, m: (found.append(b.own.scores_file), scores(b, m))[1]
    )
    return found


def test_a_brief_holds_what_tables_need_of_a_record(run):
    path = record(
        run,
        "anil",
        4,
        costs={"times": {"adaptation_s": {"median": 1, "p95": 2.5}}, "memory": {}},
        training={"train_s": 3, "curve": [{"step": 1}]},
        traits={"transductive": True},
        overlap=["same scans"],
    )
    brief = read_brief(path)
    assert (brief.own.adaptation_s, brief.own.adaptation_p95_s, brief.own.train_s) == (
        1.0,
        2.5,
        3.0,
    )
    assert brief.own.peak_device_bytes is None
    assert brief.setting.transductive
    assert brief.setting.overlap == ("same scans",)
    assert brief.ingredients() == {"seed": 4}
    assert brief_of(read_record(path)) == brief
    assert brief.identity == read_record(path).identity


def test_briefs_and_records_make_the_same_board(run):
    record(run, "broken", 0, status="oom", error="no memory")
    assert build_board(find_briefs([run])[0]) == build_board(find_records([run]))


def test_a_second_leaderboard_reads_no_record_and_is_the_same(run, capsys, monkeypatch):
    first = leaderboard(run, capsys)
    read = reads(monkeypatch)
    assert leaderboard(run, capsys) == first
    assert read == []
    other = leaderboard(run, capsys, metric="auroc")
    assert len(read) == 6
    assert leaderboard(run, capsys, metric="auroc") == other
    assert len(read) == 6


def test_only_what_is_new_is_read_again(run, capsys, monkeypatch):
    leaderboard(run, capsys)
    record(run, "anil", 0)
    read = reads(monkeypatch)
    leaderboard(run, capsys)
    documents = [name for name in read if name.endswith(".json")]
    assert {name.partition("_")[0] for name in documents} == {"anil"}
    # Paired tests look at the whole table anew.
    assert len(read) == 1 + 7
    (run / "records" / documents[0]).unlink()
    assert "anil" not in leaderboard(run, capsys)


@pytest.mark.parametrize("change", ["scores", "same size and time", "gone", "record"])
def test_a_file_that_changed_is_not_trusted(run, capsys, change):
    leaderboard(run, capsys)
    path = next((run / "records").glob("maml_seed1*.parquet"))
    before, old = path.read_bytes(), path.stat()
    if change == "scores":
        path.write_bytes(before + b"x")
    elif change == "same size and time":
        path.write_bytes(before[:-1] + b"x")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "gone":
        path.unlink()
    else:
        document = path.with_suffix(".json")
        data = json.loads(document.read_text())
        document.write_text(json.dumps(data | {"scores_digest": "0" * 32}))
    told = leaderboard(run, capsys, code=2)
    assert "is missing" in told if change == "gone" else "changed after they were recorded" in told


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "null"])
def test_a_damaged_or_foreign_file_is_rebuilt(run, capsys, text):
    first = leaderboard(run, capsys)
    kept = run / "cache" / shelf.FILE
    kept.write_text(text)
    assert leaderboard(run, capsys) == first
    assert len(json.loads(kept.read_text())["cells"]) == 6
    kept.write_text(kept.read_text().replace('"version":1', '"version":0'))
    assert leaderboard(run, capsys) == first


def test_files_that_changed_a_moment_ago_are_not_kept(run, capsys, monkeypatch):
    monkeypatch.setattr(shelf, "_SETTLED_NS", 60_000_000_000)
    leaderboard(run, capsys)
    assert json.loads((run / "cache" / shelf.FILE).read_text())["cells"] == []


def test_nothing_is_kept_where_records_are_published_or_cannot_be(run, capsys):
    (run / "cache").rmdir()
    first = leaderboard(run, capsys)
    assert not (run / "cache").exists()
    (run / "cache").write_text("in the way")
    assert leaderboard(run, capsys) == first
    assert means(run / "records") == means(run)


def test_a_record_that_is_none_stops_a_board_and_is_missing_in_a_status(run):
    (path,) = (run / "records").glob("maml_seed1*.json")
    path.write_text("{")
    with pytest.raises(DataError, match="not a readable record"):
        find_briefs([run])
    found = Shelf(run)
    assert list(found.damaged) == [path.name]
    with pytest.raises(UsageError, match="does not exist"):
        find_briefs([run / "none"])


def test_states_of_cells_agree_one_by_one_and_together(run):
    record(run, "failed", 0, status="crash", error="a bug")
    (scores,) = (run / "records").glob("protonet_seed2*.parquet")
    scores.write_bytes(b"x")
    jobs = [
        Job("cell", f"{n}{s}".ljust(32, "0"), n, f"{n}_seed{s}", {}, None, {})
        for n in ("maml", "protonet", "failed", "new")
        for s in range(3)
    ]
    found = Shelf(run)
    for _ in range(2):
        states = cell_states(found, jobs)
        assert [s for s, _ in states] == [cell_state(Folders(run), j) for j in jobs]
        found.save()
        found = Shelf(run)
    assert [s for s, _ in states] == ["ok"] * 5 + ["missing"] + ["crash"] + ["missing"] * 5
    assert states[6][1].own.error == "a bug"
    assert found.newest("maml_seed1", but="another").key == jobs[1].key
    assert found.newest("maml_seed1", but=jobs[1].key) is None


def test_jobs_come_out_in_order_as_their_trainings_end():
    trainings = [job(f"t{i}", key=f"t{i}") for i in range(2)]
    cells = [job(f"c{i}", training=t) for i, t in enumerate(["t0", None, "t1", "t0", "t1", "gone"])]
    waiting = Waiting(trainings, cells)
    assert [waiting.take().title for _ in range(3)] == ["t0", "t1", "c1"]
    assert waiting.take() is None
    assert len(waiting) == 5
    waiting.release("t1")
    assert waiting.take().title == "c2"
    waiting.release("t0")
    assert [waiting.take().title for _ in range(3)] == ["c0", "c3", "c4"]
    assert [j.title for j in waiting.drop("gone")] == ["c5"]
    assert (len(waiting), waiting.take(), waiting.drop("gone")) == (0, None, [])


def test_work_is_spread_in_order_and_its_error_is_told():
    assert spread(lambda i: i * i, range(1000)) == [i * i for i in range(1000)]
    with pytest.raises(ZeroDivisionError):
        spread(lambda i: 1 / (i - 500), range(1000))
