"""The options that say where and how jobs run, shared by the commands that run some."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from medbench.config import Suite
    from medbench.engine.executor import Executor

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size(text: str) -> int:
    """Bytes, written as 12GiB, 500MB or a number. Raises `click.BadParameter`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", text.strip().lower())
    number = float(found[1]) * (_UNITS | _BINARY)[found[2]] if found else 0
    if number < 1:
        raise click.BadParameter(f"{text!r} is not a size; write such as 12GiB or 500MB.")
    return int(number)


@dataclass(frozen=True)
class EngineOptions:
    """Where and how jobs run, as the command line said."""

    name: str
    slurm: tuple[str, ...]
    store: str | None
    device: str
    gpus: str | None
    jobs_per_gpu: int | None
    gpu_memory: int | None
    workers: int | None
    threads: int
    training_processes: int
    memory: int | None
    retries: int
    cost_lane: str
    quiet: bool

    def say(self, text: str) -> None:
        """Tell the person who runs, unless they asked for silence."""
        if not self.quiet:
            click.echo(text, err=True)

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``: what jobs compute on, wherever they run.

        The machine that submits to SLURM or Ray may have no GPU itself. Raises `Unavailable`.
        """
        from medbench.cli.plans import device_name

        if self.name == "local":
            return device_name(self.device)
        if self.device == "auto" and self.name == "slurm":
            wanted = any(re.fullmatch(r"gpus.per.node=0*[1-9]\d*", s) for s in self.slurm)
            return "cuda" if wanted else "cpu"
        return self.device if self.device in ("cpu", "cuda") else device_name(self.device)

    def executor(self, suite: Suite, out: Path) -> Executor:
        """What runs the jobs of `suite`.

        Raises `UsageError` for options that do not fit, `Unavailable` for what is not installed.
        """
        self._check()
        if self.name == "slurm":
            return self._slurm(suite, out)
        if self.name == "ray":
            return self._ray(suite, out)
        from medbench.engine.local import LocalExecutor
        from medbench.opened import default_place

        return LocalExecutor(
            out,
            default_place(),
            self._slots(),
            threads=self.threads,
            training_processes=self.training_processes,
            timeouts={"cell": suite.cell_timeout_s, "training": suite.training_timeout_s},
            memory_bytes=self.memory,
            exclusive=self.cost_lane == "exclusive",
        )

    def _check(self) -> None:
        """Raise `UsageError` for options of one engine that are given to another."""
        only = {
            "--slurm": (bool(self.slurm), ("slurm",)),
            "--store": (self.store is not None, ("ray",)),
            "--training-processes": (self.training_processes > 1, ("local",)),
            "--gpus": (self.gpus is not None, ("local",)),
            "--gpu-memory": (self.gpu_memory is not None, ("local",)),
            "--jobs-per-gpu": (self.jobs_per_gpu is not None, ("local", "ray")),
        }
        for option, (given, engines) in only.items():
            if given and self.name not in engines:
                raise UsageError(
                    f"{option} is for --engine {' or '.join(engines)}, and this is {self.name}."
                )

    def _terms(self, suite: Suite, memory: int | None) -> Any:
        from medbench.engine.alone import terms_of
        from medbench.opened import default_place

        return terms_of(
            default_place(),
            threads=self.threads,
            timeouts={"cell": suite.cell_timeout_s, "training": suite.training_timeout_s},
            memory_bytes=memory,
            exclusive=self.cost_lane == "exclusive",
            gpu=self.device_type == "cuda",
        )

    def _slurm(self, suite: Suite, out: Path) -> Executor:
        from medbench.engine.slurmoptions import slurm_options

        options = slurm_options(
            self.slurm,
            gpu=self.device_type == "cuda",
            threads=self.threads,
            memory_bytes=self.memory,
            cell_timeout_s=suite.cell_timeout_s,
            size=size,
        )
        with _extra("slurm", "submitit"):
            from medbench.engine.queues import open_queue
            from medbench.engine.slurm import SlurmExecutor
        # A job that is ended here leaves a better record than one that SLURM kills.
        memory = self.memory or (options.mem_bytes and int(0.95 * options.mem_bytes))
        queue = open_queue(out, options, self.workers)
        return SlurmExecutor(out, self._terms(suite, memory), queue)

    def _ray(self, suite: Suite, out: Path) -> Executor:
        with _extra("ray", "ray", "fsspec"):
            from medbench.engine.ray import RayExecutor
            from medbench.engine.store import open_store
        return RayExecutor(
            out,
            self._terms(suite, self.memory),
            open_store(self.store or str(out.resolve())),
            workers=self.workers,
            jobs_per_gpu=self.jobs_per_gpu or 1,
        )

    def _slots(self) -> Any:
        from medbench.cli.plans import device_name
        from medbench.engine.slots import cpu_slots, gpu_slots, jobs_that_fit

        if device_name(self.device) == "cpu":
            for given, name in (
                (self.gpus, "--gpus"),
                (self.jobs_per_gpu, "--jobs-per-gpu"),
                (self.gpu_memory, "--gpu-memory"),
            ):
                if given is not None:
                    raise UsageError(
                        f"{name} is for GPUs, and this run uses the CPU. See 'medbench doctor' for "
                        "what torch finds here."
                    )
            return cpu_slots(self.workers, self.threads)
        import torch

        _, _, index = self.device.partition(":")
        if self.gpus and index:
            raise UsageError(f"--device {self.device} and --gpus both name GPUs: give one of them.")
        if self.jobs_per_gpu and self.gpu_memory:
            raise UsageError("--jobs-per-gpu and --gpu-memory both say how many: give one of them.")
        here = [str(i) for i in range(torch.cuda.device_count())]
        text = index or self.gpus or "all"
        gpus = here if text == "all" else [g.strip() for g in text.split(",") if g.strip()]
        unknown = [g for g in gpus if g.isdecimal() and g not in here]
        if unknown or not gpus:
            raise UsageError(
                f"--gpus {text}: this machine has {len(here)} GPUs that torch can use "
                f"({', '.join(here)})."
            )
        per_gpu = self.jobs_per_gpu or 1
        if self.gpu_memory:
            sizes = [torch.cuda.get_device_properties(int(i)).total_memory for i in here]
            chosen = [sizes[int(g)] for g in gpus if g.isdecimal()] or sizes
            per_gpu = jobs_that_fit(chosen, self.gpu_memory)
        return gpu_slots(gpus, per_gpu, self.workers)


@contextlib.contextmanager
def _extra(name: str, *modules: str) -> Iterator[None]:
    """Imports of what is installed with an extra. Raises `Unavailable`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in modules:
            raise
        raise Unavailable(
            f"--engine {name} needs {error.name}, which is not installed: "
            f"pip install 'medbench[{name}]'."
        ) from error


_OPTIONS = [
    click.option(
        "--engine",
        "name",
        type=click.Choice(["local", "ray", "slurm"]),
        default="local",
        show_default=True,
        help="Where jobs run: on this machine, or on a cluster.",
    ),
    click.option(
        "--slurm",
        multiple=True,
        metavar="KEY=VALUE",
        help="Asked of SLURM for a job: partition, account, time, mem, gpus_per_node, ...",
    ),
    click.option(
        "--store",
        metavar="URL",
        help="Where Ray's nodes leave records and checkpoints: a path, s3://..., gs://... [--out].",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda or cuda:N.",
        metavar="NAME",
    ),
    click.option("--gpus", metavar="LIST", help="GPUs to use, such as 0,1,2 [all]."),
    click.option("--jobs-per-gpu", type=click.IntRange(1), help="Jobs at a time on each GPU [1]."),
    click.option(
        "--gpu-memory",
        type=size,
        metavar="SIZE",
        help="Memory a job needs on its GPU: as many run as fit.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Jobs at a time [cores / threads; GPUs x jobs; 256 in SLURM's queue].",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="CPU threads a job. Scores may differ in the last digit between thread counts.",
    ),
    click.option(
        "--training-processes",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Processes that share a training, each in a slot of its own. Changes rounding only.",
    ),
    click.option(
        "--memory",
        type=size,
        metavar="SIZE",
        help="End a job that holds more than this (such as 12GiB).",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=1,
        show_default=True,
        help="How often a job is tried again that was killed or ran out of memory.",
    ),
    click.option(
        "--cost-lane",
        type=click.Choice(["exclusive", "shared"]),
        default="exclusive",
        show_default=True,
        help="Whether other jobs on the device pause while adaptation is timed.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
]


def engine_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options, which it gets together as ``engine``."""

    @functools.wraps(command)
    def with_options(**values: Any) -> int:
        engine = EngineOptions(**{n: values.pop(n) for n in EngineOptions.__dataclass_fields__})
        return command(**values, engine=engine)

    found: Callable[..., int] = with_options
    for option in reversed(_OPTIONS):
        found = option(found)
    return found
