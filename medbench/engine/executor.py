"""What the coordinator asks of the place where jobs run, and what it is told from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from medbench.errors import MedbenchError
from medbench.jobs import Job


@dataclass(frozen=True)
class Attempt:
    """One try of a job; `earlier` tells how those before it ended."""

    job: Job
    episodes_per_block: int | None = None
    earlier: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Told:
    """A running job has come to some fraction of its work; below 0 when that is not known."""

    job: Job
    fraction: float
    text: str


@dataclass(frozen=True)
class Lost:
    """Why a job ended without a record; ``again`` when another try may fare better."""

    status: str
    message: str
    again: bool = False


@dataclass(frozen=True)
class Ended:
    """A job has ended: with its record in the run's folder, or lost."""

    job: Job
    seconds: float
    lost: Lost | None = None


class Executor(Protocol):
    """Runs jobs: on this machine, or on others."""

    n_slots: int

    def open(self) -> None:
        """Get ready, once the run's folder is this run's alone: before anything is read there.

        Ends jobs that an earlier run left somewhere, and fetches what is recorded elsewhere.
        Raises `Unavailable` or `UsageError` when jobs cannot run there.
        """
        ...

    def has_room(self, job: Job) -> bool:
        """Whether a job may be started now."""
        ...

    def start(self, attempt: Attempt) -> str:
        """Start a job for which there is room, and say where, in a word or two."""
        ...

    def wait(self) -> Sequence[Told | Ended]:
        """What has happened since the last call; waits a moment when nothing has.

        Raises `OutputError` when a job could not write its output, `Unavailable` when jobs cannot
        run here at all.
        """
        ...

    def stop(self) -> None:
        """End all jobs and whatever they started; returns when they are gone."""
        ...


class Interrupted(MedbenchError):
    """The run was stopped by Ctrl-C or a signal; what is recorded stays."""

    exit_code = 130
