"""One small suite for every engine, and the scores that an undisturbed local run gives it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_runs import CELLS, ONLY, Run, medbench, scores

import toy

ROOT = Path(__file__).parents[2]


# Trainings sleep after each step; while the gate is shut they wait there, on machines of any speed.
GATE = """
class _Gate:
    n_steps = 0

    def sleep(self, seconds):
        self.n_steps += 1
        sleep(seconds)
        while self.n_steps > 5 and os.path.exists(os.environ.get("TOY_GATE", "")):
            sleep(0.05)


sleep = time.sleep
time = _Gate()
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder with the toy distribution, for processes that are not this one's children."""
    folder: Path = tmp_path_factory.mktemp("site")

    def distribute(name: str, source: str, **modules: str) -> Path:
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[medbench]\n{name}_medbench = {name}_medbench\n")
        for module, text in {f"{name}_medbench": source, **modules}.items():
            (folder / f"{module}.py").write_text(text)
        return folder

    toy.install(distribute)
    with (folder / "toy_parts.py").open("a") as parts:
        parts.write(GATE)
    return folder


@pytest.fixture
def gate(site) -> Iterator[Path]:
    """While this file exists, trainings hold on after a few steps."""
    path: Path = site / "gate"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def python_path(site) -> str:
    """What child processes find the toy distribution and this medbench by."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join(map(str, (site, ROOT, ROOT / "plugins", *([before] if before else []))))


@pytest.fixture(autouse=True)
def _environment(monkeypatch, python_path, site) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path)
    monkeypatch.setenv("TOY_GATE", str(site / "gate"))
    monkeypatch.setenv("MEDBENCH_CHECKPOINT_S", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(
        toy.suite("toy/slow-training", "toy/mean", seeds="[0, 1]", budget="{episodes: 30}")
    )
    return str(path)


@pytest.fixture(scope="session")
def calm(tmp_path_factory, suite, python_path) -> dict[str, dict]:
    """Scores of an undisturbed local run with one worker."""
    out = tmp_path_factory.mktemp("calm") / "out"
    medbench("run", suite, "--out", out, "--workers", 1, *ONLY, PYTHONPATH=python_path)
    found = scores(out)
    assert len(found) == CELLS
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Start ``medbench run`` and go on; what is left of it at the end is killed."""
    runs: list[Run] = []

    def go(*arguments, **environment) -> Run:
        runs.append(Run(*arguments, **environment))
        return runs[-1]

    yield go
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
        run.process.communicate()
