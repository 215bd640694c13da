"""``medbench bench``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bench")
@click.argument("suite")
@click.option(
    "--against", required=True, metavar="REF", help="Commit, tag or branch to compare with."
)
@click.option("--rounds", type=click.IntRange(2), default=10, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True
)
@click.option(
    "--environments",
    type=click.Choice(["auto", "path", "venv"]),
    default="auto",
    show_default=True,
    help="This environment with another import path, or a virtual environment for each. auto: "
    "the first, unless both declare other dependencies or entry points.",
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="DIR",
    help="Folder to import from, in the repository.",
)
@click.option("--only", multiple=True, metavar="TEXT", help="Cells whose title holds TEXT (glob).")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the suite.")
@click.option("--device", default="auto", show_default=True, metavar="NAME")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--thresholds", type=click.Path(path_type=Path), help="As for 'medbench gate'.")
@click.option("--all", "everything", is_flag=True, help="Also list what is equivalent.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a pull-request comment.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write JSON.")
@click.option("--github", is_flag=True, help="Print GitHub Actions annotations.")
def bench_command(
    suite: str,
    against: str,
    rounds: int,
    out: Path,
    environments: str,
    paths: tuple[str, ...],
    only: tuple[str, ...],
    settings: tuple[str, ...],
    device: str,
    threads: int,
    thresholds: Path | None,
    everything: bool,
    markdown: Path | None,
    junit: Path | None,
    json_file: Path | None,
    github: bool,
) -> int:
    """Run SUITE with the git repository here and with REF of it in turns, and compare them.

    Both run on this machine, A B, B A, A B and so on, so that its drift cancels: this tells
    changes that two runs at different times cannot. Exits as 'medbench gate' does.

    \b
    Examples:
      medbench bench my-suite.yaml --against main
      medbench bench quickstart --against v1.2 --only protonet --rounds 20
    """
    import os

    from medbench.cli.gate import deliver
    from medbench.gate.judge import judge
    from medbench.gate.reading import read_side
    from medbench.gate.thresholds import load_thresholds
    from medbench.gate.turns import Turns, prepare, take_turns

    def tell(text: str) -> None:
        click.echo(text, err=True)

    rules = load_thresholds(thresholds)
    versions = prepare(Path.cwd(), against, out, environments, paths)
    options = ["--device", device, "--threads", str(threads)]
    for name, values in (("--only", only), ("--set", settings)):
        for value in values:
            options += [name, value]
    suite = str(Path(suite).resolve()) if Path(suite).is_file() else suite
    take_turns(versions, Turns(suite, out, rounds, tuple(options)), tell)
    sides = [read_side(out / v.name, rules.accuracy.metric) for v in versions]
    return deliver(
        judge(sides[0], sides[1], rules),
        everything=everything,
        markdown=markdown,
        junit=junit,
        json_file=json_file,
        github=github or os.environ.get("GITHUB_ACTIONS") == "true",
    )
