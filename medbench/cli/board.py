"""``medbench leaderboard``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from medbench.leaderboard.names import FORMATS, INTERVALS, MATTERS, METRICS

if TYPE_CHECKING:
    from medbench.leaderboard.model import Board
    from medbench.leaderboard.table import Method


@click.command("leaderboard")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="By what to rank [the main one of the task kind: accuracy, dice, ap50].",
)
@click.option(
    "--interval",
    type=click.Choice(INTERVALS),
    default="percentile",
    show_default=True,
    help="How intervals are made; bca corrects for skewed scores, for rows of one training seed; "
    "groups covers new patients too (new test images, where patients are not known), for accuracy.",
)
@click.option(
    "--matters",
    type=click.FloatRange(0, min_open=True),
    default=MATTERS,
    show_default=True,
    help="The smallest difference that matters, in the metric's unit (0.01: one point).",
)
@click.option("--time", type=click.FloatRange(0), help="Tell the best row within so many ms ...")
@click.option("--memory", type=click.FloatRange(0), help="... and so many MiB of adapting.")
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Whether a page shows query images with masks or boxes, where the records have them.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
def leaderboard_command(
    folders: tuple[Path, ...],
    form: str,
    metric: str | None,
    interval: str,
    matters: float,
    time: float | None,
    memory: float | None,
    pictures: bool,
    out: Path | None,
) -> int:
    """Show a leaderboard from the records in FOLDERS (outputs of runs).

    Exits with 0, or with 3 when no cell in them was measured.

    \b
    Examples:
      medbench leaderboard runs/quickstart
      medbench leaderboard runs/a runs/b --format md --out LEADERBOARD.md
      medbench leaderboard runs/quickstart --metric auroc --format csv
      medbench leaderboard runs/quickstart --format html --out board.html
      medbench leaderboard runs/quickstart --interval groups
      medbench leaderboard runs/quickstart --time 10 --memory 64
    """
    # The libraries below take longer to import than `--help` takes.
    from medbench.files import write_bytes
    from medbench.leaderboard.build import board_of
    from medbench.leaderboard.render import render

    board = board_of(folders, metric, cast("Method", interval), matters)
    if time is not None or memory is not None:
        board = _with_budget(board, time, memory)
    if form == "html":
        from medbench.leaderboard.page import page_text

        text = page_text(board, folders, pictures=pictures).rstrip("\n")
    else:
        text = render(board, form).rstrip("\n")
    if out is not None:
        write_bytes(out, (text + "\n").encode())
    else:
        click.echo(text)
    return 0 if any(r.n_ok for t in board.tables for r in t.rows) else 3


def _with_budget(board: Board, time: float | None, memory: float | None) -> Board:
    """The board with the best of every table within the budgets (ms, MiB) in place of a ladder."""
    from medbench.leaderboard.costs import best_within

    seconds = None if time is None else time / 1e3
    size = None if memory is None else memory * 2.0**20
    tables = tuple(
        dataclasses.replace(t, within=(best_within(t.rows, t.metric, seconds, size),))
        for t in board.tables
    )
    return dataclasses.replace(board, tables=tables)
