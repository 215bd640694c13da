"""``medbench gate``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from medbench.errors import UsageError


@click.command("gate")
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("current", type=click.Path(path_type=Path))
@click.option("--update", is_flag=True, help="Write CURRENT to the file BASELINE and stop.")
@click.option(
    "--thresholds", type=click.Path(path_type=Path), help="YAML with what counts as worse."
)
@click.option("--all", "everything", is_flag=True, help="Also list what is equivalent.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a pull-request comment.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write JSON.")
@click.option(
    "--github",
    is_flag=True,
    help="Print GitHub Actions annotations, and add to the job summary. [in Actions: on]",
)
def gate_command(
    baseline: Path,
    current: Path,
    update: bool,
    thresholds: Path | None,
    everything: bool,
    markdown: Path | None,
    junit: Path | None,
    json_file: Path | None,
    github: bool,
) -> int:
    """Fail when CURRENT is less accurate, slower or hungrier than BASELINE, and only then.

    Each is the output folder of a run; BASELINE may be a file that --update wrote. Exits with
    0 when nothing got worse, 1 for a regression or cells that failed or are missing, 2 for wrong
    usage or damaged files, 3 when nothing could be compared.

    \b
    Examples:
      medbench run my-suite.yaml --out runs/new --workers 1
      medbench gate baseline.json runs/new --update
      medbench gate baseline.json runs/new
      medbench gate runs/old runs/new --thresholds gate.yaml --markdown comment.md
    """
    # The libraries below take longer to import than `--help` takes.
    from medbench.gate.baseline import commit_here, write_baseline
    from medbench.gate.chance import near_chance
    from medbench.gate.judge import judge
    from medbench.gate.reading import read_side
    from medbench.gate.thresholds import load_thresholds

    rules = load_thresholds(thresholds)
    after = read_side(current, rules.accuracy.metric)
    if update:
        if baseline.is_dir():
            raise UsageError(f"{baseline} is a folder; --update writes a file, such as gate.json.")
        write_baseline(baseline, after, commit_here())
        n = len(after.cells)
        click.echo(f"{baseline}: {n} {'cell' if n == 1 else 'cells'} of {current}.")
        at_chance = near_chance(list(after.cells.values()), rules.accuracy.metric)
        if at_chance:
            click.echo(f"note: {at_chance}", err=True)
        return 0
    if not baseline.exists():
        raise UsageError(
            f"There is no baseline {baseline}. Write it once with 'medbench gate {baseline} "
            f"{current} --update', where the code is as it should be, and commit it."
        )
    if baseline.resolve() == current.resolve():
        raise UsageError(f"BASELINE and CURRENT are both {current}: nothing would ever differ.")
    outcome = judge(read_side(baseline, rules.accuracy.metric), after, rules)
    return deliver(
        outcome,
        everything=everything,
        markdown=markdown,
        junit=junit,
        json_file=json_file,
        github=github or os.environ.get("GITHUB_ACTIONS") == "true",
    )


def deliver(
    outcome: object,
    *,
    everything: bool = False,
    markdown: Path | None = None,
    junit: Path | None = None,
    json_file: Path | None = None,
    github: bool = False,
) -> int:
    """Print an outcome, write the reports that were asked for, and return its exit code."""
    from medbench.files import write_bytes
    from medbench.gate.reports import machines, table
    from medbench.gate.verdicts import Outcome

    assert isinstance(outcome, Outcome)
    click.echo(table.terminal(outcome, everything=everything))
    if github:
        click.echo(machines.workflow_commands(outcome))
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(table.markdown(outcome))
    for path, make in (
        (markdown, table.markdown),
        (junit, machines.junit),
        (json_file, machines.as_json),
    ):
        if path is not None:
            write_bytes(path, make(outcome).encode())
    return outcome.exit_code
