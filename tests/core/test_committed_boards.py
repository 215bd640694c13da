"""The committed leaderboards are what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.leaderboard.render import render
from medbench.leaderboard.table import build_board
from medbench.records import find_records

ROOT = Path(__file__).parents[2] / "leaderboards"
BOARDS = sorted(p.parent for p in ROOT.glob("*/suite.yaml"))


def test_there_are_boards():
    assert {"medmnist-cross", "omniglot", "sites"} <= {b.name for b in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
@pytest.mark.parametrize(("name", "form"), [("LEADERBOARD.md", "md"), ("leaderboard.csv", "csv")])
def test_a_table_is_rebuilt_from_its_records(board, name, form):
    text = render(build_board(find_records([board])), form).rstrip("\n") + "\n"
    assert text == (board / name).read_text()


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_scores_agree_with_the_summary_and_no_path_of_a_machine_is_in_a_record(board):
    for record in find_records([board]):
        assert record.ok, record.path
        scores = record.scores()
        for name, values in scores.items():
            assert record.data["summary"][name] == pytest.approx(values.mean())
        text = record.path.read_text()
        assert "/root" not in text
        assert "/home/" not in text
        assert "/work" not in text
