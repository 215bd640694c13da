"""What tests of engines share: runs that go on while they are disturbed, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

MEDBENCH = [sys.executable, "-m", "medbench"]
# Two trainings that can run side by side, a cell for each, and one cell without a training.
ONLY = ("--only", "3w1s*slow", "--only", "3w1s*mean*seed0")
CELLS = 3


def medbench(*arguments, code=0, **environment) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*MEDBENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Run:
    """A coordinator that runs while a test disturbs it."""

    def __init__(self, *arguments, **environment) -> None:
        self.process = subprocess.Popen(
            [*MEDBENCH, "run", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def ended(self, code: int = 0, seconds: float = 600) -> str:
        """What it told until it ended."""
        _, told = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, told
        return told

    def going(self) -> None:
        """Fail, with what it told, when it has ended."""
        if self.process.poll() is not None:
            raise AssertionError(self.process.communicate()[1])


def scores(out: Path) -> dict[str, dict]:
    """Per-episode scores of every cell that was measured, exactly."""
    found = {}
    for path in (out / "records").glob("*.json"):
        data = json.loads(path.read_text())
        if data["status"] == "ok":
            found[path.stem] = pq.read_table(path.with_suffix(".parquet")).to_pydict()
    return found


def trainings(out: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(out.glob("trainings/*/training.json"))]


def checkpoints(out: Path) -> list[Path]:
    return list(out.glob("trainings/*/checkpoint.safetensors"))


def wait_for(condition, run: Run | None = None, seconds: float = 500):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        if run is not None:
            run.going()
        time.sleep(0.05)
    return found


def processes(*words: str) -> list[psutil.Process]:
    """Processes with all `words` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if all(w in line for w in words) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]
