"""``medbench check``: whether plugins behave as the core relies on."""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.cli.complete import plugin_names
from medbench.errors import UsageError
from medbench.plugins import KINDS, registry

if TYPE_CHECKING:
    from medbench.conformance.check import Result, Status
    from medbench.conformance.subject import Subject

_COLOURS = {"failed": "red", "unneeded": "red", "excused": "yellow"}


@click.command("check")
@click.argument("names", nargs=-1, shell_complete=plugin_names)
@click.option("--only", multiple=True, metavar="ID", help="Run this check alone (repeatable).")
@click.option("--list", "show", is_flag=True, help="List the checks, and run none.")
@click.option("--all", "everything", is_flag=True, help="Check every plugin that is installed.")
@click.option("--kind", type=click.Choice([*KINDS]), help="Plugins of this kind alone.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Set a parameter.")
@click.option("-v", "--verbose", is_flag=True, help="Show passing checks and their times, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(
    names: tuple[str, ...],
    only: tuple[str, ...],
    show: bool,
    everything: bool,
    kind: str | None,
    params: tuple[str, ...],
    verbose: bool,
    as_json: bool,
) -> int:
    """Check the behaviour of plugins: registered NAMES, or MODULE:FACTORY of code not installed.

    Algorithms are trained for seconds on tiny images: stripes, and striped discs where they answer
    with masks or boxes. Every failure says what was seen, why
    it matters and how it is usually mended. Exits with 0 when all is well, 1 when a check fails, 2
    for a wrong name.

    \b
    Examples:
      medbench check acme/nearest
      medbench check acme_medbench.nearest:Nearest
      medbench check acme/nearest --only one-shot --only batched
      medbench check timm:resnet18 npz:mine.npz
      medbench check --list --kind datasets
      medbench check --all --kind algorithms
    """
    if show:
        _list(kind, as_json)
        return 0
    if bool(names) == everything:
        raise UsageError("Give the NAMES of plugins, or --all. 'medbench list' has the names.")
    from medbench.cli.data import parse_params
    from medbench.conformance.check import pick
    from medbench.conformance.subject import find_subjects
    from medbench.conformance.suite import checks_of, examine

    # Code that is being written lies where the author stands.
    sys.path.insert(0, str(Path.cwd()))
    given = parse_params(params)
    if everything:
        names = tuple(_installed(kind))
    subjects = [s for name in names for s in find_subjects(registry(), name, given)]
    if kind:
        subjects = [s for s in subjects if s.kind == kind]
    if not subjects:
        raise UsageError(f"None of {', '.join(names) or 'the plugins'} is of kind {kind}.")
    found = []
    for subject in subjects:
        examination = examine(subject)
        checks = pick(checks_of(subject.kind), only)
        results = [examination.result(check.id) for check in checks]
        found.append((subject, results))
        if not as_json:
            _tell(subject, results, verbose=verbose)
    if as_json:
        click.echo(json.dumps([_row(s, r) for s, r in found], indent=1))
    elif len(found) > 1:
        bad = [s.shown for s, results in found if any(r.bad for r in results)]
        click.echo(f"{len(found)} plugins checked, {len(bad)} with failures{_names(bad)}.")
    return 1 if any(r.bad for _, results in found for r in results) else 0


def _names(bad: Sequence[str]) -> str:
    return f": {', '.join(bad)}" if bad else ""


def _installed(kind: str | None) -> Iterator[str]:
    """Names of all plugins that can be checked without an argument of the user's."""
    names = []
    for k, table in registry().entries.items():
        if kind in (None, k):
            names += [n for n, e in table.items() if not getattr(e.spec, "takes_argument", "")]
    # One name may be of two kinds.
    yield from dict.fromkeys(names)


def _list(kind: str | None, as_json: bool) -> None:
    from medbench.conformance.suite import checks_of

    rows = [
        {"kind": k, "check": c.id, "reason": c.reason, "hint": c.hint, "needs": list(c.needs)}
        for k in ([kind] if kind else KINDS)
        for c in checks_of(k).values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    shown = None
    width = max(len(str(r["check"])) for r in rows)
    for row in rows:
        if row["kind"] != shown:
            shown = row["kind"]
            click.echo(f"{shown}:")
        click.echo(f"  {row['check']:<{width}}  {row['reason']}")


def _tell(subject: Subject, results: Sequence[Result], *, verbose: bool) -> None:
    kind, origin = subject.kind[:-1], subject.entry.origin()
    click.secho(f"{kind} {subject.shown} ({origin})", bold=True)
    width = max(len(r.check.id) for r in results)
    for r in results:
        if r.bad:
            head, *rest = r.message().splitlines()
            click.secho(f"  {r.status:<15} {head}", fg="red")
            for line in rest:
                click.echo(f"  {'':<15} {line}")
        elif verbose or r.status == "excused":
            time = f"{1000 * r.seconds:6.0f} ms  " if verbose else ""
            text = f"  {r.status:<15} {time}{r.check.id:<{width}}  {r.text}".rstrip()
            click.secho(text, fg=_COLOURS.get(r.status))
    counts = collections.Counter(r.status for r in results)
    order: tuple[Status, ...] = (
        "ok",
        "failed",
        "unneeded",
        "excused",
        "blocked",
        "does not apply",
    )
    words = [f"{counts[s]} {s}" for s in order if counts[s]]
    click.echo(f"  {', '.join(words)} ({sum(r.seconds for r in results):.1f} s)")


def _row(subject: Subject, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "kind": subject.kind[:-1],
        "name": subject.name,
        **({"task_kind": subject.task_kind} if subject.kind == "algorithms" else {}),
        "origin": subject.entry.origin(),
        "ok": not any(r.bad for r in results),
        "checks": [
            {
                "check": r.check.id,
                "status": r.status,
                "text": r.text,
                "reason": r.check.reason,
                "hint": r.hint,
                "seconds": round(r.seconds, 3),
            }
            for r in results
        ],
    }
