"""Where jobs may run at the same time on one machine: a slot each, on the CPU or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from medbench.errors import UsageError


@dataclass(frozen=True)
class Slot:
    """Room for one job; ``gpu`` is what ``CUDA_VISIBLE_DEVICES`` will be, None on the CPU."""

    device: str
    gpu: str | None = None


def cpu_slots(workers: int | None, threads: int) -> list[Slot]:
    """`workers` slots on the CPU; by default as many as fit its cores with `threads` each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Slot("cpu")] * (workers or max(1, (cores or 1) // threads))


def gpu_slots(gpus: Sequence[str], jobs_per_gpu: int, workers: int | None = None) -> list[Slot]:
    """`jobs_per_gpu` slots on each GPU, in turn over the GPUs, at most `workers` in all.

    `gpus` are indices into what ``CUDA_VISIBLE_DEVICES`` shows, or names as it takes them (a UUID).
    """
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g.strip()]
    found = []
    for gpu in gpus:
        name = gpu
        if gpu.isdecimal() and visible:
            if int(gpu) >= len(visible):
                raise UsageError(
                    f"--gpus {','.join(gpus)}: there is no GPU {gpu}; CUDA_VISIBLE_DEVICES shows "
                    f"{len(visible)}."
                )
            name = visible[int(gpu)].strip()
        found.append(Slot(f"gpu{gpu}", name))
    slots = found * jobs_per_gpu
    return slots[:workers] if workers else slots


def jobs_that_fit(gpu_bytes: Sequence[int], need_bytes: int) -> int:
    """How many jobs of `need_bytes` fit the smallest of some GPUs.

    Raises `UsageError` when not one does.
    """
    smallest = min(gpu_bytes)
    if need_bytes > smallest:
        raise UsageError(
            f"A job is to have {need_bytes / 2**30:.1f} GiB, and the smallest GPU has "
            f"{smallest / 2**30:.1f} GiB. Choose other GPUs with --gpus, or a smaller "
            "--gpu-memory."
        )
    return smallest // need_bytes
