"""Cells run again from their records, to see whether the numbers come out as told."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.api import Place, derive_seed
from medbench.config import Suite
from medbench.engine.coordinator import Watch, run_plan
from medbench.engine.local import LocalExecutor
from medbench.engine.slots import cpu_slots, gpu_slots
from medbench.errors import FAILURES, DataError, UsageError
from medbench.leaderboard.names import MAIN
from medbench.plan import Plan, build_plan, differences
from medbench.plugins import Registry
from medbench.records import Record, read_record

# Ingredients that may differ without the question being another one: the code, and the machine.
_MAY_CHANGE = ("plugin.source", "plugin.version", "device", "training", "cost_episodes")


@dataclass(frozen=True)
class Rerun:
    """A record, and what came of running its cell again.

    ``changed``: ingredients that are not what they were, in words. ``error``: why there is no new
    record. ``episodes``: those compared. ``means``: metric to its mean then and now, over these.
    ``metric``: the main one of the task kind; ``equal``: the share of episodes where it is the
    same.
    """

    record: Record
    changed: tuple[str, ...]
    error: str = ""
    episodes: tuple[int, ...] = ()
    means: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    equal: float = 0.0
    metric: str = MAIN[0]

    def agrees(self, tolerance: float) -> bool:
        """Whether the mean of `metric` came out within `tolerance` of what was recorded."""
        if self.error:
            return False
        then, now = self.means[self.metric]
        return abs(then - now) <= tolerance


def asked_target(request: Mapping[str, Any]) -> str:
    """The target of a record's request as a suite names it."""
    shown = f"[{request['inputs']}]" if "inputs" in request else ""
    return f"{request['target_dataset']}{shown}"


def suite_of(record: Record, episodes: int | None, weights: str | None) -> Suite:
    """The suite of the one cell that a record is of, perhaps with fewer episodes.

    `weights`: the file a backbone's weights come from, where they do: a record has only its name.
    Raises `UsageError` when they are needed and not given.
    """
    request = record.data["request"]
    backbone = dict(request["backbone"])
    if backbone["weights"] not in ("random", "pretrained"):
        if weights is None:
            raise UsageError(
                f"{record.path}: its backbone has weights from a file, {backbone['weights']!r}. "
                "Give that file with --weights."
            )
        backbone["weights"] = weights
    protocol = {
        "name": request["protocol"],
        "episodes": episodes or request["episodes"],
        "cost_episodes": min(request["cost_episodes"], episodes or request["episodes"]),
        "shots": [request["shot"]],
        "targets": [asked_target(request)],
    }
    return Suite.model_validate(
        {
            "name": request["suite"],
            "protocols": [protocol],
            "backbones": [backbone],
            "algorithms": [request["algorithm"]],
            "seeds": [request["seed"]],
            "budget": {"images": request["budget_images"]} if request["budget_images"] else None,
            "non_commercial": request["non_commercial"],
        }
    )


def plan_again(
    record: Record,
    registry: Registry,
    place: Place,
    *,
    device: str,
    weights: str | None,
    episodes: int | None = None,
) -> tuple[Plan, list[str]]:
    """The plan of a record's cell on the data here, and what changed since, in words.

    Raises `DataError` when it cannot be the same cell: other data, episodes, version or
    parameters; and what planning raises.
    """
    suite = suite_of(record, episodes, weights)
    plan = build_plan(suite, registry, place, device=device)
    if len(plan.cells) != 1:
        raise DataError(f"{record.path}: it stands for {len(plan.cells)} cells here, not for one.")
    (job,) = plan.cells
    old: dict[str, Any] = {**record.data["ingredients"]}
    new: dict[str, Any] = {**job.ingredients}
    if episodes is not None:
        # A prefix of the frozen list has a digest of its own.
        old["target"] = {k: v for k, v in old["target"].items() if "episodes" not in k}
        new["target"] = {k: v for k, v in new["target"].items() if "episodes" not in k}
    changed = differences(old, new)
    grave = [c for c in changed if not any(m in c.partition(": ")[0] for m in _MAY_CHANGE)]
    # Records of earlier versions tell less: what they do not tell cannot be held against them.
    grave = [c for c in grave if ": None -> " not in c]
    if grave:
        raise DataError(
            f"{record.path}: it is not the cell that can be run here: {'; '.join(grave[:3])}."
        )
    return plan, changed


def run_again(
    record: Record,
    registry: Registry,
    place: Place,
    out: Path,
    *,
    device: str,
    threads: int,
    weights: str | None = None,
    sample: Sequence[int] | None = None,
    watch: Watch = lambda event: None,
) -> Rerun:
    """Run the cell of a record again below `out`, and compare episode by episode.

    With `sample` only these episodes are compared, and only as many are run as hold them all.
    Raises what planning raises, `OutputError`, and `DataError` for a record that was not measured.
    """
    if not record.ok:
        raise DataError(
            f"{record.path}: its status is {record.data['status']}: nothing to compare."
        )
    then = record.scores()
    metric = next((m for m in MAIN if m in then), MAIN[0])
    n = len(then[metric])
    chosen = list(range(n)) if sample is None else sorted(sample)
    needed = None if sample is None else max(chosen) + 1
    plan, changed = plan_again(
        record, registry, place, device=device, weights=weights, episodes=needed
    )
    (job,) = plan.cells
    executor = LocalExecutor(
        out,
        place,
        cpu_slots(1, threads) if device == "cpu" else gpu_slots(["0"], 1),
        threads=threads,
        timeouts={"cell": plan.suite.cell_timeout_s, "training": plan.suite.training_timeout_s},
    )
    text = _text(plan.suite)
    run_plan(plan, registry, out, executor, suite_text=text, retry=FAILURES, watch=watch)
    again = read_record(out / "records" / f"{job.file_stem}.json")
    if not again.ok:
        return Rerun(record, tuple(changed), str(again.data.get("error", "")))
    now = again.scores()
    means = {}
    for name in then.keys() & now.keys():
        pair = np.stack([then[name][chosen], now[name][chosen]])
        pair = pair[:, np.isfinite(pair).all(axis=0)]
        if pair.size:
            means[name] = (float(pair[0].mean()), float(pair[1].mean()))
    gap = np.abs(then[metric][chosen] - now[metric][chosen])
    # An episode without a value is the same where it has none again.
    same = (gap < 1e-9) | (np.isnan(then[metric][chosen]) & np.isnan(now[metric][chosen]))
    return Rerun(
        record,
        tuple(changed),
        "",
        tuple(chosen),
        dict(sorted(means.items())),
        float(same.mean()),
        metric,
    )


def _text(suite: Suite) -> str:
    import yaml

    return yaml.safe_dump(suite.model_dump(mode="json", exclude_none=True), sort_keys=False)


def draw_sample(
    records: Sequence[Record], n: int, n_cells: int | None, seed: int
) -> list[tuple[Record, list[int]]]:
    """`n` random episodes of random measured cells, at most `n_cells` of them, by record.

    The draw depends on `seed` and the records alone. Raises `DataError` when none was measured.
    """
    measured = sorted((r for r in records if r.ok), key=lambda r: r.stem)
    if not measured:
        raise DataError("None of the records was measured: there is nothing to verify.")
    draw = random.Random(derive_seed("verify", seed, *(r.key for r in measured)))
    cells = draw.sample(measured, min(len(measured), n_cells or n))
    sizes = {r.stem: int(r.data["n_episodes"]) for r in cells}
    found: dict[str, list[int]] = {r.stem: [] for r in cells}
    for i in range(min(n, sum(sizes.values()))):
        # Round the cells in turn, skipping those whose episodes are all taken.
        stem = cells[i % len(cells)].stem
        if len(found[stem]) == sizes[stem]:
            stem = next(s for s in found if len(found[s]) < sizes[s])
        left = sorted(set(range(sizes[stem])) - set(found[stem]))
        found[stem].append(draw.choice(left))
    return [(r, sorted(found[r.stem])) for r in cells if found[r.stem]]
