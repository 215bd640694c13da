"""One job measures alone on its device: the others pause, and what cannot be had is told."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from medbench.quiet import NOBODY, Quiet

fork = multiprocessing.get_context("fork")


def works(folder: Path, ready, stop, log, pauses: bool) -> None:
    with Quiet(folder) as quiet:
        ready.set()
        while not stop.is_set():
            log.put(("work", time.monotonic()))
            time.sleep(0.01)
            if pauses:
                quiet.pause()


@pytest.fixture
def worker(tmp_path):
    """Start another job on the device; ends with the test."""
    stop, made = fork.Event(), []

    def start(pauses: bool = True):
        ready, log = fork.Event(), fork.Queue()
        process = fork.Process(target=works, args=(tmp_path, ready, stop, log, pauses), daemon=True)
        process.start()
        made.append(process)
        assert ready.wait(30)
        return process, log

    yield start
    stop.set()
    for process in made:
        process.kill()
        process.join(10)


def times(log) -> list[float]:
    found = []
    while not log.empty():
        found.append(log.get()[1])
    return found


def test_others_pause_while_a_job_measures_and_go_on_after(tmp_path, worker):
    logs = [worker()[1] for _ in range(2)]
    with Quiet(tmp_path) as quiet:
        with quiet.alone():
            began = time.monotonic()
            time.sleep(0.3)
            ended = time.monotonic()
        assert quiet.disturbed_by is None
        time.sleep(0.3)
    for log in logs:
        at = times(log)
        assert at, "the other job never worked"
        assert not [t for t in at if began < t < ended]
        assert [t for t in at if t > ended], "the other job did not go on"


def test_a_job_that_never_pauses_is_not_waited_for_and_the_record_can_say_so(tmp_path, worker):
    worker(pauses=False)
    with Quiet(tmp_path, patience_s=0.2) as quiet:
        with quiet.alone():
            pass
    assert quiet.disturbed_by == "another job did not pause within 0.2 s"


def test_the_device_is_free_again_when_who_worked_there_was_killed(tmp_path, worker):
    process, _ = worker(pauses=False)
    process.kill()
    process.join(10)
    with Quiet(tmp_path, patience_s=5) as quiet:
        with quiet.alone():
            pass
    assert quiet.disturbed_by is None


def measures(folder: Path, ready, seconds: float, told) -> None:
    with Quiet(folder, exclusive=True) as quiet:
        with quiet.alone():
            ready.set()
            time.sleep(seconds)
        told.put(quiet.disturbed_by)


def test_a_measurement_without_end_does_not_hold_the_others_for_ever(tmp_path):
    ready, told, waits = fork.Event(), fork.Queue(), []
    with Quiet(tmp_path, longest_s=0.3, told=waits.append) as quiet:
        other = fork.Process(target=measures, args=(tmp_path, ready, 1.0, told), daemon=True)
        other.start()
        while not ready.is_set():
            quiet.pause()
            time.sleep(0.005)
        began = time.monotonic()
        quiet.pause()
        assert time.monotonic() - began < 0.9
        for _ in range(50):  # it goes on at full pace from then on
            quiet.pause()
        assert time.monotonic() - began < 0.9
        assert told.get(timeout=30) == "it took so long that another job went on"
        other.join(10)
        assert waits.count(True) == waits.count(False)
        # With the turn free it takes part again.
        quiet.pause()
        again = fork.Process(target=measures, args=(tmp_path, ready, 0.1, told), daemon=True)
        again.start()
        while told.empty():
            quiet.pause()
            time.sleep(0.005)
        assert told.get(timeout=30) is None
        again.join(10)


def test_cost_lanes_that_share_the_device_say_so_and_still_take_turns(tmp_path):
    with Quiet(tmp_path, exclusive=False) as quiet:
        with quiet.alone():
            pass
        assert quiet.disturbed_by == "other jobs were let run beside it"


def test_who_waits_for_another_job_is_out_of_the_way_meanwhile(tmp_path):
    ready, told = fork.Event(), fork.Queue()
    with Quiet(tmp_path) as quiet, quiet.away():
        other = fork.Process(target=measures, args=(tmp_path, ready, 0.0, told), daemon=True)
        other.start()
        assert told.get(timeout=30) is None
        other.join(10)


def test_a_job_without_others_waits_for_nothing():
    with NOBODY as quiet:
        quiet.pause()
        with quiet.away():
            pass
        with quiet.alone():
            pass
        assert quiet.disturbed_by is None
