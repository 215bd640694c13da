"""What is asked of SLURM for every job: ``--slurm KEY=VALUE``, checked before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medbench.errors import UsageError, did_you_mean

# Left to a task after its last job was asked to stop: to leave, and to be queued again.
_SIGNAL_DELAY_S = 90
_MARGIN_MIN = 10
_HOST_BYTES = 1 << 30


@dataclass(frozen=True)
class SlurmOptions:
    """Checked settings: ``minutes`` is the time limit of one task, ``mem_bytes`` its memory.

    ``cluster`` is ``slurm``, or ``local`` for submitit's processes on this machine; ``words`` go
    to sbatch as they are.
    """

    cluster: str
    minutes: float
    cpus_per_task: int
    gpus_per_node: int | None
    mem_bytes: int | None
    array_parallelism: int
    signal_delay_s: int
    setup: tuple[str, ...] = ()
    exclusive: bool = False
    words: Mapping[str, str] = field(default_factory=dict)

    def sbatch(self) -> dict[str, Any]:
        """What submitit's SlurmExecutor is told."""
        found: dict[str, Any] = {
            "time": math.ceil(self.minutes),
            "cpus_per_task": self.cpus_per_task,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.signal_delay_s,
            "setup": list(self.setup) or None,
            "additional_parameters": {"requeue": True},
        }
        if self.gpus_per_node:
            found["gpus_per_node"] = self.gpus_per_node
        if self.mem_bytes:
            found["mem"] = f"{math.ceil(self.mem_bytes / 2**20)}M"
        if self.exclusive:
            found["exclusive"] = True
        extra = {k: v for k, v in self.words.items() if k not in _PLAIN}
        found["additional_parameters"] |= extra
        return found | {k: v for k, v in self.words.items() if k in _PLAIN}


# Named parameters of submitit, and others that sbatch takes.
_PLAIN = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "gres")
_WORDS = (*_PLAIN, "reservation", "licenses", "nice")
_NUMBERS = ("cpus_per_task", "gpus_per_node", "array_parallelism", "signal_delay_s")
_KEYS = ("cluster", "time", "mem", "setup", "exclusive", *_NUMBERS, *_WORDS)


def slurm_options(
    settings: Sequence[str],
    *,
    gpu: bool,
    threads: int,
    memory_bytes: int | None,
    cell_timeout_s: float,
    size: Callable[[str], int],
) -> SlurmOptions:
    """Options from texts KEY=VALUE; `setup` may come several times.

    What is not given follows from the run: `threads` CPUs, a GPU when it computes on one, memory
    from `memory_bytes`, and time for one cell. Raises `UsageError`.
    """
    given: dict[str, str] = {}
    setup: list[str] = []
    for text in settings:
        key, found, value = text.partition("=")
        key, value = key.strip().replace("-", "_"), value.strip()
        if not found or not value:
            raise UsageError(f"--slurm {text!r}: write KEY=VALUE, such as partition=gpu.")
        if key not in _KEYS:
            raise UsageError(f"--slurm {text!r}: there is no {key!r}.{did_you_mean(key, _KEYS)}")
        if key == "setup":
            setup.append(value)
        elif key in given:
            raise UsageError(f"--slurm {key} is given twice: {given[key]} and {value}.")
        else:
            given[key] = value
    cluster = given.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UsageError(f"--slurm cluster={cluster}: it is slurm, or local to try on one machine.")
    numbers = {k: _number(k, given.pop(k)) for k in _NUMBERS if k in given}
    if gpu and numbers.get("gpus_per_node") == 0:
        raise UsageError("--slurm gpus_per_node=0: this run computes on a GPU (--device).")
    if numbers.get("cpus_per_task", threads) < threads:
        raise UsageError(
            f"--slurm cpus_per_task={numbers['cpus_per_task']}: a job computes with "
            f"{threads} threads (--threads)."
        )
    minutes = _minutes(given.pop("time")) if "time" in given else None
    mem = None
    if "mem" in given:
        # SLURM's units are powers of two, with and without the i.
        mem = size(re.sub(r"(?i)([kmgt])b?$", r"\1i", given.pop("mem")))
    if mem is not None and memory_bytes is not None and mem < memory_bytes:
        raise UsageError("--slurm mem is less than --memory allows a job.")
    if mem is None and memory_bytes is not None:
        mem = memory_bytes + _HOST_BYTES
    exclusive = given.pop("exclusive", "false").lower()
    if exclusive not in ("true", "false"):
        raise UsageError(f"--slurm exclusive={exclusive}: it is true or false.")
    return SlurmOptions(
        cluster=cluster,
        # Trainings that take longer are queued again, and go on from their checkpoint.
        minutes=minutes or math.ceil(cell_timeout_s / 60) + _MARGIN_MIN,
        cpus_per_task=numbers.get("cpus_per_task", threads),
        gpus_per_node=numbers.get("gpus_per_node", 1 if gpu else None),
        mem_bytes=mem,
        array_parallelism=max(1, numbers.get("array_parallelism", 256)),
        signal_delay_s=numbers.get("signal_delay_s", _SIGNAL_DELAY_S),
        setup=tuple(setup),
        exclusive=exclusive == "true",
        words=given,
    )


def _number(key: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--slurm {key}={text}: a whole number is needed.")
    return int(text)


def _minutes(text: str) -> float:
    """Minutes from SLURM's own forms: ``90``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``..."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    whole = all(p.isdecimal() for p in parts) and (days.isdecimal() or not dash)
    found = 0.0
    if whole and len(parts) <= 3:
        numbers = [int(p) for p in parts]
        if dash:
            hours, minutes, seconds = (*numbers, 0, 0)[:3]
        elif len(numbers) == 3:
            hours, minutes, seconds = numbers
        else:
            hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
        found = 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60
    if not found or re.search(r"\s", text):
        raise UsageError(
            f"--slurm time={text}: give minutes, or D-HH:MM:SS as SLURM writes it, such as "
            "90 or 1-12:00:00."
        )
    return found
