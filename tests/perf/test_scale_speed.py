"""Plans, statuses and leaderboards of as many cells as a large study has.

``MEDBENCH_PERF_CELLS=100000 make perf`` takes a hundred thousand; ten thousand fit a coffee break.
"""

from __future__ import annotations

import os
import shutil

import plain_scale
import pytest

from medbench.api import Place
from medbench.config import load_suite
from medbench.jobs import cell_states
from medbench.leaderboard.build import board_of
from medbench.leaderboard.render import render
from medbench.plan import build_plan
from medbench.plugins import registry
from medbench.shelf import FILE, Shelf
from medbench.stats import weights

N_CELLS = int(os.environ.get("MEDBENCH_PERF_CELLS", "10000"))


def plan(n: int, place: Place):
    """A plan of about `n` cells: every bundled algorithm on the quickstart, with many seeds."""
    names = ", ".join(registry().entries["algorithms"])
    suite, _ = load_suite("quickstart", registry(), [f"algorithms=[{names}]", "seeds=[0]"])
    one = len(build_plan(suite, registry(), place).cells)
    return build_plan(
        suite.model_copy(update={"seeds": tuple(range(max(2, n // one)))}), registry(), place
    )


@pytest.fixture
def place(tmp_path):
    return Place(data=None, cache=tmp_path / "cache")


def test_a_plan_is_keyed(benchmark, place):
    # No race: nobody else plans. The goal is seconds for a hundred thousand cells.
    n = 300 if benchmark.disabled else N_CELLS
    found = benchmark.pedantic(plan, (n, place), rounds=3)
    benchmark.extra_info["cells"] = len(found.cells)
    few = found.cells[:: max(1, len(found.cells) // 500)]
    assert [job.key for job in few] == plain_scale.keys(few)


@pytest.mark.parametrize("kept", [False, True], ids=["first", "again"])
def test_states_of_cells(race, place, tmp_path, kept):
    cells = plan(200 if race.quick else N_CELLS, place).cells
    few = cells[: 100 if race.quick else 1000]
    plain_scale.write_records(tmp_path / "run", cells)
    plain_scale.write_records(tmp_path / "few", few)

    def ours():
        if not kept:
            (tmp_path / "run" / "cache" / FILE).unlink(missing_ok=True)
        shelf = Shelf(tmp_path / "run")
        states = cell_states(shelf, cells)
        shelf.save()
        return states

    found, read = race(
        f"status of {len(cells):,} cells" + (", again" if kept else ""),
        ours=ours,
        loop=lambda: [record["key"] for record, _ in plain_scale.read(tmp_path / "few")],
        n_ours=len(cells),
        n_loop=len(few),
        unit="cell",
        goal=40 if kept else None,
        rounds=3,
    )
    assert {state for state, _ in found} == {"ok"}
    assert sorted(read) == sorted(job.key for job in few)


@pytest.mark.parametrize("kept", [False, True], ids=["first", "again"])
def test_a_leaderboard_is_made_from_records(race, tmp_path, kept, monkeypatch):
    monkeypatch.setattr("medbench.shelf._SETTLED_NS", -1)
    n = 200 if race.quick else N_CELLS
    plain_scale.write_run(tmp_path / "run", n)
    plain_scale.write_run(tmp_path / "few", 200)

    def ours():
        if not kept:
            (tmp_path / "run" / "cache" / FILE).unlink(missing_ok=True)
        board = board_of([tmp_path / "run"])
        return board, render(board, "table")

    (board, text), loop = race(
        f"leaderboard of {n:,} records" + (", again" if kept else ""),
        ours=ours,
        loop=lambda: plain_scale.board(tmp_path / "few", lambda k, s: weights(k, 0, s) * 1.0),
        n_ours=n,
        n_loop=200,
        unit="record",
        goal=50 if kept else 4,
        rounds=3,
    )
    rows = {(r.algorithm, t.shot): r.score for t in board.tables if t.target for r in t.rows}
    for key, expected in loop.items():
        assert (rows[key].mean, rows[key].low, rows[key].high) == pytest.approx(expected, abs=1e-12)
    assert len(text.splitlines()) > len(rows)
    shutil.rmtree(tmp_path / "run")
