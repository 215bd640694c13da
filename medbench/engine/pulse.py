"""How a run goes, told by the one who runs it to those who watch: one small file.

Nothing depends on the file: records alone say what is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medbench.engine.executor import Told
from medbench.jobs import Job

FILE = "pulse.json"
EVERY_S = 1.0
# A run that has not told anything for so long is not going on.
SILENT_S = 20.0


@dataclass
class Doing:
    """One job that runs: what, where, since when (Unix time), how far (None: not known)."""

    title: str
    kind: str
    where: str
    since: float
    fraction: float | None = None
    text: str = ""


@dataclass
class State:
    """The whole run at one moment; times are Unix times, `left_s` is a guess or None."""

    host: str
    pid: int
    began: float
    beat: float
    state: str
    n_slots: int
    cells: dict[str, int]
    trainings: dict[str, int]
    tried_again: int
    cells_per_minute: float | None
    left_s: float | None
    running: list[Doing] = field(default_factory=list)

    @property
    def going(self) -> bool:
        """Whether somebody is running it now."""
        return self.state == "running" and time.time() - self.beat < SILENT_S


def read_pulse(out: Path) -> State | None:
    """What the last run in `out` told last; None when there is nothing to read."""
    try:
        data: dict[str, Any] = json.loads((out / FILE).read_text())
        return State(**data | {"running": [Doing(**d) for d in data["running"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Pulse:
    """Counts what happens in a run and writes it down about once a second."""

    def __init__(
        self,
        out: Path,
        n_slots: int,
        recorded: Iterable[str],
        cells: Sequence[Job],
        trainings: Sequence[Job],
    ) -> None:
        """`recorded`: states of cells that need not run; `cells`, `trainings`: what will."""
        self._path = out / FILE
        self._n_slots = n_slots
        self._began = time.time()
        self._wrote = 0.0
        self._cells, self._trainings = Counter(recorded), Counter[str]()
        self._left = {"cell": len(cells), "training": len(trainings)}
        self._seconds: dict[str, list[float]] = {"cell": [], "training": []}
        self._running: dict[str, Doing] = {}
        self._tried_again = 0
        self._first_cell: float | None = None

    def started(self, job: Job, where: str) -> None:
        """A job has begun."""
        self._running[job.key] = Doing(job.title, job.kind, where, time.time())
        if job.kind == "cell" and self._first_cell is None:
            self._first_cell = time.monotonic()

    def told(self, news: Told) -> None:
        """A job said how far it is."""
        doing = self._running.get(news.job.key)
        if doing is not None:
            doing.text = news.text
            if news.fraction >= 0:
                doing.fraction = round(news.fraction, 4)

    def again(self, job: Job) -> None:
        """A job failed, and waits for another try."""
        self._running.pop(job.key, None)
        self._tried_again += 1

    def finished(self, job: Job, status: str, seconds: float) -> None:
        """A job has ended for good."""
        self._running.pop(job.key, None)
        (self._cells if job.kind == "cell" else self._trainings)[status] += 1
        self._left[job.kind] -= 1
        self._seconds[job.kind].append(seconds)

    def beat(self) -> None:
        """Write, when the last time is about a second ago."""
        if time.monotonic() - self._wrote >= EVERY_S:
            self._write("running")

    def end(self, state: str) -> None:
        """Write that the run is over: ``done`` or ``stopped``."""
        self._running.clear()
        self._write(state)

    def _write(self, state: str) -> None:
        self._wrote = time.monotonic()
        text = json.dumps(asdict(self._now(state)), indent=1)
        # Not synced and not worth a failure: it is old in a second, and the next record tells of
        # a full disk.
        temporary = self._path.with_name(f".{FILE}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(text)
            temporary.replace(self._path)

    def _now(self, state: str) -> State:
        n_running = Counter(d.kind for d in self._running.values())
        cells, trainings = dict(self._cells), dict(self._trainings)
        for kind, counts in (("cell", cells), ("training", trainings)):
            if n_running[kind]:
                counts["running"] = n_running[kind]
            if self._left[kind] > n_running[kind]:
                counts["waiting"] = self._left[kind] - n_running[kind]
        rate = None
        if self._first_cell is not None and self._seconds["cell"]:
            minutes = max(time.monotonic() - self._first_cell, 1e-3) / 60
            rate = round(len(self._seconds["cell"]) / minutes, 3)
        return State(
            host=os.uname().nodename,
            pid=os.getpid(),
            began=self._began,
            beat=time.time(),
            state=state,
            n_slots=self._n_slots,
            cells=cells,
            trainings=trainings,
            tried_again=self._tried_again,
            cells_per_minute=rate,
            left_s=self._guess(),
            running=list(self._running.values()),
        )

    def _guess(self) -> float | None:
        """Seconds left, if jobs to come take what those before them took."""
        total = 0.0
        for kind in ("training", "cell"):
            if not self._left[kind]:
                continue
            took = self._seconds[kind]
            running = [d for d in self._running.values() if d.kind == kind]
            # A job that runs tells by its fraction; before any has ended that must do.
            shown = [
                (time.time() - d.since) / d.fraction
                for d in running
                if d.fraction is not None and d.fraction > 0.02
            ]
            if not took and not shown:
                return None
            each = sum(took or shown) / len(took or shown)
            total += each * (self._left[kind] - sum(d.fraction or 0.0 for d in running))
        return round(total / max(1, self._n_slots), 1)
