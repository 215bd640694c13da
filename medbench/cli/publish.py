"""``medbench board``: folders of published leaderboards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medbench.leaderboard.audit import Auditor
    from medbench.leaderboard.publish import Fault

_SHOWN = 50
_FORMS = ("json", "latex")
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("board")
def board_command() -> None:
    """Publish leaderboards: a folder with a suite, records, and the tables made from them.

    \b
    Examples:
      medbench board init leaderboards/mine --suite my-suite.yaml
      medbench board add leaderboards/mine runs/mine
      medbench board build leaderboards/mine
      medbench board check leaderboards/mine
    """


@board_command.command("init")
@FOLDER
@click.option("--suite", required=True, help="A bundled suite's name or a YAML file.")
def init_command(folder: Path, suite: str) -> int:
    """Make the FOLDER of a leaderboard for a suite.

    \b
    Examples:
      medbench board init leaderboards/mine --suite my-suite.yaml
      medbench board init leaderboards/sites --suite sites
    """
    from medbench.bundled import bundled_suites
    from medbench.config import load_suite
    from medbench.leaderboard.publish import init
    from medbench.plugins import registry

    load_suite(suite, registry())
    bundled = bundled_suites()
    init(folder, bundled[suite].encode() if suite in bundled else Path(suite).read_bytes())
    click.echo(f"{folder} is a board of suite {suite}. 'medbench board add {folder} RUN' fills it.")
    return 0


@board_command.command("add")
@FOLDER
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--pictures",
    is_flag=True,
    help="Take the records' pictures of answers along: they show images of the data, whose licence "
    "must let you publish them.",
)
def add_command(folder: Path, records: tuple[Path, ...], pictures: bool) -> int:
    """Check RECORDS (of a run, a folder of them, or files), copy them into FOLDER, and build it.

    A record is held against itself (schema, key, digest, complete episodes, scores and their
    summary, hardware, licences), the suite (protocol, version, episodes) and the records that are
    there (the same data and episodes). With any fault nothing is added, every fault is told, and
    the exit code is 1.

    \b
    Examples:
      medbench board add leaderboards/mine runs/mine
      medbench board add leaderboards/mine submission/records
      medbench board add leaderboards/mine runs/mine --pictures
    """
    from medbench.leaderboard.publish import add, build

    added, faults = add(folder, records, _auditor(folder), pictures=pictures)
    if faults:
        return _refused(faults, "nothing was added")
    build(folder)
    click.echo(f"{added.new} records added, {added.same} were there already; the tables are built.")
    if added.pictures_left:
        n = added.pictures_left
        click.echo(
            f"{n} {'pictures of answers were' if n > 1 else 'picture of answers was'} left out: "
            "images of the data. Where its licence lets you publish these, add again with "
            "--pictures."
        )
    return 0


@board_command.command("build")
@FOLDER
@click.option("--also", multiple=True, type=click.Choice(_FORMS), help="Write this form too.")
def build_command(folder: Path, also: tuple[str, ...]) -> int:
    """Make the tables of FOLDER from its records: the same bytes from the same records.

    \b
    Examples:
      medbench board build leaderboards/mine
      medbench board build leaderboards/mine --also json --also latex
    """
    from medbench.leaderboard.publish import build, require_board

    require_board(folder)
    changed = build(folder, also)
    click.echo(f"written: {', '.join(changed)}" if changed else "all tables were as they should be")
    return 0


@board_command.command("check")
@FOLDER
def check_command(folder: Path) -> int:
    """Say what is wrong with FOLDER: its records, or tables that are not what these make.

    Exits with 1 when anything is.

    \b
    Examples:
      medbench board check leaderboards/mine
    """
    from medbench.leaderboard.publish import check

    faults = check(folder, _auditor(folder))
    if faults:
        return _refused(faults, "the board is not as it should be")
    click.echo(f"{folder}: all records are sound, and the tables are what they make.")
    return 0


def _refused(faults: Sequence[Fault], what: str) -> int:
    lines = [f"{fault}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN} more")
    n = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    click.echo("\n".join([*lines, f"{n}: {what}."]), err=True)
    return 1


def _auditor(folder: Path) -> Auditor:
    """What the suite of a board asks of its records, with the versions of protocols that are here.

    A protocol whose plugin is not installed is not held to a version; its records still have to
    agree with one another.
    """
    from medbench.config import Suite
    from medbench.errors import UsageError
    from medbench.leaderboard.audit import Auditor, ProtocolRule
    from medbench.leaderboard.publish import require_board
    from medbench.plugins import registry
    from medbench.protocols import load_protocol
    from medbench.yamlfile import Document

    suite = Document.read(require_board(folder)).validate(Suite)
    rules = {}
    for ref in suite.protocols:
        version, episodes = None, ref.episodes
        try:
            protocol, _ = load_protocol(registry(), ref.name)
            version, episodes = protocol.version, ref.episodes or protocol.episodes
        except UsageError as error:
            click.echo(f"medbench: {error} Its version is not checked.", err=True)
        rules[ref.name] = ProtocolRule(version, episodes, ref.shots, ref.targets)
    return Auditor(rules, suite.non_commercial)
