"""Runs the job of one meta-training, in one process or in several that share it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from medbench.api import Backbone, Budget, Place, derive_seed
from medbench.backbones import load_weights
from medbench.bench import Bench, build_bench, device_of, make, settle
from medbench.config import AlgorithmRef
from medbench.crew import Crew, Report
from medbench.distributed import Group, PeerLost, Seat, joined
from medbench.errors import ContractError, NonFinite, Unavailable
from medbench.faults import describe, status_of
from medbench.files import atomic, file_digest, write_json
from medbench.jobs import Folders, Job, Manner, now
from medbench.measure import PeakMemory, clock, hardware, versions
from medbench.plan import train_params
from medbench.source import TaskSource
from medbench.training import Progress, Run
from medbench.validation import METRIC

Stage = Callable[[str], None]
_CHECKPOINT, _LESSON = "checkpoint.safetensors", "lesson-checkpoint.safetensors"


def run_training(
    job: Job,
    folders: Folders,
    place: Place,
    progress: Progress,
    enter: Stage,
    manner: Manner,
    gather: Callable[[], Crew],
) -> None:
    """Meta-train and leave the weights and their record; `gather` starts further processes.

    Raises what the plugin raises, `ContractError` and `NonFinite` for what it returns.
    """
    processes = manner.processes
    folder = folders.training(job)
    enter("load")
    bench = build_bench(job, place)
    spec = bench.entry.spec
    notes = []
    if processes > 1 and not spec.traits.parallel:
        notes.append(
            f"{processes} processes were asked for, and one trained: {spec.name} does not claim "
            "parallel"
        )
        processes = 1
    with contextlib.ExitStack() as stack:
        group = Group()
        if processes > 1:
            device_of(bench.device, processes - 1)
            enter("gather")
            seat = stack.enter_context(gather()).seat
            group = stack.enter_context(joined(seat, bench.device))
        enter("meta_train")
        start = clock(bench.device)
        with PeakMemory(bench.device) as peak:
            learned, run, lesson, source = _trained(job, bench, folders, progress, group)
        elapsed = clock(bench.device) - start
    source_kind = bench.target.sources[0].opened.dataset.info.task_kind
    enter("save")
    with atomic(folder / "learned.safetensors") as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in learned.items()}, temporary)
    write_json(
        folder / "training.json",
        {
            "key": job.key,
            "title": job.title,
            "status": "ok",
            # What the steps took, over all resumptions, or all of it for a trainer without steps.
            "train_s": run.seconds + (lesson.seconds if lesson else 0.0) or elapsed,
            "processes": group.world,
            "learned_bytes": (folder / "learned.safetensors").stat().st_size,
            "learned_digest": file_digest(folder / "learned.safetensors"),
            "images_seen": run.images_seen + (lesson.images_seen if lesson else 0),
            "steps": run.n_steps + (lesson.n_steps if lesson else 0),
            "budget_images": run.budget.images,
            "selected_step": run.best_step,
            "val_accuracy": run.best_accuracy,
            "val_metric": METRIC[source_kind],
            "curve": run.curve or (lesson.curve if lesson else []),
            "resumed_at": run.resumed_at + (lesson.resumed_at if lesson else []),
            "earlier_tries": list(manner.earlier),
            "notes": [*notes, *run.notes, *_of_lesson(lesson)],
            "memory": peak.as_dict(),
            "sources": [s.id for s in bench.target.sources],
            # Which class of which data set each of the source's classes is.
            "classes": [list(c) for c in source.classes],
            "ingredients": job.ingredients,
            "hardware": hardware(bench.device),
            "versions": versions(),
            "created": now(),
        },
    )
    for checkpoint in (_CHECKPOINT, _LESSON):
        (folder / checkpoint).unlink(missing_ok=True)


def _trained(
    job: Job, bench: Bench, folders: Folders, progress: Progress, group: Group
) -> tuple[dict[str, Tensor], Run, Run | None, TaskSource]:
    """What one process learns, alone or with others, and from what; the run of the backbone's own
    lesson, if it had one, is the third.
    """
    spec = bench.entry.spec
    shape = {k: bench.params.get(f"train_{k}") for k in ("way", "shot", "query")}
    source = TaskSource(bench.target.sources, bench.backbone.input, bench.device, bench.seed, shape)
    images = int(job.request["budget_images"])
    run = Run(
        budget=Budget(images=images, episodes=images // source.images_per_task),
        seed=bench.seed,
        device=bench.device,
        source=source,
        validation_episodes=bench.target.protocol.validation_episodes,
        checkpoint=folders.training(job) / _CHECKPOINT,
        progress=progress,
        group=group,
    )
    torch.manual_seed(derive_seed("meta-train", bench.seed))
    learned: dict[str, Tensor] = {}
    if spec.traits.meta_trains:
        ref = AlgorithmRef(**job.request["algorithm"])
        trainer = (
            make(bench.entry, train_params(bench.entry, ref), spec.trainer)
            if spec.trainer
            else make(bench.entry, bench.params)
        )
        learned = trainer.meta_train(bench.backbone, source, run)
        _check_learned(learned, spec.name)
    # What follows is not shared: the other processes are done.
    if not group.first:
        return learned, run, None, source
    lesson = _taught(job, bench, folders, progress, source, learned)
    return learned, run, lesson, source


def _taught(
    job: Job,
    bench: Bench,
    folders: Folders,
    progress: Progress,
    source: TaskSource,
    learned: dict[str, Tensor],
) -> Run | None:
    """The run in which the backbone learns what it learns by itself, if anything.

    What all weights are then goes to `learned`.
    """
    backbone = bench.backbone
    parts = [m for m in backbone.modules() if isinstance(m, Backbone) and m.lesson_images]
    if not parts:
        return None
    part, *more = parts
    name = type(part).__name__
    if more:
        raise Unavailable(
            f"{name} and {type(more[0]).__name__} both learn from source images, and "
            "one of them can. Leave one out."
        )
    if part.input != backbone.input:
        raise Unavailable(
            f"{name} learns from source images, and would see other ones inside of "
            f"{type(backbone).__name__}. Put it around that, not inside."
        )
    own = {k: v for k, v in learned.items() if k.startswith("backbone.")}
    if own:
        load_weights(backbone, own, "this training")
    images = part.lesson_images
    lesson = Run(
        budget=Budget(images=images, episodes=images // source.images_per_task),
        seed=bench.seed,
        device=bench.device,
        source=source,
        validation_episodes=0,
        checkpoint=folders.training(job) / _LESSON,
        progress=progress,
    )
    torch.manual_seed(derive_seed("lesson", bench.seed))
    backbone.eval()
    part.learn(source, lesson)
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    _check_learned(state, name)
    learned |= state
    return lesson


def _of_lesson(lesson: Run | None) -> list[str]:
    if lesson is None:
        return []
    return [
        *lesson.notes,
        f"of these, {lesson.n_steps} steps, {lesson.images_seen} images and {lesson.seconds:.1f} s "
        "were the backbone's own lesson",
    ]


def assist(seat: Seat, job: Job, out: Path, place: Place, threads: int) -> Report | None:
    """The part of a further process in a training; what went wrong, if it fails."""
    settle(threads)
    stage = "load"
    try:
        bench = build_bench(job, place, seat.rank)
        stage = "gather"
        with joined(seat, bench.device) as group:
            stage = "meta_train"
            _trained(job, bench, Folders(out), lambda fraction, text: None, group)
    except PeerLost:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return status_of(error), stage, describe(error)
    return None


def _check_learned(learned: Any, name: str) -> None:
    if not isinstance(learned, Mapping) or not all(isinstance(v, Tensor) for v in learned.values()):
        raise ContractError(f"{name}: meta_train must return named tensors.")
    for key, tensor in learned.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFinite(f"{name}: the learned tensor {key} is not finite.")
