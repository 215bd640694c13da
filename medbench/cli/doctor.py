"""``medbench doctor``: what this installation has, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import click

from medbench import __version__
from medbench.errors import MedbenchError
from medbench.plugins import registry

_LIBRARIES = ("torch", "torchvision", "timm", "medmnist", "pluggy", "pandas", "pyarrow", "pydantic")


@click.command("doctor")
def doctor_command() -> None:
    """Check this installation: versions, devices, data found, plugin faults.

    Exits with 2 when something is wrong, and says what to do about it.
    """
    trouble: list[str] = []
    click.echo(f"medbench {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _LIBRARIES:
        try:
            click.echo(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            trouble.append(f"{name} is not installed: pip install {name}")
    try:
        import torch

        click.echo(f"Devices: {os.cpu_count()} CPU cores")
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(i)
                click.echo(f"  cuda:{i} {properties.name}, {properties.total_memory >> 30} GiB")
        else:
            click.echo("  no CUDA device that torch can use")
        import torchvision  # noqa: F401  (broken builds fail here, and timm with them)
    except Exception as error:  # a broken build can raise anything
        trouble.append(
            f"torch or torchvision does not import ({type(error).__name__}: {error}); install "
            "both anew, from one source: pip install --force-reinstall torch torchvision"
        )
    from medbench.opened import default_place

    try:
        place = default_place()
        click.echo(f"Data: {place.data or 'MEDBENCH_DATA is not set; synthetic data only'}")
        if place.data is not None:
            _data(trouble)
        free = shutil.disk_usage(_existing(place.cache)).free
        click.echo(f"Cache: {place.cache} ({free >> 30} GiB free)")
        if free < 1 << 30:
            trouble.append(f"less than 1 GiB is free at {place.cache}; set MEDBENCH_CACHE")
    except MedbenchError as error:
        trouble.append(str(error))
    found = registry()
    click.echo(f"Plugins: {len(found.plugins)} loaded, {len(found.faults)} left out")
    trouble += [f"plugin left out: {fault}" for fault in found.faults]
    for text in trouble:
        click.secho(f"PROBLEM  {text}", fg="red")
    click.echo("All is well." if not trouble else f"{len(trouble)} problem(s).")
    if trouble:
        raise click.exceptions.Exit(2)


def _data(trouble: list[str]) -> None:
    from medbench.errors import DataMissing
    from medbench.opened import default_place, open_dataset
    from medbench.protocols import DatasetRef

    place = default_place()
    here, missing = [], []
    for name, entry in registry().entries["datasets"].items():
        if entry.spec.takes_argument:
            continue
        try:
            open_dataset(registry(), DatasetRef(name=name), place)
            here.append(name)
        except DataMissing:
            missing.append(name)
        except MedbenchError as error:
            trouble.append(f"dataset {name}: {error}")
    click.echo(f"  found {', '.join(here) or 'none of the named data sets'}")
    if missing:
        click.echo(f"  not there, and missed only where a suite names them: {', '.join(missing)}")
        click.echo("  'medbench data get NAME' downloads one")
    specs = [entry.spec for entry in registry().entries["datasets"].values()]
    families = [f"{spec.name}:{spec.takes_argument}" for spec in specs if spec.takes_argument]
    click.echo(f"  made from an argument: {', '.join(families)}")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
