"""``medbench gate`` from records to exit code, and what it writes on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from medbench.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(capsys, monkeypatch):
    """Run ``medbench ...`` in this process; returns exit code, output and errors."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        told = capsys.readouterr()
        return int(stop.value.code or 0), told.out, told.err

    return run


def test_update_then_gate_passes_and_a_slower_run_fails(command, run_folder, tmp_path):
    good, slow = run_folder("a", {"m": {}}), run_folder("b", {"m": {"adapt": 0.1}})
    base = tmp_path / "base.json"
    assert command("gate", base, good, "--update")[0] == 0
    assert command("gate", base, run_folder("c", {"m": {}}))[0] == 0
    reports = {k: tmp_path / f"r.{k}" for k in ("md", "xml", "json")}
    code, out, _ = command(
        "gate", base, slow, "--markdown", reports["md"], "--junit", reports["xml"],
        "--json", reports["json"],
    )  # fmt: skip
    assert code == 1
    assert "FAIL: 2 comparisons: regression." in out
    assert "regression" in reports["md"].read_text()
    assert ET.parse(reports["xml"]).getroot()[0].get("failures") == "3"
    assert json.loads(reports["json"].read_text())["exit_code"] == 1


def test_in_actions_it_annotates_and_adds_to_the_summary(
    command, run_folder, tmp_path, monkeypatch
):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, out, _ = command(
        "gate", run_folder("a", {"m": {}}), run_folder("b", {"m": {"tensor_bytes": 99_000_000}})
    )
    assert code == 1
    assert "::error title=d%3A5w5s / conv4 / m / seed0::tensor memory regression" in out
    assert summary.read_text().startswith("before\n## medbench gate: FAIL")


def test_wrong_usage_and_damage_are_two(command, run_folder, tmp_path):
    good = run_folder("a", {"m": {}})
    code, _, told = command("gate", good, good)
    assert (code, "nothing would ever differ" in told) == (2, True)
    (tmp_path / "b.json").write_text("{")
    assert command("gate", tmp_path / "b.json", good)[0] == 2
    assert command("gate", tmp_path / "none.json", good)[0] == 2
    assert command("gate", good, run_folder("z", {"m": {}}), "--update")[0] == 2


def test_nothing_measured_is_three(command, run_folder):
    bad = run_folder("b", {"m": {"status": "oom"}})
    code, out, _ = command("gate", run_folder("a", {"m": {}}), bad)
    assert code == 3
    assert "NOTHING MEASURED" in out


def test_the_gate_needs_neither_torch_nor_a_plugin(run_folder):
    code = (
        "import sys\n"
        "from medbench.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "found = [m for m in ('torch', 'medbench.plugins', 'pandas') if m in sys.modules]\n"
        "assert not found, found\n"
    )
    a, b = run_folder("a", {"m": {}}), run_folder("b", {"m": {}})
    for words in (["gate", a, b], ["history", a, b], ["gate", "--help"], ["bench", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def actions():
    return [ROOT / "action.yml", *(ROOT / ".github/workflows").glob("*.yml")]


def test_the_action_declares_every_input_that_it_uses():
    import re

    for path in actions():
        data = yaml.safe_load(path.read_text())
        called = (data.get("on", data.get(True)) or {}) if path.name != "action.yml" else {}
        call = called.get("workflow_call", {}) if isinstance(called, dict) else {}
        declared = set(data.get("inputs", {}) or call.get("inputs", {}))
        assert set(re.findall(r"inputs\.([a-z-]+)", path.read_text())) <= declared, path


def test_workflows_give_the_action_only_inputs_it_has():
    known = set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                if step.get("uses", "").startswith("./"):
                    assert set(step["with"]) <= known


def test_no_input_is_pasted_into_a_shell_script():
    for path in actions():
        for block in scripts(path):
            assert "${{" not in block, f"{path}: {block}"


def scripts(path):
    data = yaml.safe_load(path.read_text())
    steps = data["runs"]["steps"] if "runs" in data else []
    for job in data.get("jobs", {}).values():
        steps = steps + job["steps"]
    return [s["run"] for s in steps if "run" in s]


def measure_script():
    (block,) = [b for b in scripts(ROOT / "action.yml") if "medbench gate" in b and "OUT" in b]
    return block


@pytest.mark.parametrize(
    ("gate_code", "run_code", "settings", "wanted"),
    [
        (0, 0, {"BASELINE": "b.json"}, 0), (1, 1, {"BASELINE": "b.json"}, 1),
        (0, 2, {"BASELINE": "b.json"}, 2), (3, 0, {"AGAINST": "main"}, 3),
        (0, 0, {}, 2), (0, 0, {"BASELINE": "b.json", "AGAINST": "main"}, 2),
    ],
)  # fmt: skip
def test_the_action_hands_on_the_gates_exit_code(tmp_path, gate_code, run_code, settings, wanted):
    fake = tmp_path / "bin" / "medbench"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'case "$1" in run) exit {run_code};; *) exit {gate_code};; esac\n'
    )
    fake.chmod(0o755)
    environment = {
        "PATH": f"{fake.parent}:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "output"),
        "SUITE": "my suite.yaml", "BASELINE": "", "AGAINST": "", "ROUNDS": "4",
        "THRESHOLDS": "t.yaml", "OUT": "out", **settings,
    }  # fmt: skip
    subprocess.run(
        ["bash", "-c", measure_script()], env=environment, cwd=tmp_path, check=True,
        capture_output=True,
    )  # fmt: skip
    assert f"exit-code={wanted}" in (tmp_path / "output").read_text()
    if wanted != 2:
        assert "--thresholds t.yaml" in (tmp_path / "calls").read_text()


def test_the_projects_own_baseline_is_whole_and_fits_its_suite():
    from medbench.gate.baseline import read_baseline

    side = read_baseline(ROOT / ".ci/gate/baseline.json", "accuracy")
    suite = yaml.safe_load((ROOT / ".ci/gate/suite.yaml").read_text())
    names = {a if isinstance(a, str) else a["name"] for a in suite["algorithms"]}
    assert {c.cell["algorithm"] for c in side.cells.values()} == names
    assert all(c.ok and c.rounds for c in side.cells.values())
