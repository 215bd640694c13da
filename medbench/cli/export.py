"""``medbench export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click


@click.command("export")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A name with .parquet or .csv."
)
@click.option(
    "--of",
    type=click.Choice(("episodes", "cells")),
    default="episodes",
    show_default=True,
    help="A line for each episode of each cell, or for each cell with its costs.",
)
def export_command(folders: tuple[Path, ...], out: Path, of: str) -> None:
    """Write the records in FOLDERS as one tidy table, for an analysis of your own.

    \b
    Examples:
      medbench export runs/quickstart --out episodes.parquet
      medbench export leaderboards/sites --of cells --out cells.csv
    """
    from medbench.leaderboard.export import export

    n = export(folders, out, cast("Literal['episodes', 'cells']", of))
    click.echo(f"{n} lines in {out}")
