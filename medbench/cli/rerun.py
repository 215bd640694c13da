"""``medbench reproduce`` and ``medbench verify``: cells run again from their records."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medbench.engine.coordinator import Event
    from medbench.records import Record
    from medbench.rerun import Rerun

_DEVICE = click.option(
    "--device", metavar="NAME", help="auto, cpu, cuda or cuda:N [what the record was made on]."
)
_THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads [the record's].")
_WEIGHTS = click.option("--weights", help="The file of the backbone's weights, where it had one.")
_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="Keep the run in this folder [a temporary one]."
)


@click.command("reproduce")
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.005,
    show_default=True,
    help="How far the mean accuracy (or main metric) may be off.",
)
@_DEVICE
@_THREADS
@_WEIGHTS
@_OUT
def reproduce_command(
    record: Path,
    tolerance: float,
    device: str | None,
    threads: int | None,
    weights: str | None,
    out: Path | None,
) -> int:
    """Run the cell of RECORD (its .json file) again, training included, and compare the scores.

    Exits with 1 when the mean accuracy is off by more than the tolerance, or the cell fails. On
    the same machine and versions every episode comes out the same; where a network is trained
    anew on another machine, rounding grows, and a larger tolerance may be due.

    \b
    Examples:
      medbench reproduce leaderboards/sites/records/NAME.json
      medbench reproduce NAME.json --tolerance 0.02 --device cpu
    """
    from medbench.records import read_record

    told = read_record(record)
    with _folder(out) as folder:
        found = _run(told, folder, device, threads, weights, None)
    for line in _report(found):
        click.echo(line)
    ok = found.agrees(tolerance)
    click.echo(
        f"reproduced: within {tolerance:g} of the record."
        if ok
        else f"not reproduced within {tolerance:g}."
    )
    return 0 if ok else 1


@click.command("verify")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="How many episodes to run again.",
)
@click.option("--cells", type=click.IntRange(1), help="Of at most so many cells [as many].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.02,
    show_default=True,
    help="How far a cell's mean accuracy over its drawn episodes may be off.",
)
@_DEVICE
@_THREADS
@_WEIGHTS
@_OUT
def verify_command(
    records: tuple[Path, ...],
    sample: int,
    cells: int | None,
    seed: int,
    tolerance: float,
    device: str | None,
    threads: int | None,
    weights: str | None,
    out: Path | None,
) -> int:
    """Run a random sample of episodes of RECORDS again, so that they need not be believed.

    RECORDS are .json files or folders of them. Each drawn cell is trained anew as its record says,
    and run as far as its drawn episodes reach. Exits with 1 when a cell fails or is off by more
    than the tolerance.

    \b
    Examples:
      medbench verify leaderboards/sites --sample 20 --cells 3
      medbench verify submission/records --seed 7
    """
    from medbench.errors import UsageError
    from medbench.records import find_records, read_record
    from medbench.rerun import draw_sample

    found: list[Record] = []
    for path in records:
        if path.is_dir():
            found += find_records([path])
        elif path.is_file():
            found.append(read_record(path))
        else:
            raise UsageError(f"There is no file or folder {path}.")
    drawn = draw_sample(found, sample, cells, seed)
    total = sum(len(episodes) for _, episodes in drawn)
    click.echo(f"{total} episodes of {len(drawn)} cells (of {len(found)} records)", err=True)
    equal, wrong = 0.0, 0
    with _folder(out) as folder:
        for record, episodes in drawn:
            again = _run(record, folder, device, threads, weights, episodes)
            equal += again.equal * len(episodes)
            wrong += not again.agrees(tolerance)
            verdict = "agrees" if again.agrees(tolerance) else "DIFFERS"
            click.echo(f"{verdict}  {record.stem}")
            for line in _report(again):
                click.echo(f"    {line}")
    click.echo(
        f"{round(equal)} of {total} episodes came out exactly as recorded; "
        f"{len(drawn) - wrong} of {len(drawn)} cells agree within {tolerance:g}."
    )
    return 1 if wrong else 0


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="medbench-") as name:
        yield Path(name)


def _run(
    record: Record,
    folder: Path,
    device: str | None,
    threads: int | None,
    weights: str | None,
    sample: list[int] | None,
) -> Rerun:
    from medbench.measure import pick_device
    from medbench.opened import default_place
    from medbench.plugins import registry
    from medbench.rerun import run_again

    def watch(event: Event) -> None:
        if event.kind == "finished":
            click.echo(f"{event.status}  {event.seconds:.1f} s  {event.job.title}", err=True)

    name = device or str(record.data["request"]["device"])
    threads = threads or int(record.data.get("hardware", {}).get("threads") or 1)
    return run_again(
        record,
        registry(),
        default_place(),
        folder,
        device=pick_device(name).type,
        threads=threads,
        weights=weights,
        sample=sample,
        watch=watch,
    )


def _report(found: Rerun) -> list[str]:
    # What an earlier version did not record has not changed.
    told = [text for text in found.changed if ": None -> " not in text]
    lines = [f"changed: {text}" for text in told[:5]]
    if found.error:
        return [*lines, f"failed: {found.error}"]
    for name, (then, now) in found.means.items():
        lines.append(f"{name}: recorded {then:.4f}, now {now:.4f} ({now - then:+.4f})")
    share = f"{100 * found.equal:.0f} %"
    return [*lines, f"{share} of {len(found.episodes)} episodes have the same {found.metric}"]
