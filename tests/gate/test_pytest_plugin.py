"""The pytest plugin in a suite of somebody else's: measured, kept, and judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import medbench
import toy

PLUGIN = "medbench.pytest_plugin"
SUITE = """
import pytest

@pytest.mark.medbench(algorithm="toy/mean", protocol="toy/classes", shot=2, episodes=20)
def test_mean(medbench_cell):
    assert medbench_cell.accuracy.mean() > 0.4
    assert len(medbench_cell.accuracy) == 20
    assert medbench_cell.memory["peak_tensor_bytes"] > 0
    assert medbench_cell.times("adaptation_s").shape == (4,)
"""


@pytest.fixture
def session(tmp_path, distribute, monkeypatch):
    """Run pytest on a file with the plugin; returns the finished process."""
    toy.install(distribute)
    folder = tmp_path / "theirs"
    folder.mkdir()

    top = Path(medbench.__file__).parents[1]
    paths = [str(top), str(top / "plugins"), os.environ["PYTHONPATH"]]

    # Theirs is a session of its own, not a worker of this one.
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}

    def run(text, *options):
        (folder / "test_mine.py").write_text(text)
        named = {e.value for e in entry_points(group="pytest11")}
        # Named as an option only where this tree is not installed: twice would be an error.
        plugin = [] if PLUGIN in named else ["-p", PLUGIN]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin]
        return subprocess.run(
            [*command, *map(str, options), "test_mine.py"],
            cwd=folder, capture_output=True, text=True, check=False,
            env=outside | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip

    return run


def test_a_session_writes_a_baseline_keeps_times_and_is_judged(session, tmp_path):
    base, kept = tmp_path / "base.json", tmp_path / "kept.json"
    done = session(SUITE, "--medbench-update", base, "--benchmark-json", kept)
    assert done.returncode == 0, done.stdout + done.stderr
    (bench,) = json.loads(kept.read_text())["benchmarks"]
    assert bench["group"] == "toy:3w2s"
    assert bench["stats"]["rounds"] == 4
    info = bench["extra_info"]
    assert info["accuracy"] > 0.4
    longest = info["adaptation_s"] + info["prediction_s"]
    assert 0 < longest <= 2 * bench["stats"]["max"]
    machine = json.loads(kept.read_text())["machine_info"]["medbench"]
    assert machine["class"] == info["hardware"]
    text = base.read_text()
    assert "toy/mean" in text
    # Held against what cannot be reached, and with a test less, the gate fails the session.
    less = SUITE.replace("shot=2", "shot=1")
    done = session(less, "--medbench-gate", base, "--benchmark-disable")
    assert done.returncode != 0
    assert "MISSING  toy:3w2s" in done.stdout
    assert "NEW  toy:3w1s" in done.stdout


def test_what_is_wrong_with_a_marker_or_a_cell_is_said(session):
    text = "import pytest\n" + "\n".join(
        f"@pytest.mark.medbench({words})\ndef test_{i}(medbench_cell): pass"
        for i, words in enumerate(
            [
                "algorithm='toy/mean', protocol='toy/classes', shto=2",
                "algorithm='toy/mean', protocol='toy/classes'",
                "algorithm='toy/mean'",
                "algorithm='toy/meen', protocol='toy/classes', shot=1",
                "algorithm='toy/raises', protocol='toy/classes', shot=1",
            ]
        )
    )
    done = session(text + "\ndef test_none(medbench_cell): pass\n")
    assert done.returncode == 1
    for words in (
        "no word 'shto'. Did you mean 'shot'?", "describes 2 cells", "lacks 'protocol'",
        "Did you mean 'toy/mean'", "crash in stage cost_lane: KeyError: 'a bug'",
        "medbench_cell needs a marker",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert "6 errors" in done.stdout


def test_a_damaged_baseline_fails_the_session(session, tmp_path):
    (tmp_path / "b.json").write_text("{")
    done = session("def test_x(): pass\n", "--medbench-gate", tmp_path / "b.json")
    assert done.returncode == 4
    assert "not a readable baseline" in done.stdout or "No such file" in done.stdout


def test_the_plugin_imports_next_to_nothing():
    code = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import medbench.pytest_plugin\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert new <= {'medbench', 'tempfile', 'random', 'bisect', 'hashlib', '_hashlib',\n"
        "    '_blake2', '_random', '_bisect', '_sha512', 'weakref', 'shutil'}, new\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_is_declared():
    import tomllib

    data = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert data["project"]["entry-points"]["pytest11"] == {"medbench": "medbench.pytest_plugin"}
