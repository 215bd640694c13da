"""Suite and registry in, trainings and cells out, in order, each with its content key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.api import Place
from medbench.config import AlgorithmRef, BackboneRef, BudgetRef, ProtocolRef, Suite
from medbench.episodes import digest as episodes_digest
from medbench.errors import ProtocolError
from medbench.files import content_key
from medbench.jobs import Job
from medbench.opened import Opened
from medbench.plugins import Entry, Registry, resolve_params
from medbench.pools import SourceSet
from medbench.protocols import Protocol, load_protocol
from medbench.records import slug
from medbench.sourcecode import source_digest
from medbench.tasks import Resolved, Target, resolve
from medbench.weights import weights_ingredient

# Raised when scoring changes in a way that makes old scores incomparable.
SCORING = 1


@dataclass(frozen=True)
class Plan:
    """What a run will do: trainings before the cells that need them."""

    suite: Suite
    trainings: tuple[Job, ...]
    cells: tuple[Job, ...]
    left_out: tuple[str, ...]


def build_plan(
    suite: Suite,
    registry: Registry,
    place: Place,
    *,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Resolve every protocol on the data here, and key every training and cell.

    Nothing is trained. Raises what `medbench.tasks.resolve` raises, before anything runs.
    """
    trainings: dict[str, Job] = {}
    cells: list[Job] = []
    left_out: list[str] = []
    for ref in suite.protocols:
        protocol, entry = load_protocol(registry, ref.name)
        tell(f"reading the data of {protocol.name}")
        resolved = resolve(
            registry,
            protocol,
            place,
            non_commercial=suite.non_commercial,
            shots=ref.shots,
            targets=ref.targets,
        )
        if resolved.left_out:
            left_out.append(f"{protocol.name} goes without {', '.join(resolved.left_out)}")
        counts = _counts(protocol, ref)
        for target in resolved.targets:
            tell(f"drawing the episodes of {target.id}")
            common = _target_ingredients(target, entry, counts)
            for backbone in suite.backbones:
                for algorithm in suite.algorithms:
                    for seed in suite.seeds:
                        bb = _backbone_ingredients(registry, backbone, protocol, seed)
                        bb["weights"] = weights_ingredient(
                            registry.get("backbones", backbone.name), backbone, seed
                        )
                        one = _One(registry, suite, resolved, target, backbone, algorithm, seed)
                        training = one.training(bb, device, ref)
                        if training is not None:
                            training = trainings.setdefault(training.key, training)
                        cells.append(one.cell(bb, common, training, device, ref, counts))
    return Plan(suite, tuple(trainings.values()), tuple(cells), tuple(left_out))


def _counts(protocol: Protocol, ref: ProtocolRef) -> dict[str, int]:
    episodes = ref.episodes or protocol.episodes
    # Fewer episodes than the cost lane wants: the cost lane takes what there is.
    return {
        "episodes": episodes,
        "cost_episodes": min(ref.cost_episodes or protocol.cost_episodes, episodes),
    }


@dataclass(frozen=True)
class _One:
    """One combination of the suite's product."""

    registry: Registry
    suite: Suite
    resolved: Resolved
    target: Target
    backbone: BackboneRef
    algorithm: AlgorithmRef
    seed: int

    @property
    def budget_images(self) -> int:
        rules = self.target.protocol.train
        own = self.algorithm.budget or self.suite.budget or BudgetRef(episodes=rules.episodes)
        if own.images is not None:
            return own.images
        shapes = [s.train_shape for s in self.target.sources]
        largest = max((s.way * (s.shot + s.query) for s in shapes), default=1)
        return int(own.episodes or 0) * largest

    def training(self, bb: Mapping[str, Any], device: str, ref: ProtocolRef) -> Job | None:
        entry = self.registry.get("algorithms", self.algorithm.name)
        target, protocol = self.target, self.target.protocol
        traits = entry.spec.traits
        # The cell of an algorithm that cannot do such tasks says so; it needs no training for that.
        if not traits.meta_trains or protocol.task_kind not in traits.task_kinds:
            return None
        if not target.sources:
            raise ProtocolError(
                f"protocol {protocol.name}, target {target.id}: {self.algorithm.name} meta-trains, "
                "and nothing is left to train on."
            )
        params = train_params(entry, self.algorithm)
        shape = protocol.train.model_dump(exclude={"episodes"})
        ingredients = {
            "trainer": entry.spec.trainer or entry.spec.factory,
            "plugin": _plugin(entry, entry.spec.trainer or entry.spec.factory),
            "params": params,
            "backbone": dict(bb),
            "sources": [_source_ingredients(s) for s in target.sources],
            "shape": {k: params.get(f"train_{k}") or v for k, v in shape.items()},
            "budget_images": self.budget_images,
            "validation_episodes": protocol.validation_episodes,
            "seed": self.seed,
            "device": device,
        }
        trainer = entry.spec.trainer.partition(":")[2] if entry.spec.trainer else entry.name
        if entry.spec.trainer:
            # Several algorithms may share it; the first that asks names it.
            trainer = f"{trainer} for {self.algorithm.shown}"
        words = (trainer, self.backbone.shown, _sources_word(target), f"seed{self.seed}")
        return Job(
            kind="training",
            key=content_key(ingredients),
            title=" / ".join(map(str, words)),
            slug=slug("train", *words),
            ingredients=ingredients,
            training_key=None,
            request=self._request(device, ref),
        )

    def cell(
        self,
        bb: Mapping[str, Any],
        common: Mapping[str, Any],
        training: Job | None,
        device: str,
        ref: ProtocolRef,
        counts: Mapping[str, int],
    ) -> Job:
        entry = self.registry.get("algorithms", self.algorithm.name)
        ingredients = {
            "scoring": SCORING,
            "algorithm": {
                "name": self.algorithm.name,
                "version": entry.spec.version,
                "plugin": _plugin(entry, entry.spec.factory),
                "traits": _traits(entry),
                "params": resolve_params(entry, self.algorithm.params),
            },
            "backbone": dict(bb),
            "target": dict(common),
            "training": training.key if training else None,
            "seed": self.seed,
            "device": device,
        }
        target, protocol = self.target, self.target.protocol
        words = (
            target.id,
            self.backbone.shown,
            self.algorithm.shown,
            f"seed{self.seed}",
        )
        return Job(
            kind="cell",
            key=content_key(ingredients),
            title=" / ".join(map(str, words)),
            slug=slug(protocol.name, *words),
            ingredients=ingredients,
            training_key=training.key if training else None,
            request={**self._request(device, ref), **counts},
        )

    def _request(self, device: str, ref: ProtocolRef) -> dict[str, Any]:
        target = self.target
        return {
            "protocol": target.protocol.name,
            "target_dataset": target.dataset_id,
            "shot": target.shape.shot,
            "backbone": self.backbone.model_dump(),
            "algorithm": self.algorithm.model_dump(),
            "seed": self.seed,
            "budget_images": self.budget_images,
            "sources": [s.id for s in target.sources],
            "non_commercial": self.suite.non_commercial,
            "device": device,
            "suite": self.suite.name,
        }


def train_params(entry: Entry, ref: AlgorithmRef) -> dict[str, Any]:
    """The resolved parameters that training depends on."""
    stages = {p.name: p.stage for p in entry.spec.parameters}
    params = resolve_params(entry, ref.params)
    return {name: value for name, value in params.items() if stages[name] != "adapt"}


def adapt_params(entry: Entry, params: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved parameters that the factory takes: all, or those its trainer leaves to it."""
    stages = {p.name: p.stage for p in entry.spec.parameters}
    apart = entry.spec.trainer is not None
    return {k: v for k, v in params.items() if not (apart and stages[k] == "train")}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Which ingredients differ, as ``path: old -> new``: why a record is stale."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    if old == new:
        return []
    if isinstance(old, Sequence) and not isinstance(old, str) and isinstance(new, Sequence):
        if len(old) == len(new):
            pairs = zip(old, new, strict=True)
            return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{path}.{i}")]
        return [f"{path}: {len(old)} entries -> {len(new)}"]
    return [f"{path}: {old} -> {new}"]


def _plugin(entry: Entry, factory: str) -> dict[str, str]:
    return {
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "factory": factory,
        "source": source_digest(factory.partition(":")[0]),
    }


def _traits(entry: Entry) -> dict[str, Any]:
    # Through JSON and back: what a record holds must equal what is planned again later.
    found: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(entry.spec.traits), default=list)
    )
    return found


def _backbone_ingredients(
    registry: Registry, ref: BackboneRef, protocol: Protocol, seed: int
) -> dict[str, Any]:
    entry = registry.get("backbones", ref.name)
    return {
        "name": ref.name,
        "version": entry.spec.version,
        "plugin": _plugin(entry, entry.spec.factory),
        "params": resolve_params(entry, ref.params),
        "image_size": protocol.image_size,
        "channels": protocol.channels,
    }


def _dataset_ingredients(opened: Opened) -> dict[str, Any]:
    return {
        "name": opened.name,
        "version": opened.entry.spec.version,
        "params": dict(opened.params),
        "digest": opened.dataset.digest,
    }


def _source_ingredients(source: SourceSet) -> dict[str, Any]:
    return {
        "dataset": _dataset_ingredients(source.opened),
        "site": source.site,
        "classes": [int(c) for c in source.train.classes],
        "n_images": len(source.train.images),
    }


def _target_ingredients(target: Target, entry: Entry, counts: Mapping[str, int]) -> dict[str, Any]:
    block = target.pool.draw(target.shape, target.episode_key, 0, counts["episodes"])
    return {
        "protocol": target.protocol.id,
        "protocol_plugin": entry.plugin.distribution,
        "dataset": _dataset_ingredients(target.opened),
        "id": target.id,
        "episodes": episodes_digest(block),
        "n_episodes": counts["episodes"],
        "cost_episodes": counts["cost_episodes"],
    }


def _sources_word(target: Target) -> str:
    ids = [s.id for s in target.sources]
    return ids[0] if len(ids) == 1 else f"{len(ids)} sources for {target.dataset_id}"
