"""``medbench new``: the distribution of a plugin, ready to be installed and changed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from medbench.plugins import registry
from medbench.scaffold import KINDS, VARIANTS, Kind, run_line, scaffold


@click.command("new")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make [./PREFIX-NAME].")
@click.option(
    "--with",
    "variant",
    type=click.Choice(sorted({v for known in VARIANTS.values() for v in known})),
    help="meta-train: an algorithm with a training of its own; masks: an algorithm or data set for "
    "segmentation.",
)
def new_command(kind: str, name: str, out: Path | None, variant: str | None) -> None:
    """Write a new plugin that works as it is: KIND is algorithm, backbone, dataset or protocol.

    NAME is PREFIX/NAME, such as acme/nearest. The folder holds an installable distribution with its
    entry point, a minimal plugin, tests of its behaviour, a README and a workflow for CI. Nothing
    that exists is written over.

    \b
    Examples:
      medbench new algorithm acme/nearest
      medbench new algorithm acme/prototypes --with meta-train
      medbench new dataset clinic/smears --out plugins/smears
    \b
    Then, in the new folder:
      pip install -e '.[test]'
      medbench check acme/nearest
    """
    which = cast(Kind, kind)
    written = scaffold(which, name, registry(), out, variant)
    folder = out or Path(name.replace("/", "-"))
    for path in written:
        click.echo(path)
    click.echo(
        f"\nNext:\n  cd {folder}\n  pip install -e '.[test]'\n  medbench check {name}\n"
        f"  {run_line(which, name, variant)}"
    )
