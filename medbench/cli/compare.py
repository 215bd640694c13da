"""``medbench compare``."""

from __future__ import annotations

from pathlib import Path

import click

from medbench.leaderboard.names import MATTERS, METRICS


@click.command("compare")
@click.argument("first")
@click.argument("second")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--backbone", help="Of both rows, where the records have several.")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="By what to rank [the main one of the task kind: accuracy, dice, ap50].",
)
@click.option(
    "--matters",
    type=click.FloatRange(0, min_open=True),
    default=MATTERS,
    show_default=True,
    help="The smallest difference that matters; also the region that counts as equal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(
    first: str,
    second: str,
    folders: tuple[Path, ...],
    backbone: str | None,
    metric: str | None,
    matters: float,
    as_json: bool,
) -> None:
    """Compare two algorithms on the episodes they share, from the records in FOLDERS.

    FIRST and SECOND are names as tables print them, or NAME/BACKBONE written NAME@BACKBONE. For
    each target: the difference with its 95 % interval, the p of the paired test (corrected by
    Holm's method for the targets shown), and what may be said given the smallest difference that
    matters. Over targets also the Bayesian signed-rank test.

    \b
    Examples:
      medbench compare protonet simpleshot leaderboards/sites --matters 0.02
      medbench compare protonet@conv4 protonet@resnet12 runs/mine
    """
    import dataclasses
    import json

    from medbench.leaderboard.pairs import compare_rows
    from medbench.leaderboard.pairs import table as pairs_table

    found = compare_rows(folders, first, second, backbone, metric, matters)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False))
    else:
        click.echo(pairs_table(found))
