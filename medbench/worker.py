"""Runs one training or one cell in this process; a plugin's fault becomes a record.

The only place that shows images to an algorithm. Query labels stay here: adaptation gets a
`Support`, prediction gets query inputs, and the score is computed on this side.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from medbench.api import Algorithm, Place
from medbench.backbones import deploy, load_weights
from medbench.bench import Bench, build_bench, make, settle
from medbench.crew import Crew, Lost
from medbench.embed import weights_digest
from medbench.episodes import digest as episodes_digest
from medbench.errors import (
    ContractError,
    DataError,
    OutputError,
    Unavailable,
)
from medbench.faults import describe, status_of
from medbench.files import file_digest
from medbench.jobs import STAGE_BEGAN, WAITING, Folders, Job, Manner, header, now, write_failure
from medbench.lanes import Lanes
from medbench.measure import hardware, versions
from medbench.modalities import told
from medbench.multilabel import BinaryRelevance
from medbench.nesting import layers
from medbench.plan import adapt_params
from medbench.protocols import EVERYTHING
from medbench.quiet import Quiet
from medbench.records import write_record
from medbench.source_classes import require_source_classes, source_classes
from medbench.training import Progress
from medbench.training_job import assist, run_training

Stage = Callable[[str], None]


def execute(job: Job, out: Path, place: Place, manner: Manner, progress: Progress) -> None:
    """Run a job and leave its record, whatever happens in it.

    Only what the operating system does to this process (a kill) leaves no record; the engine then
    writes one in its place. A training whose method can is shared by as many processes as `manner`
    says, of which this one starts the others.
    """
    folders = Folders(out)
    settle(manner.threads)
    stage = "start"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        progress(STAGE_BEGAN, name.replace("_", " "))

    def waiting(begins: bool) -> None:
        if begins:
            progress(WAITING, "waiting for a cost lane")
        else:
            enter(stage)

    def step(fraction: float, text: str) -> None:
        progress(fraction, text)
        quiet.pause()

    def give_up(lost: Lost) -> None:
        write_failure(job, folders, lost.status, lost.stage, lost.message, manner.earlier)
        os._exit(1)

    crew: Crew | None = None

    def gather() -> Crew:
        nonlocal crew
        crew = Crew(manner.processes, assist, (job, out, place, manner.threads), give_up)
        return crew

    try:
        with Quiet(
            Path(manner.quiet) if manner.quiet else None, exclusive=manner.exclusive, told=waiting
        ) as quiet:
            if job.kind == "training":
                run_training(job, folders, place, step, enter, manner, gather)
            else:
                _run_cell(job, folders, place, step, enter, manner, quiet)
    except OutputError:
        raise  # a full disk is the run's trouble, not this cell's
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        lost = crew.cause(error) if crew else None
        told = (
            (lost.status, lost.stage, lost.message)
            if lost
            else (status_of(error), stage, describe(error))
        )
        write_failure(job, folders, *told, manner.earlier)


def _run_cell(
    job: Job,
    folders: Folders,
    place: Place,
    progress: Progress,
    enter: Stage,
    manner: Manner,
    quiet: Quiet,
) -> None:
    enter("load")
    bench = build_bench(job, place)
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
    if target.protocol.n_dims not in traits.n_dims:
        takes = " or ".join({2: "images", 3: "volumes"}[n] for n in traits.n_dims)
        raise Unavailable(
            f"{bench.entry.name} takes {takes} (n_dims {', '.join(map(str, traits.n_dims))}), and "
            f"protocol {target.protocol.name} has n_dims {target.protocol.n_dims}."
        )
    if traits.knows_classes:
        require_source_classes(bench)
    learned, training = _learned(job, folders)
    if traits.knows_classes:
        bench.source_classes = source_classes(job, folders, bench)
    backbone = bench.backbone
    own = {k: v for k, v in learned.items() if k.startswith("backbone.")}
    if own:
        load_weights(backbone, own, f"training {str(job.training_key)[:12]}")
    # From here on it is the network that is tested: compressed, where it is to be.
    backbone = bench.backbone = deploy(backbone.eval())
    rest = {k: v.to(bench.device) for k, v in learned.items() if not k.startswith("backbone.")}
    before = weights_digest(backbone)
    algorithm = make(bench.entry, adapt_params(bench.entry, bench.params))
    if not isinstance(algorithm, Algorithm):
        raise ContractError(
            f"{bench.entry.name}: the factory returned {type(algorithm).__name__}, and a "
            "medbench.api.Algorithm is needed."
        )
    enter("prepare")
    algorithm.prepare(backbone, rest)
    if target.multilabel:
        algorithm = BinaryRelevance(algorithm, batched=traits.batched, image_dims=bench.input_dims)
    lanes = Lanes(
        bench,
        algorithm,
        block,
        folders.features,
        episodes_per_block=manner.episodes_per_block,
        quiet=quiet,
    )
    with quiet.alone():
        enter("cost_lane")
        costs, cost_answers = lanes.cost(counts["cost_episodes"])
    costs |= {
        "exclusive": quiet.disturbed_by is None,
        "not_exclusive_because": quiet.disturbed_by,
    }
    enter("accuracy_lane")
    answers = lanes.accuracy(progress)
    if weights_digest(backbone) != before:
        raise ContractError(
            f"{bench.entry.name} changed the backbone it was given (parameters or buffers); adapt "
            "a copy, or use torch.func.functional_call."
        )
    enter("check")
    costs |= lanes.compare(answers, cost_answers)
    enter("score")
    measured, groups = lanes.measured(answers), lanes.by_group(answers)
    picture = lanes.pictured(cost_answers)
    enter("save")
    shown: dict[str, Any] = {}
    if target.modalities or target.inputs.label != EVERYTHING:
        names = [m.name for m in target.opened.dataset.info.modalities]
        shown["inputs"] = told(target.inputs, names, target.missing(block))
    data = header(job) | {
        "status": "ok",
        "earlier_tries": list(manner.earlier),
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
            **({} if traits.uses_support else {"uses_support": False}),
        },
        "overlap": _overlap(bench, job),
        "licences": _licences(bench, job),
        **shown,
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
    write_record(folders.record(job), data, measured, groups, picture)


def _learned(job: Job, folders: Folders) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """What the cell's training left, and its record. Raises when it failed."""
    if job.training_key is None:
        return {}, None
    folder = folders.out / "trainings" / job.training_key
    record = json.loads((folder / "training.json").read_text())
    weights = folder / "learned.safetensors"
    known = record.get("learned_digest")
    if known is not None and file_digest(weights) != known:
        raise DataError(
            f"The weights of training {job.training_key[:12]} were damaged since it ended. "
            "'medbench retry' trains it again."
        )
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
    return load_file(weights), told


def _licences(bench: Bench, job: Job) -> dict[str, str]:
    opened = bench.target.opened
    return {opened.name: opened.dataset.info.licence, **job.request["source_licences"]}


def _overlap(bench: Bench, job: Job) -> list[str]:
    """What the model may have seen of the target's domain before the test, in words."""
    found = []
    target = bench.target
    domain = target.opened.dataset.info.domain
    if bench.entry.spec.traits.meta_trains or job.training_key is not None:
        domains = job.request["source_domains"]
        same = {source for source, of_source in domains.items() if of_source == domain}
        if same and target.protocol.setting == "within_dataset":
            found.append("meta-trained on other classes of the same dataset")
        elif same and target.protocol.setting == "leave_one_site_out":
            found.append("meta-trained on other sites of the same dataset")
        elif same and target.protocol.setting == "personalised":
            found.append("meta-trained on other patients of the same dataset")
        elif same:
            found.append(f"meta-trained on the same domain: {', '.join(sorted(same))}")
    asked = job.request["backbone"]
    spec = layers(bench.registry, asked["name"], asked["params"])[-1].entry.spec
    if job.request["backbone"]["weights"] == "pretrained":
        words = spec.pretrained_on.lower()
        if domain.lower() in words or target.opened.name.lower() in words:
            found.append(f"pretrained on the target's domain ({spec.pretrained_on})")
    elif job.request["backbone"]["weights"] != "random":
        found.append("weights from a file: what they were trained on is not known")
    return found
