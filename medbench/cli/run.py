"""``medbench run`` and ``medbench status``."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.errors import UsageError

if TYPE_CHECKING:
    from medbench.config import Suite
    from medbench.engine.local import Event, Outcome
    from medbench.jobs import Job
    from medbench.plan import Plan
    from medbench.shelf import Shelf

_TELL_EVERY_S = 30.0


@click.command("run")
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [runs/SUITE].")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.", metavar="NAME"
)
@click.option(
    "--workers", type=click.IntRange(1), help="Jobs at a time [cores / threads; 1 on a GPU]."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads a job. Scores may differ in the last digit between thread counts.",
)
@click.option(
    "--training-processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share a training, each with a GPU or --threads. Changes rounding only.",
    metavar="N",
)
@click.option("--only", multiple=True, metavar="TEXT", help="Cells whose title holds TEXT (glob).")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the suite.")
@click.option("--dry-run", is_flag=True, help="Print the trainings and cells, and run nothing.")
@click.option("--retry-failed", is_flag=True, help="Run cells again that failed before.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def run_command(
    suite: str,
    out: Path | None,
    device: str,
    workers: int | None,
    threads: int,
    training_processes: int,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    retry_failed: bool,
    quiet: bool,
) -> int:
    """Run SUITE, a bundled suite's name or a YAML file.

    What is already recorded in the output folder is not run again, so the same command goes on
    after a stop. Exits with 0 when all cells were measured, 1 when some failed, 3 when none was.

    \b
    Examples:
      medbench run quickstart
      medbench run omniglot --dry-run
      medbench run medmnist-cross --only retina --only breast --workers 2
      medbench run my-suite.yaml --set seeds=[0,1,2] --set budget.episodes=500
      medbench run quickstart --set algorithms.maml.params.inner_steps=3
    """
    # The libraries below take longer to import than `--help` takes.
    import yaml

    from medbench.config import load_suite
    from medbench.engine.local import Interrupted, run_plan
    from medbench.opened import default_place
    from medbench.plugins import registry

    found = registry()
    loaded, values = load_suite(suite, found, settings)
    device = _device(device)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    for fault in found.faults:
        say(f"plugin left out: {fault}")
    plan = _select(_plan(loaded, device, quiet), only)
    for text in plan.left_out:
        say(f"{text}. ('medbench data get NAME' downloads a dataset.)")
    out = out or Path("runs") / loaded.name
    if dry_run:
        _print_plan(plan, out)
        return 0
    _same_suite(out, loaded.name)
    cores = (os.cpu_count() or 1) // (threads * training_processes)
    workers = workers or (1 if device != "cpu" else max(1, cores))
    started = time.monotonic()
    screen = _Screen(plan, quiet)
    try:
        with screen:
            outcome = run_plan(
                plan,
                found,
                out,
                default_place(),
                suite_text=yaml.safe_dump(values, sort_keys=False),
                workers=workers,
                threads=threads,
                retry_failed=retry_failed,
                watch=screen.watch,
                training_processes=training_processes,
            )
    except Interrupted as stop:
        raise Interrupted(
            f"{stop} Everything finished is kept in {out}; the same command goes on from there."
        ) from None
    return _conclude(outcome, out, time.monotonic() - started, say)


def _conclude(outcome: Outcome, out: Path, seconds: float, say: Any) -> int:
    parts = [f"{_n(outcome.measured, 'cell')} measured"]
    if outcome.kept:
        parts.append(f"{outcome.kept} kept from before")
    if outcome.failed:
        parts.append(f"{outcome.failed} failed")
    if outcome.kept_failed:
        parts.append(f"{outcome.kept_failed} failed before (--retry-failed runs them again)")
    say(f"{', '.join(parts)}, {_n(outcome.trainings, 'training')}, {seconds:.0f} s.")
    for text in outcome.plugin_faults:
        say(f"plugin: {text}")
    say(f"See 'medbench leaderboard {out}'.")
    if outcome.measured + outcome.kept == 0:
        return 3
    return 1 if outcome.failed or outcome.kept_failed else 0


def _device(name: str) -> str:
    """The device's name as plan and records use it. Importing torch is avoided for the CPU."""
    if name == "cpu":
        return name
    if name == "auto" and not Path("/proc/driver/nvidia").exists() and os.name == "posix":
        return "cpu"
    from medbench.measure import pick_device

    return str(pick_device(name))


def _plan(suite: Suite, device: str, quiet: bool) -> Plan:
    from medbench.opened import default_place
    from medbench.plan import build_plan
    from medbench.plugins import registry

    place = default_place()
    if quiet:
        return build_plan(suite, registry(), place, device=device)
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("planning") as status:
        return build_plan(
            suite, registry(), place, device=device, tell=lambda text: status.update(text)
        )


def _select(plan: Plan, only: tuple[str, ...]) -> Plan:
    if not only:
        return plan
    cells = tuple(
        c
        for c in plan.cells
        if any(fnmatch.fnmatch(c.title.lower(), f"*{o.lower()}*") for o in only)
    )
    if not cells:
        raise UsageError(
            f"--only {' '.join(only)}: no cell matches. A cell's title is such as "
            f"{plan.cells[0].title!r}."
        )
    keys = {c.training_key for c in cells}
    return dataclasses.replace(
        plan, cells=cells, trainings=tuple(t for t in plan.trainings if t.key in keys)
    )


def _same_suite(out: Path, name: str) -> None:
    import yaml

    try:
        before = yaml.safe_load((out / "suite.yaml").read_text())["name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return
    if before != name:
        raise UsageError(
            f"{out} holds a run of suite {before!r}, and this is {name!r}. Choose another folder "
            "with --out."
        )


def _print_plan(plan: Plan, out: Path) -> None:
    from medbench.jobs import Folders, cell_states, training_state
    from medbench.shelf import Shelf

    shelf = Shelf(out)
    states = [state for state, _ in cell_states(shelf, plan.cells)]
    shelf.save()
    lines = [f"{_n(len(plan.trainings), 'training')}:"]
    for job in plan.trainings:
        state = training_state(Folders(out), job)[0]
        lines.append(f"  {state:<8} {job.key[:12]}  {job.title}")
    lines.append(f"{_n(len(plan.cells), 'cell')}:")
    for state, job in zip(states, plan.cells, strict=True):
        lines.append(f"  {state:<8} {job.key[:12]}  {job.title}")
    counts = collections.Counter(states)
    click.echo("\n".join([*lines, ", ".join(f"{n} {state}" for state, n in counts.items())]))


class _Screen:
    """Live progress on a terminal; a line for every finished job elsewhere."""

    def __init__(self, plan: Plan, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live = not quiet and self._console.is_terminal
        self._total = len(plan.trainings) + len(plan.cells)
        self._done = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._all = self._progress.add_task("all jobs", total=None, note="")
        self._tasks: dict[str, Any] = {}
        self._told = time.monotonic()

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def watch(self, event: Event) -> None:
        """Show one event."""
        job = event.job
        if event.kind == "started":
            self._tasks[job.key] = self._progress.add_task(_brief(job), total=1.0, note="starting")
        elif event.kind == "progress" and job.key in self._tasks:
            fraction = event.fraction if event.fraction >= 0 else None
            update: dict[str, Any] = {"note": event.text}
            if fraction is not None:
                update["completed"] = fraction
            self._progress.update(self._tasks[job.key], **update)
            # Where nothing moves on the screen, a line now and then tells that all is well.
            if not (self._live or self._quiet) and time.monotonic() - self._told > _TELL_EVERY_S:
                self._told = time.monotonic()
                self._console.print(
                    f"...         {_brief(job)}: {event.text}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
        elif event.kind == "finished":
            if job.key in self._tasks:
                self._progress.remove_task(self._tasks.pop(job.key))
            self._done += 1
            self._progress.update(self._all, note=f"{self._done} finished")
            if not self._quiet:
                self._line(event)

    def _line(self, event: Event) -> None:
        kind = "training" if event.job.kind == "training" else "cell"
        text = f"{event.status:<11} {event.seconds:6.1f} s  {kind} {event.job.title}"
        style = None if event.status == "ok" else "red"
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        if event.status != "ok":
            self._console.print(f"    {event.error}", style=style, markup=False, soft_wrap=True)


def _brief(job: Job) -> str:
    return ("train " if job.kind == "training" else "") + job.title[:60]


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--device", default="auto", show_default=True, metavar="NAME")
def status_command(folder: Path, as_json: bool, device: str) -> int:
    """Say what the run in FOLDER has done, what is missing, and what is stale and why.

    Exits with 0 when everything is measured, 1 when something is missing, stale or failed.
    """
    from medbench.bundled import bundled_suites
    from medbench.config import load_suite
    from medbench.jobs import Folders, cell_states, training_state
    from medbench.plugins import registry
    from medbench.shelf import Shelf

    path = folder / "suite.yaml"
    if not path.is_file():
        raise UsageError(
            f"{folder} is not the output folder of a run: it has no suite.yaml. "
            f"Suites to run: {', '.join(bundled_suites())}."
        )
    suite, _ = load_suite(str(path), registry())
    plan = _plan(suite, _device(device), quiet=True)
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
            f"suite {suite.name} in {folder}: {_n(len(rows), 'cell')}, "
            + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        ]
        if trainings:
            lines.append(
                f"{_n(len(plan.trainings), 'training')}, "
                + ", ".join(f"{n} {state}" for state, n in sorted(trainings.items()))
            )
        for row in rows:
            if row["state"] != "ok":
                lines.append(f"  {row['state']:<11} {row['title']}")
                told = [*row["changed"][:5], row["error"], row["log"]]
                lines += [f"      {text}" for text in told if text]
        # One write: a hundred thousand small ones take seconds.
        click.echo("\n".join(lines))
    return 0 if set(counts) <= {"ok"} else 1


def _stale(shelf: Shelf, job: Job) -> list[str]:
    """What changed since the newest record of this cell under another key."""
    from medbench.plan import differences

    newest = shelf.newest(job.slug, but=job.key)
    if newest is None:
        return []
    changed = differences(newest.ingredients(), job.ingredients)
    return [c for c in changed if not c.startswith("training:")] or changed


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
