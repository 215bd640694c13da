"""What an engine costs for each cell, and how much faster two workers are than one.

``pytest tests/perf/test_engine_speed.py -o addopts=''`` prints the table.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from medbench.engine.pulse import read_pulse

ENGINES = {
    "local": (),
    "ray": ("--engine", "ray"),
    "slurm": ("--engine", "slurm", "--slurm", "cluster=local"),
}
NEEDS = {"local": "medbench", "ray": "ray", "slurm": "submitit"}
# A cell whose time is its own and nobody's processor: it waits.
SLEEPS = """
class Exits(Mean):
    def prepare(self, backbone, learned):
        time.sleep(float(os.environ["TOY_WAIT"]))
"""


@pytest.fixture
def run(distribute, tmp_path):
    """Run cells on an engine; returns the seconds from the first to the last."""
    toy.install(distribute)
    parts = tmp_path / "site" / "toy_parts.py"
    parts.write_text(parts.read_text() + SLEEPS)

    def go(engine: str, algorithm: str, n_cells: int, workers: int, wait_s: float = 0.0) -> float:
        name = f"{engine}-{algorithm.replace('/', '-')}-{n_cells}-{workers}"
        path, out = tmp_path / f"{name}.yaml", tmp_path / name
        path.write_text(toy.suite(algorithm, seeds=list(range(n_cells))))
        command = [sys.executable, "-m", "medbench", "run", str(path), "--out", str(out)]
        command += ["--only", "3w1s", "--workers", str(workers), *ENGINES[engine]]
        environment = os.environ | {
            "TOY_WAIT": str(wait_s),
            "PYTHONPATH": os.pathsep.join(
                [os.environ["PYTHONPATH"], *(str(p) for p in _of_this_checkout())]
            ),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        pulse = read_pulse(out)
        assert pulse is not None
        assert pulse.cells == {"ok": n_cells}
        return pulse.beat - pulse.began

    return go


def _of_this_checkout() -> tuple[Path, Path]:
    root = Path(__file__).parents[2]
    return root, root / "plugins"


@pytest.mark.parametrize("engine", ENGINES)
def test_overhead_of_an_empty_cell(benchmark, run, engine):
    if benchmark.disabled:
        pytest.skip("the engines' own tests run them; this one times them")
    if importlib.util.find_spec(NEEDS[engine]) is None:
        pytest.skip(f"{NEEDS[engine]} is not installed")
    few, many = 4, 24
    start_up = run(engine, "toy/mean", few, 1)
    seconds = benchmark.pedantic(
        run, args=(engine, "toy/mean", many, 1), rounds=1, iterations=1
    )  # fmt: skip
    benchmark.extra_info["overhead_s_per_cell"] = (seconds - start_up) / (many - few)
    benchmark.extra_info["first_cells_s"] = start_up
    assert seconds > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_two_workers_take_half_the_time_of_cells_that_wait(benchmark, run, engine):
    if benchmark.disabled:
        pytest.skip("nothing is timed")
    if importlib.util.find_spec(NEEDS[engine]) is None:
        pytest.skip(f"{NEEDS[engine]} is not installed")
    wait_s = 10.0
    one = run(engine, "toy/exits", 6, 1, wait_s)
    two = benchmark.pedantic(
        run, args=(engine, "toy/exits", 6, 2, wait_s), rounds=1, iterations=1
    )  # fmt: skip
    benchmark.extra_info["efficiency"] = one / (2 * two)
    assert one / two > 1.2
