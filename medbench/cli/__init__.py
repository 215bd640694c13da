"""The command line: parse, call, print. Commands are imported when they are used."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from medbench import __version__
from medbench.errors import MedbenchError, did_you_mean

# Command: (module, help line). The module is imported only for the command that runs.
_COMMANDS = {
    "run": ("medbench.cli.run", "Run a suite: what is missing of it, resuming where it stopped."),
    "leaderboard": ("medbench.cli.board", "Show a leaderboard from the records of runs."),
    "retry": ("medbench.cli.run", "Run again what failed of a run."),
    "status": ("medbench.cli.status", "Say what a run has done, and what is missing or stale."),
    "explain": ("medbench.cli.explain", "Say in words what a cell is and what was measured."),
    "compare": ("medbench.cli.compare", "Compare two algorithms on the episodes they share."),
    "board": ("medbench.cli.publish", "Publish leaderboards: make, add records, build, check."),
    "export": ("medbench.cli.export", "Write records as one tidy Parquet or CSV table."),
    "reproduce": ("medbench.cli.rerun", "Run the cell of a record again and compare."),
    "verify": ("medbench.cli.rerun", "Run a random sample of recorded episodes again."),
    "gate": (
        "medbench.cli.gate",
        "Fail when a run is less accurate, slower or hungrier than before.",
    ),
    "bench": ("medbench.cli.bench", "Measure this code and another version of it in turns."),
    "history": ("medbench.cli.history", "Find when scores and times changed, over many runs."),
    "list": ("medbench.cli.show", "List datasets, backbones, algorithms, protocols or suites."),
    "info": ("medbench.cli.show", "Show all about one of them: parameters, traits, citation."),
    "plugins": ("medbench.cli.show", "List plugin distributions, and why one was left out."),
    "new": ("medbench.cli.new", "Write a new plugin: a distribution that works as it is."),
    "check": ("medbench.cli.check", "Check that a plugin behaves as medbench relies on."),
    "data": ("medbench.cli.data", "List, download or check data."),
    "doctor": ("medbench.cli.doctor", "Check this installation: versions, devices, data, plugins."),
}


class _Lazy(click.Group):
    """A group that imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"No command {args[0]!r}.{did_you_mean(args[0], _COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The help lines stand here so that --help imports no command.
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Data are looked for in the folder that MEDBENCH_DATA names. MEDBENCH_PLUGINS chooses "
    "which plugin distributions load, MEDBENCH_TRACE=1 prints hook calls, MEDBENCH_CACHE moves the "
    "cache.",
)
@click.version_option(__version__, prog_name="medbench")
def cli() -> None:
    """Benchmark few-shot and meta-learning on medical images.

    \b
    A first leaderboard, offline, in under three minutes:
      medbench run quickstart
      medbench leaderboard runs/quickstart
    \b
    On real images:
      export MEDBENCH_DATA=/folder/of/data
      medbench run medmnist-cross --out runs/cross
      medbench leaderboard runs/cross
    """


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: every expected error is one message on standard error and an exit code."""
    if arguments is None:  # this process is ours
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _main(arguments)
    except KeyboardInterrupt:
        if arguments is None:
            _leaving()
        click.echo("medbench: stopped.", err=True)
        sys.exit(130)


def _main(arguments: list[str] | None) -> None:
    try:
        code = cli.main(args=arguments, prog_name="medbench", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        raise KeyboardInterrupt from None
    except MedbenchError as error:
        if error.exit_code == 130 and arguments is None:
            _leaving()
        click.echo(f"medbench: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe went away (| head); nothing is wrong here.
        sys.stderr.close()
        sys.exit(0)


def _leaving() -> None:
    # Everything is put away by now: a signal more would only show where Python was on its way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
