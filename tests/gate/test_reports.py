"""Reports say what changed, by how much and how surely, and cannot be broken by odd names."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gate.noise import sides
from medbench.gate.judge import judge
from medbench.gate.reports import machines, table, words
from medbench.gate.thresholds import Thresholds
from medbench.gate.verdicts import CellTrouble, Comparison, Outcome, Verdict


@pytest.fixture(scope="module")
def slower():
    found = sides(np.random.default_rng(3), n_cells=3, slow=1.5, episodes=50)
    return judge(*found, Thresholds())


def outcome(*comparisons, troubles=(), notices=(), code=1):
    return Outcome(
        tuple(comparisons), tuple(troubles), tuple(notices), code, "FAIL: a | b", "medbench run x"
    )


ODD = Comparison(
    "d | `x` <b>:5w\x07", "accuracy", "accuracy", 0.5, 0.4, -0.1, -0.12, -0.08, 1e-9,
    Verdict.REGRESSION, "100 %, so\nit is", 1e-8,
)  # fmt: skip


def test_the_terminal_names_the_change_its_size_and_certainty(slower):
    text = table.terminal(slower)
    first = next(line for line in text.splitlines() if "regression" in line)
    assert "method-0" in first
    assert "adaptation time" in first
    assert "+5" in first
    assert "p < 0.0001" in first
    assert text.splitlines()[-1] == slower.headline
    assert "reproduce: medbench run SUITE --only 'd:5w5s / conv4 / method-0 / seed0'" in text


def test_what_is_equivalent_is_counted_and_listed_on_demand(slower):
    short, long = table.terminal(slower), table.terminal(slower, everything=True)
    assert "tensor memory" not in short
    assert long.count("tensor memory") == 3
    assert "equivalent" in short


def test_markdown_has_a_table_of_what_is_bad_and_folds_the_rest(slower):
    text = table.markdown(slower)
    head, _, folded = text.partition("<details>")
    assert "**regression**" in head
    assert "method-1" not in head
    assert "method-1" in folded
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {8}


def test_markdown_escapes_odd_names():
    text = table.markdown(outcome(ODD))
    assert "\\<b\\>" in text
    assert "d \\| \\`x\\`" in text


def test_annotations_are_workflow_commands_of_one_line_each():
    trouble = CellTrouble("c", "missing", "no record", True)
    text = machines.workflow_commands(outcome(ODD, troubles=[trouble], notices=["look, there"]))
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("::error title=d | `x` <b>%3A5w")
    assert "100 %25, so%0Ait is" in lines[0]
    assert lines[1] == "::error title=c missing::no record"
    assert lines[2] == "::warning title=medbench gate::look, there"


def test_a_failure_without_a_culprit_is_annotated_all_the_same():
    assert "::error" in machines.workflow_commands(outcome(code=3))
    assert "::notice" in machines.workflow_commands(outcome(code=0))


def test_junit_counts_what_it_holds_and_fails_when_the_gate_does(slower):
    (suite,) = ET.fromstring(machines.junit(slower))
    assert int(suite.get("tests")) == len(suite) == len(slower.comparisons) + 1
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) >= 2
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
    nothing = ET.fromstring(machines.junit(outcome(code=3)))
    assert nothing[0].get("failures") == "1"


def test_junit_survives_control_characters():
    trouble = CellTrouble("c\x00", "failed", "crash: \x1b[31m", True)
    (suite,) = ET.fromstring(machines.junit(outcome(ODD, troubles=[trouble])))
    assert suite.get("errors") == "1"


def test_json_holds_everything(slower):
    data = json.loads(machines.as_json(slower))
    assert data["exit_code"] == 1
    assert len(data["comparisons"]) == len(slower.comparisons)
    assert {c["verdict"] for c in data["comparisons"]} >= {"regression", "equivalent"}


def test_numbers_have_the_units_people_read():
    assert words.value(ODD, 0.4567) == "45.67 %"
    assert words.change(ODD) == "-10.00 points [-12.00, -8.00]"
    assert words.certainty(ODD) == "p < 0.0001"
