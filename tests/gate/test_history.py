"""A history finds the run in which a cell changed, and draws it in one page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from medbench.cli.history import history_command
from medbench.errors import UsageError
from medbench.gate.history import build_history
from medbench.gate.reading import read_side
from medbench.gate.thresholds import Thresholds


@pytest.fixture
def runs(run_folder):
    """Twelve runs: from the seventh on m is slower, from the ninth on n is less accurate."""
    rng = np.random.default_rng(0)
    level = np.clip(rng.normal(0.7, 0.1, 200), 0, 1)
    found = []
    for i in range(12):
        noise, machine = np.exp(rng.normal(0, 0.02)), np.exp(rng.normal(0, 0.3))
        slow = 1.3 if i >= 6 else 1.0
        cells = {
            "m": {"adapt": 0.02 * slow * noise * machine, "speed": 0.002 * machine},
            "n": {"scores": level - (0.03 if i >= 8 else 0.0), "speed": 0.002 * machine,
                  "adapt": 0.01 * machine},
        }  # fmt: skip
        found.append(run_folder(f"run{i:02d}", cells, second=86400 * i))
    return found


def history_of(folders):
    return build_history([read_side(f, "accuracy") for f in folders], Thresholds())


def test_steps_are_found_at_their_run_through_the_machines_drift(runs):
    history = history_of(runs[::-1])
    found = {(s.title.split(" / ")[2], s.metric, s.runs[step.at]) for s, step in history.stepped}
    assert found == {("m", "adaptation_s", 6), ("m", "prediction_s", 6), ("n", "accuracy", 8)}
    series, step = next((s, st) for s, st in history.stepped if s.metric == "adaptation_s")
    change, low, high = series.change(step)
    assert low < 0.3 < high
    assert change == pytest.approx(0.3, abs=0.05)
    assert series.worse(step)


def test_runs_on_other_hardware_and_other_protocols_are_left_out_and_named(runs, run_folder):
    cells = {"m": {"adapt": 0.5, "hardware": "another"}, "n": {"version": 2}}
    other = run_folder("run99", cells, second=86400 * 20)
    history = history_of([*runs, other])
    assert not any(s.metric == "adaptation_s" for s, _ in history.stepped)
    assert any("on other hardware left out" in n for n in history.notices)
    assert any("other protocol versions left out" in n for n in history.notices)


def test_one_run_has_no_history(runs):
    with pytest.raises(UsageError, match="two runs"):
        history_of(runs[:1])


def test_the_command_prints_steps_and_writes_a_page_that_needs_nothing_else(runs, tmp_path):
    page = tmp_path / "h.html"
    done = CliRunner().invoke(history_command, [*map(str, runs), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert re.search(r"WORSE .* m .*adaptation time: .* -> .*\+(29|3\d)\.\d %", done.output)
    text = page.read_text()
    assert text.count("<svg") == 8
    assert text.count("stroke-dasharray") == 3
    assert not re.search(r"https?://|<script|<link|@import|src=", text)
    data = CliRunner().invoke(history_command, [*map(str, runs), "--json"])
    assert len(json.loads(data.output)["series"]) == 8


def test_names_cannot_break_the_page(run_folder):
    from medbench.gate.history_page import page

    folders = [run_folder(f"r{i}", {"a<b>": {}}, second=i) for i in range(3)]
    assert "<b>" not in page(history_of(folders))
