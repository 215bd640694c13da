"""One attempt on some machine: what keeps it from running there is told, not raised."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from medbench.api import Place
from medbench.engine import memory
from medbench.engine.alone import Alone, Result, Troubles, terms_of
from medbench.engine.executor import Attempt
from medbench.errors import Unavailable
from medbench.jobs import Job


def terms(tmp_path: Path):
    return terms_of(
        Place(None, tmp_path / "cache"),
        threads=1,
        timeouts={"cell": 10.0, "training": 10.0},
        memory_bytes=None,
        exclusive=True,
        gpu=False,
    )


def test_terms_carry_own_variables_and_no_places_of_the_coordinator(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("MEDBENCH_PLUGINS", "toy")
    monkeypatch.setenv("SECRET", "x")
    found = terms(tmp_path).environment
    assert found["MEDBENCH_PLUGINS"] == "toy"
    assert not {"MEDBENCH_DATA", "MEDBENCH_CACHE", "SECRET"} & set(found)


def test_another_version_on_a_machine_is_told_as_its_trouble(tmp_path):
    other = dataclasses.replace(terms(tmp_path), version="99.0")
    job = Job("cell", "k" * 32, "a cell", "a-cell", {}, None, {})
    (told,) = Alone(tmp_path, other, tmp_path / "quiet").run(Attempt(job))
    assert isinstance(told, Result)
    assert "and this run needs 99.0" in told.trouble


def test_a_run_ends_when_no_machine_can_run_a_job_and_goes_on_when_one_cannot():
    nowhere = Troubles(limit=3)
    assert nowhere.lost("no data").again
    assert nowhere.lost("no data").status == "unavailable"
    with pytest.raises(Unavailable, match="no data"):
        nowhere.lost("no data")
    somewhere = Troubles(limit=3)
    somewhere.worked = True
    assert all(somewhere.lost("no data").again for _ in range(10))


def test_of_jobs_with_a_guard_each_only_the_largest_ends_when_memory_runs_out(monkeypatch):
    code = "'medbench.engine.local'; held = b'x' * (%d << 20); print(1, flush=True); input()"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code % size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=leads,
        )
        for size, leads in ((20, True), (80, True), (1, False))
    ]
    try:
        for job in jobs:
            assert job.stdout is not None
            job.stdout.readline()
        small, large, inner = (job.pid for job in jobs)
        found = memory._jobs()
        assert {small, large} <= set(found)
        assert inner not in found
        monkeypatch.setattr(memory, "_jobs", lambda: [small, large])
        monkeypatch.setattr(memory, "machine_memory", lambda: (0, 100))
        assert memory.Guard(None, shared=True).look([small]) == []
        ((index, lost),) = memory.Guard(None, shared=True).look([large])
        assert (index, lost.status) == (0, "oom")
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
