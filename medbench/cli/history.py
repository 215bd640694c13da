"""``medbench history``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

_SPARK = 40


@click.command("history")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), help="Write a page with plots."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--thresholds", type=click.Path(path_type=Path), help="As for 'medbench gate'.")
@click.option("--all", "everything", is_flag=True, help="Also list series without a step.")
def history_command(
    runs: tuple[Path, ...],
    html_file: Path | None,
    as_json: bool,
    thresholds: Path | None,
    everything: bool,
) -> int:
    """Find when scores, times and memory of each cell changed, over RUNS in order of time.

    Each of RUNS is the output folder of a run or a file that 'medbench gate --update' wrote: keep
    one such file for every commit. A step needs three runs on each side.

    \b
    Examples:
      medbench history runs/*
      medbench history measurements/*.json --html history.html
    """
    # The libraries below take longer to import than `--help` takes.
    from medbench.files import write_bytes
    from medbench.gate.history import build_history
    from medbench.gate.history_page import page, shown, shown_change, spark
    from medbench.gate.reading import read_side
    from medbench.gate.reports.words import METRICS
    from medbench.gate.thresholds import load_thresholds

    rules = load_thresholds(thresholds)
    sides = [read_side(path, rules.accuracy.metric) for path in dict.fromkeys(runs)]
    history = build_history(sides, rules)
    if html_file is not None:
        write_bytes(html_file, page(history).encode())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(history), indent=1, allow_nan=False))
        return 0
    lines = [f"{len(history.runs)} runs, {len(history.series)} series"]
    lines += [f"note: {text}" for text in history.notices]
    for series, step in history.stepped:
        before, after = series.before_after(step)
        word = "WORSE " if series.worse(step) else "better"
        run = series.runs[step.at]
        lines.append(
            f"{word}  {history.created[run][:16]}  {history.runs[run]}  {series.title}  "
            f"{METRICS.get(series.metric, series.metric)}: {shown(series, before)} -> "
            f"{shown(series, after)}, {shown_change(series, series.change(step))}"
        )
        lines.append(f"        {spark(series.values[-_SPARK:])}")
    if not history.stepped:
        lines.append("No step was found.")
    for series in history.series if everything else ():
        if not series.steps:
            name = METRICS.get(series.metric, series.metric)
            lines.append(f"level   {series.title}  {name}  {spark(series.values[-_SPARK:])}")
    click.echo("\n".join(lines))
    return 0
