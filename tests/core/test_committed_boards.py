"""The committed leaderboards are what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.cli import main
from medbench.records import find_records

ROOT = Path(__file__).parents[2] / "leaderboards"
BOARDS = sorted(p.parent for p in ROOT.glob("*/suite.yaml"))


def test_there_are_boards():
    assert {"quickstart", "medmnist-cross", "omniglot", "sites"} <= {b.name for b in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_a_board_has_a_table_to_read_one_to_compute_with_and_a_page(board):
    for name in ("LEADERBOARD.md", "leaderboard.csv", "index.html"):
        assert (board / name).is_file()


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_a_board_is_as_it_should_be(board, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["board", "check", str(board)])
    told = capsys.readouterr()
    assert stop.value.code == 0, told.err
    assert "all records are sound, and the tables are what they make" in told.out


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_every_cell_of_a_board_was_measured(board):
    assert all(record.ok for record in find_records([board]))
