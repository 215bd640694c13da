"""What tests of whole runs share: commands as processes, records, and waiting for something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

MEDBENCH = [sys.executable, "-m", "medbench"]


def medbench(*arguments, code=0, **environment) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must end with `code`, or with any when that is None."""
    done = subprocess.run(
        [*MEDBENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def records(out: Path) -> dict[str, dict]:
    """Every record in a run's folder, by algorithm, target and seed."""
    found = {}
    for path in sorted((out / "records").glob("*.json")):
        data = json.loads(path.read_text())
        data["path"] = path
        cell = data["cell"]
        found[f"{cell['algorithm']} {cell['target']} {cell['seed']}"] = data
    return found


def scores(out: Path) -> dict[str, dict]:
    """Per-episode scores of every cell, exactly."""
    return {
        name: pq.read_table(data["path"].with_suffix(".parquet")).to_pydict()
        for name, data in records(out).items()
        if data["status"] == "ok"
    }


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found + [g for c in found for g in children(c)]


def wait_for(condition, seconds: float = 180) -> None:
    """Return when `condition()` holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
