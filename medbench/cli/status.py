"""``medbench status``."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.cli.plans import count, device_name, make_plan
from medbench.cli.run import suite_of
from medbench.errors import UsageError

if TYPE_CHECKING:
    from medbench.engine.pulse import State
    from medbench.jobs import Job
    from medbench.shelf import Shelf

_EVERY_S = 2.0


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--device", default="auto", show_default=True, metavar="NAME")
@click.option("--watch", is_flag=True, help="Follow a run that is going on, until it ends.")
def status_command(folder: Path, as_json: bool, device: str, watch: bool) -> int:
    """Say what the run in FOLDER has done, what is missing, and what is stale and why.

    With --watch: cells by state, what runs where, throughput and a guess of the time left, every
    two seconds. Exits with 0 when everything is measured, 1 when something is missing, stale or
    failed.

    \b
    Examples:
      medbench status runs/quickstart
      medbench status runs/cross --watch
    """
    from medbench.config import load_suite
    from medbench.engine.pulse import read_pulse
    from medbench.jobs import Folders, cell_states, training_state
    from medbench.plugins import registry
    from medbench.shelf import Shelf

    path = suite_of(folder)
    if watch:
        return _watch(folder)
    suite, _ = load_suite(str(path), registry())
    plan = make_plan(suite, device_name(device), quiet=True)
    folders, shelf = Folders(folder), Shelf(folder)
    rows = []
    for job, (state, brief) in zip(plan.cells, cell_states(shelf, plan.cells), strict=True):
        why = _stale(shelf, job) if state == "missing" else []
        error = brief.own.error if brief and not brief.ok else ""
        rows.append(
            {
                "title": job.title,
                "key": job.key,
                "state": "stale" if why else state,
                "changed": why,
                "error": error,
                "log": str(folders.log(job)) if error else "",
            }
        )
    shelf.save()
    counts = collections.Counter(str(r["state"]) for r in rows)
    trainings = collections.Counter(training_state(folders, j)[0] for j in plan.trainings)
    if as_json:
        click.echo(json.dumps({"cells": rows, "counts": counts, "trainings": trainings}, indent=1))
    else:
        lines = [
            f"suite {suite.name} in {folder}: {count(len(rows), 'cell')}, "
            + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        ]
        if trainings:
            lines.append(
                f"{count(len(plan.trainings), 'training')}, "
                + ", ".join(f"{n} {state}" for state, n in sorted(trainings.items()))
            )
        for row in rows:
            if row["state"] != "ok":
                lines.append(f"  {row['state']:<11} {row['title']}")
                told = [*row["changed"][:5], row["error"], row["log"]]
                lines += [f"      {text}" for text in told if text]
        lines += _failures(rows)
        pulse = read_pulse(folder)
        if pulse is not None and pulse.going:
            lines += ["running now:", *_lines(pulse)[1:]]
        # One write: a hundred thousand small ones take seconds.
        click.echo("\n".join(lines))
    return 0 if set(counts) <= {"ok"} else 1


def _failures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Failed cells by cause, where several share one."""
    causes = collections.Counter(
        (str(r["state"]), str(r["error"]).partition(". ")[0]) for r in rows if r["error"]
    )
    if not causes or causes.most_common(1)[0][1] == 1:
        return []
    told = [f"  {n:>4} x {state:<11} {text[:120]}" for (state, text), n in causes.most_common(10)]
    return ["failures by cause:", *told]


def _watch(folder: Path) -> int:
    """Show the pulse of a run until it ends; then whether all of it is measured."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from medbench.engine.pulse import read_pulse

    pulse = read_pulse(folder)
    if pulse is None:
        raise UsageError(f"No run of this version was started in {folder}; see 'medbench status'.")
    console = Console()
    if not console.is_terminal:
        while pulse is not None and pulse.going:
            click.echo("\n".join(_lines(pulse)))
            time.sleep(_EVERY_S)
            pulse = read_pulse(folder) or pulse
    else:
        with Live(console=console, auto_refresh=False) as live:
            while pulse is not None and pulse.going:
                live.update(Text("\n".join(_lines(pulse))), refresh=True)
                time.sleep(_EVERY_S)
                pulse = read_pulse(folder) or pulse
    assert pulse is not None
    click.echo("\n".join(_lines(pulse)))
    return 0 if set(pulse.cells) <= {"ok"} else 1


def _lines(pulse: State) -> list[str]:
    """A run at one moment, as lines: the head first."""
    now = time.time()
    ago = now - pulse.beat
    states = {
        "running": "running" if pulse.going else f"silent for {duration(ago)}: it was killed",
        "done": f"ended {duration(ago)} ago",
        "stopped": f"stopped {duration(ago)} ago",
    }
    lines = [
        f"process {pulse.pid} on {pulse.host}, {states[pulse.state]}",
        f"cells: {_counts(pulse.cells)}" + f"; trainings: {_counts(pulse.trainings)}",
    ]
    if pulse.going:
        speed = "" if pulse.cells_per_minute is None else f"{pulse.cells_per_minute:g} cells/min, "
        left = "not known yet" if pulse.left_s is None else f"about {duration(pulse.left_s)}"
        busy = collections.Counter(d.where for d in pulse.running)
        where = ", ".join(f"{n} on {name}" for name, n in sorted(busy.items())) or "none"
        lines.append(
            f"{speed}time left: {left}; {len(pulse.running)} of {pulse.n_slots} slots: {where}"
            + (f"; {pulse.tried_again} tried again" if pulse.tried_again else "")
        )
    for doing in pulse.running:
        done = "     " if doing.fraction is None else f"{100 * doing.fraction:4.0f}%"
        title = ("train " if doing.kind == "training" else "") + doing.title
        took = duration(now - doing.since)
        lines.append(f"  {done} {took:>8} {doing.where:<6} {title[:70]}  {doing.text}")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def _stale(shelf: Shelf, job: Job) -> list[str]:
    """What changed since the newest record of this cell under another key."""
    from medbench.plan import differences

    newest = shelf.newest(job.slug, but=job.key)
    if newest is None:
        return []
    changed = differences(newest.ingredients(), job.ingredients)
    return [c for c in changed if not c.startswith("training:")] or changed
