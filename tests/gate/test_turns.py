"""Two versions of a repository are measured in turns, each by its own code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap

import pytest

from medbench.errors import UsageError
from medbench.gate.judge import judge
from medbench.gate.reading import read_side
from medbench.gate.thresholds import Thresholds
from medbench.gate.turns import RoundFailed, Turns, prepare, take_turns
from medbench.gate.verdicts import Verdict
from medbench.gate.versions import import_roots, same_project

# Stands in for medbench in the versions that are measured: it writes one record and no more.
FAKE = """
import argparse, datetime, json, pathlib, random, struct, sys
from medbench.speed import ADAPT
parser = argparse.ArgumentParser()
for name in ("run", "suite"): parser.add_argument(name)
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--workers"); parser.add_argument("-q", action="store_true")
parser.add_argument("--only")
a = parser.parse_args()
if a.suite == "broken": sys.exit("medbench: no such suite")
(a.out / "records").mkdir(parents=True)
stages = ("support_feature_s", "adapt_s", "query_feature_s", "predict_s")
noise = random.Random(datetime.datetime.now().microsecond)
slow = 1 + noise.uniform(-.01, .01)
record = {
    "schema": 1, "key": "k" * 32, "status": "ok",
    "created": datetime.datetime.now(datetime.UTC).isoformat(),
    "cell": {"protocol": "p", "protocol_version": 1, "target": "d:5w5s", "way": 5, "shot": 5,
             "backbone": "b", "algorithm": "m", "seed": 0, "sources": []},
    "hardware": {"class": "h"}, "versions": {"torch": "2"}, "ingredients": {},
    "costs": {"times": {}, "memory": {}, "episodes": {s: [ADAPT * slow] * 5 for s in stages}},
    "scores_file": "m-kkkkkkkkkkkk.parquet", "scores_digest": DIGEST,
}
(a.out / "records" / "m-kkkkkkkkkkkk.json").write_text(json.dumps(record))
(a.out / "records" / "m-kkkkkkkkkkkk.parquet").write_bytes(bytes.fromhex(SCORES))
(a.out / "plan.json").write_text(json.dumps({"m": "k" * 32}))
"""


def git(top, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(top), *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository whose package medbench is fast in the first commit, and is now slow."""
    import numpy as np

    from medbench.files import file_digest
    from medbench.records import write_record

    write_record(tmp_path / "x.json", {}, {"accuracy": np.full(20, 0.5)})
    scores = tmp_path / "x.parquet"
    text = FAKE.replace("DIGEST", repr(file_digest(scores)))
    text = text.replace("SCORES", repr(scores.read_bytes().hex()))
    top = tmp_path / "repository"
    package = top / "src" / "medbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(textwrap.dedent(text))
    (package / "speed.py").write_text("ADAPT = 0.01\n")
    (top / ".gitignore").write_text("ignored\n__pycache__\n")
    (top / "ignored").write_text("x")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "one")
    (package / "speed.py").write_text("from medbench.slow import ADAPT\n")
    (package / "slow.py").write_text("ADAPT = 0.02\n")
    return top


def test_uncommitted_changes_are_measured_against_a_commit_in_turns(repository, tmp_path):
    out = tmp_path / "out"
    versions = prepare(repository, "HEAD", out, "auto")
    told: list[str] = []
    take_turns(versions, Turns("s", out, 4, ("--only", "m")), told.append)
    assert [t.split()[2] for t in told] == [
        "baseline", "current", "current", "baseline", "baseline", "current", "current", "baseline",
    ]  # fmt: skip
    sides = [read_side(out / name, "accuracy") for name in ("baseline", "current")]
    outcome = judge(sides[0], sides[1], Thresholds())
    assert outcome.exit_code == 1
    times = [c for c in outcome.comparisons if c.kind == "time"]
    assert {c.verdict for c in times} == {Verdict.REGRESSION}
    assert times[0].effect == pytest.approx(1.0, abs=0.1)
    assert json.loads((out / "bench.json").read_text())["environments"] == "path"
    assert not (out / "sources" / "current" / "ignored").exists()
    assert not (out / "sources" / "baseline" / "src" / "medbench" / "slow.py").exists()


def test_a_version_that_cannot_run_stops_the_bench_with_its_words(repository, tmp_path):
    out = tmp_path / "out"
    versions = prepare(repository, "HEAD", out, "path")
    with pytest.raises(RoundFailed, match="no such suite"):
        take_turns(versions, Turns("broken", out, 2), lambda text: None)


def test_unknown_commits_and_used_folders_are_refused(repository, tmp_path):
    with pytest.raises(UsageError, match="nonsense"):
        prepare(repository, "nonsense", tmp_path / "o", "auto")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        prepare(repository, "HEAD", tmp_path / "full", "auto")
    with pytest.raises(UsageError, match="not a git repository"):
        prepare(tmp_path, "HEAD", tmp_path / "o2", "auto")


def test_a_package_that_would_come_from_elsewhere_is_an_error(tmp_path):
    # numpy stands in for a package that is installed and lies on no import path of the version.
    top = tmp_path / "r"
    (top / "elsewhere" / "numpy").mkdir(parents=True)
    (top / "elsewhere" / "numpy" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "one")
    with pytest.raises(UsageError, match="no package to measure"):
        prepare(top, "HEAD", tmp_path / "o", "path")
    prepare(top, "HEAD", tmp_path / "o2", "path", ["elsewhere"])


def test_projects_are_the_same_if_what_they_run_with_is(tmp_path):
    for name, text in (
        ("a", '[project]\nname = "x"\nversion = "1"\ndependencies = ["numpy"]\n'),
        ("b", '[project]\nname = "x"\nversion = "2"\ndependencies = ["numpy"]\n[tool.ruff]\n'),
        ("c", '[project]\nname = "x"\nversion = "1"\ndependencies = ["numpy>=2"]\n'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(text)
    assert same_project(tmp_path / "a", tmp_path / "b")
    assert not same_project(tmp_path / "a", tmp_path / "c")


def test_import_roots_are_those_of_the_build(tmp_path):
    assert import_roots(tmp_path) == [tmp_path]
    (tmp_path / "src").mkdir()
    assert import_roots(tmp_path) == [tmp_path / "src"]
    (tmp_path / "plugins").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.hatch.build]\ndev-mode-dirs = [".", "plugins"]\n'
    )
    assert import_roots(tmp_path) == [tmp_path, tmp_path / "plugins"]
    with pytest.raises(UsageError, match="no such folder"):
        import_roots(tmp_path, ["nowhere"])


def test_each_version_may_have_an_environment_of_its_own(repository, tmp_path, monkeypatch):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools builds the version, and is not installed")
    # Without a network: the build runs with what is installed here.
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    (repository / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "fake-medbench"\nversion = "1"\n'
    )
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "two")
    versions = prepare(repository, "HEAD", tmp_path / "out", "venv")
    done = versions[0].run(["-c", "import medbench, numpy; print(medbench.__file__)"])
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "environments" / "baseline") in done.stdout
    assert sys.executable not in versions[0].python
