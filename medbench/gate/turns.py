"""Runs a suite with two versions in turns (A B, B A, A B, ...), a round of records each time.

The order alternates so that a machine that slows down steadily slows both by the same amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.errors import MedbenchError, UsageError
from medbench.files import write_json
from medbench.gate.reading import ROUNDS
from medbench.gate.versions import (
    Version,
    export_commit,
    export_working_tree,
    in_environment,
    on_path,
    repository,
    same_project,
)
from medbench.records import PLAN_FILE

# What `medbench run` exits with when it did its work, failed cells or not.
_RAN = (0, 1, 3)


class RoundFailed(MedbenchError):
    """A version could not run the suite at all."""


@dataclass(frozen=True)
class Turns:
    """What to measure, and how often."""

    suite: str
    out: Path
    rounds: int
    options: tuple[str, ...] = ()


def prepare(
    here: Path, ref: str, out: Path, environments: str, paths: Sequence[str] = ()
) -> tuple[Version, Version]:
    """Both versions below `out`: `ref`, and the repository's files as they are now.

    `environments`: ``path`` (this one), ``venv`` (one each), or ``auto``.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; 'medbench bench' wants a folder of its own.")
    top = repository(here)
    sources = {name: out / "sources" / name for name in ("baseline", "current")}
    commits = {
        "baseline": export_commit(top, ref, sources["baseline"]),
        "current": export_working_tree(top, sources["current"]),
    }
    if environments == "auto":
        environments = "path" if same_project(*sources.values()) else "venv"
    made = []
    for name, source in sources.items():
        if environments == "path":
            made.append(on_path(name, source.resolve(), commits[name], paths))
        else:
            folder = (out / "environments" / name).resolve()
            made.append(in_environment(name, source.resolve(), commits[name], folder))
    write_json(
        out / "bench.json",
        {
            "against": ref,
            "environments": environments,
            "commits": commits,
        },
    )
    return made[0], made[1]


def take_turns(
    versions: tuple[Version, Version], turns: Turns, tell: Callable[[str], None]
) -> None:
    """Leave `turns.rounds` rounds of records of each version below ``out/NAME/rounds``.

    Raises `RoundFailed` when a version cannot run the suite.
    """
    for i in range(turns.rounds):
        order = versions if i % 2 == 0 else versions[::-1]
        for version in order:
            tell(f"round {i + 1}/{turns.rounds}: {version.name} ({version.commit[:12]})")
            _round(version, turns, i + 1)


def _round(version: Version, turns: Turns, number: int) -> None:
    folder = (turns.out / version.name).resolve()
    arguments = ["run", turns.suite, "--out", str(folder), "--workers", "1", "-q"]
    done = version.run(["-m", "medbench", *arguments, *turns.options])
    records = folder / "records"
    if done.returncode not in _RAN or not records.is_dir():
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise RoundFailed(f"{version.name} ({version.commit[:12]}) cannot run the suite:\n{tail}")
    # Trainings and features stay where they are; only what is measured is measured again.
    place = folder / ROUNDS / f"{number:03d}"
    place.mkdir(parents=True)
    records.replace(place / "records")
    (folder / PLAN_FILE).replace(place / PLAN_FILE)
