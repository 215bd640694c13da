"""``medbench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from medbench.leaderboard.names import FORMATS, METRICS


@click.command("leaderboard")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--metric", type=click.Choice(METRICS), default="accuracy", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
def leaderboard_command(folders: tuple[Path, ...], form: str, metric: str, out: Path | None) -> int:
    """Show a leaderboard from the records in FOLDERS (outputs of runs).

    Exits with 0, or with 3 when no cell in them was measured.

    \b
    Examples:
      medbench leaderboard runs/quickstart
      medbench leaderboard runs/a runs/b --format md --out LEADERBOARD.md
      medbench leaderboard runs/quickstart --metric auroc --format csv
    """
    # The libraries below take longer to import than `--help` takes.
    from medbench.files import write_bytes
    from medbench.leaderboard.render import render
    from medbench.leaderboard.table import build_board
    from medbench.shelf import Interval, find_briefs

    briefs, shelves = find_briefs(folders)
    known = {k: v for shelf in shelves for k, v in shelf.intervals.get(metric, {}).items()}
    used: dict[str, Interval] = {}
    board = build_board(briefs, metric, known, used)
    for shelf in shelves:
        shelf.intervals[metric] = used
        shelf.save()
    text = render(board, form).rstrip("\n")
    if out is not None:
        write_bytes(out, (text + "\n").encode())
    else:
        click.echo(text)
    return 0 if any(b.ok for b in briefs) else 3
