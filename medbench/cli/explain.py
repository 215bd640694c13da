"""``medbench explain``: one cell in words."""

from __future__ import annotations

from pathlib import Path

import click

from medbench.errors import UsageError

_SHOWN = 8


@click.command("explain")
@click.argument("where", type=click.Path(path_type=Path), metavar="CELL")
@click.argument("text", required=False)
def explain_command(where: Path, text: str | None) -> None:
    """Say in words what a cell is, where its data come from, and what was measured.

    CELL is the JSON file of a record, or the folder of a run; then TEXT tells which of its cells:
    words that its file name holds, in any order, or the beginning of its key.

    \b
    Examples:
      medbench explain runs/quickstart/records/NAME.json
      medbench explain runs/quickstart '5w1s conv4-32 protonet'
      medbench explain leaderboards/omniglot dd21d10fa019
    """
    from medbench.explain import explain
    from medbench.records import find_records, read_record, slug

    if where.is_file():
        if text is not None:
            raise UsageError(f"{where} is one record; TEXT is for folders.")
        click.echo(explain(read_record(where)), nl=False)
        return
    records = find_records([where])
    named = {record.stem: record for record in records}
    # File names have dashes where titles have other characters.
    words = [slug(word, limit=None).lower() for word in (text or "").split()]
    found = [
        record
        for stem, record in named.items()
        if all(word in stem.lower() for word in words) or record.key.startswith(text or "")
    ]
    if not found:
        raise UsageError(
            f"{where} has no cell that matches {text!r}. Its {len(named)} records are such as "
            f"{next(iter(named))}."
        )
    if len(found) > 1:
        listed = "\n".join(f"  {record.stem}" for record in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        matches = f"{text!r} matches {len(found)}" if text else f"there are {len(found)}"
        raise UsageError(f"Say which cell of {where} is meant; {matches}:\n{listed}{more}")
    click.echo(explain(found[0]), nl=False)
