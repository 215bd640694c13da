"""Seconds until a command has answered: the whole process, as a person waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SITES = str(Path(__file__).parents[2] / "leaderboards" / "sites")
# What is aimed at on an idle machine, where Python alone takes 0.02 s.
GOALS_S = {
    ("--help",): 0.15,
    ("run", "--help"): 0.2,
    ("list",): 0.4,
    ("list", "algorithms"): 0.4,
    ("info", "maml"): 0.4,
    ("leaderboard", SITES): None,
}


@pytest.mark.parametrize("arguments", GOALS_S, ids=lambda a: " ".join(a).replace(SITES, "sites"))
def test_a_command_answers(benchmark, arguments):
    command = [sys.executable, "-m", "medbench", *arguments]

    def answer():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    quick = benchmark.disabled
    told = benchmark.pedantic(answer, rounds=1 if quick else 9, warmup_rounds=0 if quick else 1)
    assert told.strip()
    benchmark.extra_info["goal_s"] = GOALS_S[arguments]
