"""The error rates of the whole gate, over runs on a simulated noisy machine."""

from __future__ import annotations

import numpy as np
import pytest

from gate.noise import sides
from medbench.gate.judge import judge
from medbench.gate.thresholds import Thresholds
from medbench.gate.verdicts import Verdict

RULES = Thresholds()
RUNS = 200


def verdicts(runs, seed, **planted):
    """Of `runs` simulated gates: how many failed, and how many found method-0 to be worse."""
    failed = found = 0
    for i in range(runs):
        outcome = judge(*sides(np.random.default_rng([seed, i]), **planted), RULES)
        failed += outcome.exit_code != 0
        bad = {c.title.split(" / ")[2] for c in outcome.having(Verdict.REGRESSION)}
        found += bad == {"method-0"}
    return failed, found


@pytest.mark.parametrize(
    "how",
    [{}, {"turns": False, "rounds": 1}, {"turns": False, "rounds": 4}, {"rounds": 3}],
    ids=["in-turns", "one-run-each", "apart", "few-rounds"],
)
def test_identical_code_fails_in_less_than_two_per_cent_of_runs(how):
    failed, _ = verdicts(RUNS, 1, n_cells=5, episodes=20, **how)
    assert failed / RUNS < 0.02


@pytest.mark.parametrize(
    ("planted", "seed"),
    [
        ({"slow": 1.15, "episodes": 50}, 2),
        ({"memory": 1.10, "rounds": 4, "episodes": 50}, 3),
        ({"loss": 0.02, "rounds": 2}, 4),
    ],
    ids=["15 % slower", "10 % more memory", "2 points less accurate"],
)
def test_a_planted_change_is_found_in_95_per_cent_and_nothing_else_is(planted, seed):
    runs = 100
    _, found = verdicts(runs, seed, n_cells=8, **planted)
    assert found / runs >= 0.95


def test_a_slower_machine_is_not_a_regression():
    failed, _ = verdicts(60, 5, n_cells=4, episodes=50, rounds=1, turns=False, machine=0.25)
    assert failed == 0


def test_another_machine_gives_other_trainings_and_no_alarm():
    import dataclasses

    alarms = 0
    for i in range(100):
        rng = np.random.default_rng([6, i])
        before, after = sides(rng, n_cells=5, rounds=1, turns=False, rerolled=True)
        there = {
            k: dataclasses.replace(c, hardware="another CPU", training=True)
            for k, c in after.cells.items()
        }
        outcome = judge(before, dataclasses.replace(after, cells=there), RULES)
        alarms += outcome.exit_code != 0
        assert {c.verdict for c in outcome.comparisons if c.kind != "accuracy"} == {
            Verdict.NOT_COMPARED
        }
        assert any("WERE NOT COMPARED" in n for n in outcome.notices)
    assert alarms < 2
