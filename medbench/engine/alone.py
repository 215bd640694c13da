"""Runs one attempt inside a process that another engine provides, as the local engine would.

A Ray worker or a SLURM task so gives its job the same isolation: a fresh process that leads its
own group, a time limit, a memory guard, and the same words about how it ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medbench import __version__
from medbench.api import Place
from medbench.engine.executor import Attempt, Ended, Lost, Told
from medbench.engine.local import LocalExecutor
from medbench.engine.slots import Slot
from medbench.errors import OutputError, Unavailable

# Variables of the coordinator's environment that hold for its jobs too.
_OURS = "MEDBENCH_"
# Who watches needs no more.
_TELL_EVERY_S = 1.0
# Where data lie is each machine's own affair.
_PLACES = ("MEDBENCH_DATA", "MEDBENCH_CACHE")


@dataclass(frozen=True)
class Terms:
    """How the jobs of a run are run wherever that is, as plain data that travels there.

    ``timeouts`` are seconds by kind of job; ``folder`` is where the coordinator runs, from which
    relative paths of a suite count; ``environment`` holds its own variables.
    """

    place: Place
    threads: int
    timeouts: Mapping[str, float]
    memory_bytes: int | None
    exclusive: bool
    gpu: bool
    folder: str
    environment: Mapping[str, str]
    version: str


def terms_of(
    place: Place,
    *,
    threads: int,
    timeouts: Mapping[str, float],
    memory_bytes: int | None,
    exclusive: bool,
    gpu: bool,
) -> Terms:
    """Terms with what this process and its environment add."""
    here = {k: v for k, v in os.environ.items() if k.startswith(_OURS) and k not in _PLACES}
    return Terms(
        place=place,
        threads=threads,
        timeouts=dict(timeouts),
        memory_bytes=memory_bytes,
        exclusive=exclusive,
        gpu=gpu,
        folder=str(Path.cwd()),
        environment=here,
        version=__version__,
    )


@dataclass(frozen=True)
class Result:
    """How an attempt ended on some machine; ``trouble`` says why no job can run there."""

    host: str
    seconds: float = 0.0
    lost: Lost | None = None
    trouble: str = ""
    output_trouble: str = ""


class Troubles:
    """Tells a machine that can run no job from a run that no machine can run."""

    def __init__(self, limit: int = 3) -> None:
        self._limit, self._n = limit, 0
        self.worked = False

    def lost(self, text: str) -> Lost:
        """The end of one attempt for `text`; another machine may do better.

        Raises `Unavailable` when so far no job has run anywhere and several were tried.
        """
        self._n += 1
        if not self.worked and self._n >= self._limit:
            raise Unavailable(text)
        return Lost("unavailable", text, again=True)


class Alone:
    """One attempt at a time below `out`, in one slot of the machine that this process is on."""

    def __init__(self, out: Path, terms: Terms, quiet: Path) -> None:
        """`quiet`: the folder of the locks that keep this machine's devices quiet."""
        self._out, self._terms, self._quiet = out, terms, quiet
        self._executor: LocalExecutor | None = None

    def run(self, attempt: Attempt) -> Iterator[Told | Result]:
        """Run `attempt` to its end, and tell how far it is; the last thing told is how it ended.

        What keeps any job from running here is told in the result, not raised.
        """
        host = os.uname().nodename
        terms = self._terms
        if terms.version != __version__:
            text = f"{host} has medbench {__version__}, and this run needs {terms.version}."
            yield Result(host, trouble=text)
            return
        os.environ.update(terms.environment)
        if Path(terms.folder).is_dir():
            os.chdir(terms.folder)
        began = time.monotonic()
        self._executor = LocalExecutor(
            self._out,
            _own_place(terms.place),
            [_slot(terms.gpu)],
            threads=terms.threads,
            timeouts=terms.timeouts,
            memory_bytes=terms.memory_bytes,
            exclusive=terms.exclusive,
            quiet=self._quiet,
            shared=True,
        )
        try:
            with _main_module_hidden():
                self._executor.start(attempt)
            yield from self._until_ended(host)
        except OutputError as error:
            yield Result(host, time.monotonic() - began, output_trouble=str(error))
        except Unavailable as error:
            yield Result(host, time.monotonic() - began, trouble=f"On {host}: {error}")
        finally:
            self.stop()

    def _until_ended(self, host: str) -> Iterator[Told | Result]:
        assert self._executor is not None
        told_at = 0.0
        while True:
            for news in self._executor.wait():
                if isinstance(news, Ended):
                    lost = news.lost
                    if lost is not None:
                        lost = Lost(lost.status, f"On {host}: {lost.message}", lost.again)
                    yield Result(host, news.seconds, lost)
                    return
                if time.monotonic() - told_at >= _TELL_EVERY_S:
                    told_at = time.monotonic()
                    yield news

    def stop(self) -> None:
        """End the attempt that runs, with all it started."""
        if self._executor is not None:
            self._executor.stop()


def _own_place(place: Place) -> Place:
    """Where this machine says its data are; else where the coordinator has them."""
    data, cache = (os.environ.get(name) for name in _PLACES)
    return Place(
        data=Path(data).expanduser() if data else place.data,
        cache=Path(cache).expanduser() if cache else place.cache,
    )


def _slot(gpu: bool) -> Slot:
    if not gpu:
        return Slot("cpu")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # SLURM may number the GPUs of each job from 0; these names are those of the machine.
    names = (os.environ.get(n) for n in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"))
    name = next((n for n in names if n), visible)
    return Slot(f"gpu{name or ''}".replace("/", "-"), visible)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    # A job's process would else run the main module of whoever hosts it, which is not ours.
    main = sys.modules["__main__"]
    before = {name: getattr(main, name, None) for name in ("__spec__", "__file__")}
    for name in before:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(main, name, value)
