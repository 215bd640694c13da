"""Runs one training or one cell in this process; a plugin's fault becomes a record.

The only place that shows images to an algorithm. Query labels stay here: adaptation gets a
`Support`, prediction gets query inputs, and the score is computed on this side.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from medbench import metrics
from medbench.api import Algorithm, Budget, Place, derive_seed
from medbench.backbones import build_backbone, load_weights
from medbench.config import AlgorithmRef, BackboneRef
from medbench.crew import Crew, Lost, Report
from medbench.distributed import Group, PeerLost, Seat, joined
from medbench.embed import weights_digest
from medbench.episodes import Block
from medbench.episodes import digest as episodes_digest
from medbench.errors import (
    ContractError,
    DataError,
    MedbenchError,
    NonFinite,
    OutputError,
    PluginError,
    Unavailable,
    UsageError,
)
from medbench.files import atomic, locked, write_json
from medbench.jobs import STAGE_BEGAN, WAITING, Folders, Job, header, now, write_failure
from medbench.lanes import Bench, Lanes
from medbench.measure import PeakMemory, clock, hardware, pick_device, versions
from medbench.multilabel import BinaryRelevance
from medbench.plan import adapt_params, train_params
from medbench.plugins import Entry, load_factory, registry, resolve_params
from medbench.protocols import load_protocol
from medbench.records import write_record
from medbench.source import TaskSource
from medbench.tasks import Target, alone, resolve
from medbench.training import Progress, Run

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc

Stage = Callable[[str], None]
Scores = NDArray[np.float64]


def execute(
    job: Job, out: Path, place: Place, threads: int, progress: Progress, processes: int = 1
) -> None:
    """Run a job and leave its record, whatever happens in it.

    Only what the operating system does to this process (a kill) leaves no record; the engine then
    writes one in its place. A training whose method can is shared by as many `processes`, of which
    this one starts the others.
    """
    folders = Folders(out)
    _settle(threads)
    stage = "start"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        progress(STAGE_BEGAN, name.replace("_", " "))

    def give_up(lost: Lost) -> None:
        write_failure(job, folders, lost.status, lost.stage, lost.message)
        os._exit(1)

    crew: Crew | None = None

    def gather() -> Crew:
        nonlocal crew
        crew = Crew(processes, _assist, (job, out, place, threads), give_up)
        return crew

    try:
        if job.kind == "training":
            _run_training(job, folders, place, progress, enter, processes, gather)
        else:
            _run_cell(job, folders, place, progress, enter)
    except OutputError:
        raise  # a full disk is the run's trouble, not this cell's
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        lost = crew.cause(error) if crew else None
        if lost is not None:
            write_failure(job, folders, lost.status, lost.stage, lost.message)
        else:
            write_failure(job, folders, status_of(error), stage, describe(error))


def _settle(threads: int) -> None:
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def status_of(error: BaseException) -> str:
    """The record's status for an exception."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    ):
        return "oom"
    if isinstance(error, NonFinite):
        return "non_finite"
    if isinstance(error, ContractError):
        return "contract"
    if isinstance(error, Unavailable | DataError | UsageError | PluginError):
        return "unavailable"
    return "crash"


def describe(error: BaseException) -> str:
    """One line about an exception."""
    if isinstance(error, MedbenchError):
        return str(error)
    return f"{type(error).__name__}: {error}"


# --- what both kinds of job need -----------------------------------------------------------------


def _bench(job: Job, place: Place, rank: int = 0) -> Bench:
    request = job.request
    found = registry()
    protocol, _ = load_protocol(found, request["protocol"])
    name, shot = request["target_dataset"], request["shot"]
    if job.kind == "cell":
        target = alone(found, protocol, place, name, shot)
    else:
        allowed = request["non_commercial"]
        resolved = resolve(
            found, protocol, place, non_commercial=allowed, shots=[shot], targets=[name]
        )
        target = next(t for t in resolved.targets if t.dataset_id == name)
    backbone_ref = BackboneRef(**request["backbone"])
    algorithm_ref = AlgorithmRef(**request["algorithm"])
    device = _device_of(pick_device(request["device"]), rank)
    backbone = build_backbone(
        found,
        backbone_ref,
        image_size=protocol.image_size,
        channels=protocol.channels,
        seed=request["seed"],
    )
    entry = found.get("algorithms", algorithm_ref.name)
    return Bench(
        found,
        target,
        backbone.to(device),
        entry,
        resolve_params(entry, algorithm_ref.params),
        device,
        request["seed"],
    )


def _make(entry: Entry, params: Mapping[str, Any], path: str | None = None) -> Any:
    factory = load_factory(entry, path)
    try:
        return factory(**params)
    except MedbenchError:
        raise
    except TypeError as error:
        raise ContractError(
            f"{entry.name} of {entry.origin()}: {path or entry.spec.factory} does not take the "
            f"parameters of its spec ({', '.join(params) or 'none'}): {error}"
        ) from error


# --- meta-training -------------------------------------------------------------------------------


def _run_training(
    job: Job,
    folders: Folders,
    place: Place,
    progress: Progress,
    enter: Stage,
    processes: int,
    gather: Callable[[], Crew],
) -> None:
    folder = folders.training(job)
    enter("load")
    bench = _bench(job, place)
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
            _device_of(bench.device, processes - 1)
            enter("gather")
            seat = stack.enter_context(gather()).seat
            group = stack.enter_context(joined(seat, bench.device))
        enter("meta_train")
        start = clock(bench.device)
        with PeakMemory(bench.device) as peak:
            learned, run = _trained(job, bench, folders, progress, group)
        elapsed = clock(bench.device) - start
    _check_learned(learned, spec.name)
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
            "train_s": run.seconds or elapsed,
            "processes": group.world,
            "images_seen": run.images_seen,
            "steps": run.n_steps,
            "budget_images": run.budget.images,
            "selected_step": run.best_step,
            "val_accuracy": run.best_accuracy,
            "curve": run.curve,
            "resumed_at": run.resumed_at,
            "notes": [*notes, *run.notes],
            "memory": peak.as_dict(),
            "sources": [s.id for s in bench.target.sources],
            "ingredients": job.ingredients,
            "hardware": hardware(bench.device),
            "versions": versions(),
            "created": now(),
        },
    )
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def _trained(
    job: Job, bench: Bench, folders: Folders, progress: Progress, group: Group
) -> tuple[dict[str, Tensor], Run]:
    """What one process learns, alone or with others."""
    spec = bench.entry.spec
    ref = AlgorithmRef(**job.request["algorithm"])
    trainer = (
        _make(bench.entry, train_params(bench.entry, ref), spec.trainer)
        if spec.trainer
        else _make(bench.entry, bench.params)
    )
    shape = {k: bench.params.get(f"train_{k}") for k in ("way", "shot", "query")}
    source = TaskSource(bench.target.sources, bench.backbone.input, bench.device, bench.seed, shape)
    images = int(job.request["budget_images"])
    run = Run(
        budget=Budget(images=images, episodes=images // source.images_per_task),
        seed=bench.seed,
        device=bench.device,
        source=source,
        validation_episodes=bench.target.protocol.validation_episodes,
        checkpoint=folders.training(job) / "checkpoint.safetensors",
        progress=progress,
        group=group,
    )
    torch.manual_seed(derive_seed("meta-train", bench.seed))
    return trainer.meta_train(bench.backbone, source, run), run


def _assist(seat: Seat, job: Job, out: Path, place: Place, threads: int) -> Report | None:
    """The part of a further process in a training; what went wrong, if it fails."""
    _settle(threads)
    stage = "load"
    try:
        bench = _bench(job, place, seat.rank)
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


def _device_of(first: torch.device, rank: int) -> torch.device:
    """Where process `rank` of a training computes: on the CPU, or on a GPU of its own."""
    if first.type != "cuda":
        return first
    return pick_device(f"cuda:{(first.index or 0) + rank}")


def _check_learned(learned: Any, name: str) -> None:
    if not isinstance(learned, Mapping) or not all(isinstance(v, Tensor) for v in learned.values()):
        raise ContractError(f"{name}: meta_train must return named tensors.")
    for key, tensor in learned.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFinite(f"{name}: the learned tensor {key} is not finite.")


# --- cells ---------------------------------------------------------------------------------------


def _run_cell(job: Job, folders: Folders, place: Place, progress: Progress, enter: Stage) -> None:
    enter("load")
    bench = _bench(job, place)
    target = bench.target
    counts = {k: int(job.request[k]) for k in ("episodes", "cost_episodes")}
    block = target.pool.draw(target.shape, target.episode_key, 0, counts["episodes"])
    if episodes_digest(block) != job.ingredients["target"]["episodes"]:
        raise DataError(
            f"The episodes of {target.id} are not those that were planned: the data changed "
            "while the suite was running. Run it again."
        )
    traits = bench.entry.spec.traits
    if target.protocol.task_kind not in traits.task_kinds:
        raise Unavailable(
            f"{bench.entry.name} does {', '.join(traits.task_kinds)}, and protocol "
            f"{target.protocol.name} asks for {target.protocol.task_kind}."
        )
    learned, training = _learned(job, folders)
    backbone = bench.backbone
    own = {k: v for k, v in learned.items() if k.startswith("backbone.")}
    if own:
        load_weights(backbone, own, f"training {str(job.training_key)[:12]}")
    backbone.eval()
    rest = {k: v.to(bench.device) for k, v in learned.items() if not k.startswith("backbone.")}
    before = weights_digest(backbone)
    algorithm = _make(bench.entry, adapt_params(bench.entry, bench.params))
    if not isinstance(algorithm, Algorithm):
        raise ContractError(
            f"{bench.entry.name}: the factory returned {type(algorithm).__name__}, and a "
            "medbench.api.Algorithm is needed."
        )
    enter("prepare")
    algorithm.prepare(backbone, rest)
    if target.multilabel:
        dims = 1 if traits.works_on == "features" else 3
        algorithm = BinaryRelevance(algorithm, batched=traits.batched, image_dims=dims)
    lanes = Lanes(bench, algorithm, block, folders.features)
    progress(WAITING, "waiting for the cost lane")
    # Two cost lanes at once would time each other; other lanes may still run beside this one, and
    # the record says so.
    with locked(folders.out / "cache" / "cost-lane.lock", wait=True):
        enter("cost_lane")
        costs, cost_scores = lanes.cost(counts["cost_episodes"])
    enter("accuracy_lane")
    scores = lanes.accuracy(progress)
    if weights_digest(backbone) != before:
        raise ContractError(
            f"{bench.entry.name} changed the backbone it was given (parameters or buffers); adapt "
            "a copy, or use torch.func.functional_call."
        )
    enter("check")
    costs |= lanes.compare(scores, cost_scores)
    enter("score")
    measured = _measured(target, block, scores)
    enter("save")
    data = header(job) | {
        "status": "ok",
        "n_episodes": len(block),
        "summary": {
            k: float(np.nanmean(v)) if not np.isnan(v).all() else None for k, v in measured.items()
        },
        "costs": costs,
        "training": training,
        "traits": {
            "works_on": traits.works_on,
            "transductive": traits.is_transductive(bench.params),
            "adapts": traits.adapts,
            "deterministic": traits.deterministic,
        },
        "overlap": _overlap(bench, job),
        "licences": _licences(bench, job),
        "backbone": {
            "parameters": sum(p.numel() for p in backbone.parameters()),
            "bytes": sum(t.numel() * t.element_size() for t in backbone.state_dict().values()),
            "n_features": backbone.n_features,
            "input_size": backbone.input.size,
            "origin": backbone.origin,
            "weights_digest": before,
        },
        "hardware": hardware(bench.device),
        "versions": versions(),
        "created": now(),
    }
    write_record(folders.record(job), data, measured)


def _measured(target: Target, block: Block, scores: Scores) -> dict[str, Scores]:
    """Every metric of every episode; the only place where scores meet the queries' labels."""
    labels = target.query_labels(block)
    if target.multilabel:
        return metrics.multilabel(scores, labels)
    found = metrics.classification(scores, labels)
    if target.opened.dataset.info.ordinal:
        found |= metrics.ordinal(scores, labels, block.classes)
    return found


def _learned(job: Job, folders: Folders) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """What the cell's training left, and its record. Raises when it failed."""
    if job.training_key is None:
        return {}, None
    folder = folders.out / "trainings" / job.training_key
    record = json.loads((folder / "training.json").read_text())
    keep = (
        "key",
        "train_s",
        "images_seen",
        "steps",
        "budget_images",
        "selected_step",
        "val_accuracy",
        "curve",
        "memory",
        "resumed_at",
        "notes",
    )
    told = {k: record[k] for k in keep} | {"processes": record.get("processes", 1)}
    return load_file(folder / "learned.safetensors"), told


def _licences(bench: Bench, job: Job) -> dict[str, str]:
    opened = bench.target.opened
    return {opened.name: opened.dataset.info.licence, **job.request["source_licences"]}


def _overlap(bench: Bench, job: Job) -> list[str]:
    """What the model may have seen of the target's domain before the test, in words."""
    found = []
    target = bench.target
    domain = target.opened.dataset.info.domain
    if bench.entry.spec.traits.meta_trains:
        domains = job.request["source_domains"]
        same = {source for source, of_source in domains.items() if of_source == domain}
        if same and target.protocol.setting == "within_dataset":
            found.append("meta-trained on other classes of the same dataset")
        elif same and target.protocol.setting == "leave_one_site_out":
            found.append("meta-trained on other sites of the same dataset")
        elif same:
            found.append(f"meta-trained on the same domain: {', '.join(sorted(same))}")
    spec = bench.registry.get("backbones", str(job.request["backbone"]["name"])).spec
    if job.request["backbone"]["weights"] == "pretrained":
        words = spec.pretrained_on.lower()
        if domain.lower() in words or target.opened.name.lower() in words:
            found.append(f"pretrained on the target's domain ({spec.pretrained_on})")
    elif job.request["backbone"]["weights"] != "random":
        found.append("weights from a file: what they were trained on is not known")
    return found


def _keep_freed_memory() -> None:
    # glibc gives large blocks back to the system at every free, and the kernel clears their pages
    # anew at every allocation: half the time of a training step of conv4 on a CPU.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)
