"""``medbench run`` and ``medbench retry``."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.cli.complete import suites
from medbench.cli.engine import EngineOptions, engine_options
from medbench.cli.plans import count, make_plan
from medbench.errors import FAILURES, UsageError

if TYPE_CHECKING:
    from medbench.config import Suite
    from medbench.engine.coordinator import Outcome
    from medbench.plan import Plan


@click.command("run")
@click.argument("suite", shell_complete=suites)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [runs/SUITE].")
@click.option("--only", multiple=True, metavar="TEXT", help="Cells whose title holds TEXT (glob).")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the suite.")
@click.option("--dry-run", is_flag=True, help="Print the trainings and cells, and run nothing.")
@click.option("--retry-failed", is_flag=True, help="Run cells again that failed before.")
@engine_options
def run_command(
    suite: str,
    out: Path | None,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    retry_failed: bool,
    engine: EngineOptions,
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
      medbench run medmnist-cross --gpus 0,1,2 --jobs-per-gpu 2
    """
    from medbench.config import load_suite
    from medbench.plugins import registry

    found = registry()
    loaded, values = load_suite(suite, found, settings)
    for fault in found.faults:
        engine.say(f"plugin left out: {fault}")
    plan = _select(make_plan(loaded, engine.device_type, engine.quiet), only)
    for text in plan.left_out:
        engine.say(f"{text}. ('medbench data get NAME' downloads a dataset.)")
    out = out or Path("runs") / loaded.name
    if dry_run:
        _print_plan(plan, out)
        return 0
    _same_suite(out, loaded.name)
    return _run(loaded, values, plan, out, engine, FAILURES if retry_failed else ())


@click.command("retry")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="All cells that failed: the default.")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(FAILURES), help="Only these failures."
)
@click.option("--only", multiple=True, metavar="TEXT", help="Cells whose title holds TEXT (glob).")
@engine_options
def retry_command(
    folder: Path,
    failed: bool,
    statuses: tuple[str, ...],
    only: tuple[str, ...],
    engine: EngineOptions,
) -> int:
    """Run again what failed of the run in FOLDER, and what is missing.

    A training goes on from its checkpoint. Exits as 'medbench run' does.

    \b
    Examples:
      medbench retry --failed runs/quickstart
      medbench retry runs/cross --status oom --status timeout --memory 12GiB
    """
    from medbench.config import load_suite
    from medbench.plugins import registry

    if failed and statuses:
        raise UsageError("--failed means all failures, and --status names some: give one of them.")
    path = suite_of(folder)
    loaded, values = load_suite(str(path), registry())
    plan = _select(make_plan(loaded, engine.device_type, engine.quiet), only)
    return _run(loaded, values, plan, folder, engine, statuses or FAILURES)


def suite_of(folder: Path) -> Path:
    """The suite file that a run left in its output folder. Raises `UsageError`."""
    from medbench.bundled import bundled_suites

    path = folder / "suite.yaml"
    if not path.is_file():
        raise UsageError(
            f"{folder} is not the output folder of a run: it has no suite.yaml. "
            f"Suites to run: {', '.join(bundled_suites())}."
        )
    return path


def _run(
    suite: Suite,
    values: Any,
    plan: Plan,
    out: Path,
    engine: EngineOptions,
    retry: Collection[str],
) -> int:
    # The libraries below take longer to import than `--help` takes.
    import yaml

    from medbench.cli.screen import Screen
    from medbench.engine.coordinator import run_plan
    from medbench.engine.executor import Interrupted
    from medbench.plugins import registry

    started = time.monotonic()
    screen = Screen(plan, engine.quiet)
    try:
        with screen:
            outcome = run_plan(
                plan,
                registry(),
                out,
                engine.executor(suite, out),
                suite_text=yaml.safe_dump(values, sort_keys=False),
                retries=engine.retries,
                retry=retry,
                watch=screen.watch,
            )
    except Interrupted as stop:
        raise Interrupted(
            f"{stop} Everything finished is kept in {out}; the same command goes on from there."
        ) from None
    return _conclude(outcome, out, time.monotonic() - started, engine)


def _conclude(outcome: Outcome, out: Path, seconds: float, engine: EngineOptions) -> int:
    parts = [f"{count(outcome.measured, 'cell')} measured"]
    if outcome.kept:
        parts.append(f"{outcome.kept} kept from before")
    if outcome.failed:
        parts.append(f"{outcome.failed} failed")
    if outcome.kept_failed:
        parts.append(
            f"{outcome.kept_failed} failed before ('medbench retry {out}' runs them again)"
        )
    engine.say(f"{', '.join(parts)}, {count(outcome.trainings, 'training')}, {seconds:.0f} s.")
    for text in outcome.plugin_faults:
        engine.say(f"plugin: {text}")
    engine.say(f"See 'medbench leaderboard {out}'.")
    if outcome.measured + outcome.kept == 0:
        return 3
    return 1 if outcome.failed or outcome.kept_failed else 0


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
    lines = [f"{count(len(plan.trainings), 'training')}:"]
    for job in plan.trainings:
        state = training_state(Folders(out), job)[0]
        lines.append(f"  {state:<8} {job.key[:12]}  {job.title}")
    lines.append(f"{count(len(plan.cells), 'cell')}:")
    for state, job in zip(states, plan.cells, strict=True):
        lines.append(f"  {state:<8} {job.key[:12]}  {job.title}")
    counts = collections.Counter(states)
    click.echo("\n".join([*lines, ", ".join(f"{n} {state}" for state, n in counts.items())]))
