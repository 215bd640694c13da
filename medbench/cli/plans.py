"""What several commands need of plans: the device's name, the plan itself, counts in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medbench.config import Suite
    from medbench.plan import Plan


def device_name(name: str) -> str:
    """The device's name as plan and records use it. Importing torch is avoided for the CPU."""
    if name == "cpu":
        return name
    if name == "auto" and not Path("/proc/driver/nvidia").exists() and os.name == "posix":
        return "cpu"
    from medbench.measure import pick_device

    # Which of several equal GPUs runs a job is no part of what the job is.
    return pick_device(name).type


def make_plan(suite: Suite, device: str, quiet: bool) -> Plan:
    """The plan of a suite, telling on the terminal what is read unless `quiet`."""
    from medbench.opened import default_place
    from medbench.plan import build_plan
    from medbench.plugins import registry

    place = default_place()
    if quiet:
        return build_plan(suite, registry(), place, device=device)
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("planning") as status:
        return build_plan(
            suite, registry(), place, device=device, tell=lambda text: status.update(text)
        )


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
