"""Suite and registry in, trainings and cells out, in order, each with its content key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medbench.api import Place
from medbench.config import AlgorithmRef, BackboneRef, BudgetRef, ProtocolRef, Suite
from medbench.errors import ProtocolError
from medbench.ingredients import SCORING, Ingredients, Part, adapt_params, key_of, train_params
from medbench.jobs import Job
from medbench.plugins import Registry
from medbench.protocols import MAIN_METRIC, Protocol, load_protocol
from medbench.records import SLUG, slug
from medbench.tasks import Target, resolve

__all__ = ["Plan", "adapt_params", "build_plan", "differences", "train_params"]


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

    Nothing is trained. Jobs share the parts of their ingredients and requests, which are to be
    read and not changed. Raises what `medbench.tasks.resolve` raises, before anything runs.
    """
    trainings: dict[str, Job] = {}
    cells: list[Job] = []
    left_out: list[str] = []
    ranked_by: dict[str, str] = {}
    for ref in suite.protocols:
        protocol, entry = load_protocol(registry, ref.name)
        ranked_by[MAIN_METRIC[protocol.task_kind]] = protocol.name
        if len(ranked_by) > 1:
            told = ", ".join(f"{name} by {metric}" for metric, name in ranked_by.items())
            raise ProtocolError(
                f"suite {suite.name}: its protocols are ranked by different metrics ({told}), and "
                "a leaderboard has one. Make a suite for each task kind."
            )
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
        rules = _Rules(suite, registry, device, Ingredients(registry, protocol, entry), {})
        for target in resolved.targets:
            tell(f"drawing the episodes of {target.id}")
            common = Part.of(rules.ingredients.target(target, counts))
            for backbone in suite.backbones:
                for algorithm in suite.algorithms:
                    combination = _Combination(rules, target, backbone, algorithm)
                    cells += combination.cells(common, counts, trainings)
    return Plan(suite, tuple(trainings.values()), tuple(cells), tuple(left_out))


def _counts(protocol: Protocol, ref: ProtocolRef) -> dict[str, int]:
    episodes = ref.episodes or protocol.episodes
    # Fewer episodes than the cost lane wants: the cost lane takes what there is.
    return {
        "episodes": episodes,
        "cost_episodes": min(ref.cost_episodes or protocol.cost_episodes, episodes),
    }


@dataclass(frozen=True)
class _Rules:
    """What all jobs of one protocol share."""

    suite: Suite
    registry: Registry
    device: str
    ingredients: Ingredients
    # By sources, backbone, algorithm and seed: targets of several shots have one training.
    trained: dict[tuple[Any, ...], Job]


@dataclass(frozen=True)
class _Combination:
    """The jobs of one algorithm on one backbone and one target: a cell for every seed."""

    rules: _Rules
    target: Target
    backbone: BackboneRef
    algorithm: AlgorithmRef

    def cells(
        self, common: Part, counts: Mapping[str, int], trainings: dict[str, Job]
    ) -> Iterator[Job]:
        """Cells in the order of the seeds; a training that is new is put into `trainings`."""
        target, known = self.target, self.rules.ingredients
        words = (target.id, self.backbone.shown, self.algorithm.shown)
        title, file = " / ".join(words), slug(target.protocol.name, *words, limit=None)
        fixed = {
            "scoring": Part.of(SCORING),
            "algorithm": known.algorithm(self.algorithm),
            "backbone": Part.of(None),
            "target": common,
            "training": Part.of(None),
            "seed": Part.of(None),
            "device": Part.of(self.rules.device),
        }
        request = {**self._request, **counts}
        trains = self._trains()
        for seed in self.rules.suite.seeds:
            backbone = known.backbone(self.backbone, seed, len(target.modalities) or 1)
            parts = {**fixed, "seed": Part.of(seed), "backbone": backbone}
            if trains:
                training = self._training(backbone, parts["seed"], trainings)
                parts["training"] = Part.of(training.key)
            yield Job(
                kind="cell",
                key=key_of(parts),
                title=f"{title} / seed{seed}",
                slug=f"{file}_seed{seed}"[:SLUG],
                ingredients={name: part.value for name, part in parts.items()},
                training_key=parts["training"].value,
                request={**request, "seed": seed},
            )

    def _trains(self) -> bool:
        traits, target = self._spec.traits, self.target
        learns = self.rules.ingredients.learns(self.backbone)
        # The cell of an algorithm that cannot do such tasks, or of a network that cannot see such
        # images, says so; it needs no training for that.
        if not (traits.meta_trains or learns):
            return False
        if target.protocol.task_kind not in traits.task_kinds:
            return False
        if target.protocol.n_dims not in traits.n_dims:
            return False
        if not self.rules.ingredients.sees(self.backbone):
            return False
        if not target.sources and learns:
            raise ProtocolError(
                f"protocol {target.protocol.name}, target {target.id}: {self.backbone.name} learns "
                "from source images, and none are left. Choose another backbone."
            )
        if traits.knows_classes and not target.protocol.tests_source_classes:
            return False
        if not target.sources:
            params = self.rules.ingredients.algorithm(self.algorithm).value["params"]
            if traits.does_without_sources(params):
                return False
            ways = [f"{k}: {v}" for k, values in traits.sources_optional.items() for v in values]
            advice = f" With params {{{' or '.join(ways)}}} it needs nothing." if ways else ""
            raise ProtocolError(
                f"protocol {target.protocol.name}, target {target.id}: {self.algorithm.name} "
                f"meta-trains, and nothing is left to train on.{advice}"
            )
        return True

    def _training(self, backbone: Part, seed: Part, trainings: dict[str, Job]) -> Job:
        place = (*map(id, self.target.sources), id(self.backbone), id(self.algorithm), seed.value)
        found = self.rules.trained.get(place)
        if found is None:
            # Several algorithms may share it; the first that asks names it.
            found = self._new_training(backbone, seed)
            found = self.rules.trained[place] = trainings.setdefault(found.key, found)
        return found

    def _new_training(self, backbone: Part, seed: Part) -> Job:
        parts = {**self._train_parts, "backbone": backbone, "seed": seed}
        title, file = self._train_words
        return Job(
            kind="training",
            key=key_of(parts),
            title=f"{title} / seed{seed.value}",
            slug=f"{file}_seed{seed.value}"[:SLUG],
            ingredients={name: part.value for name, part in parts.items()},
            training_key=None,
            request={
                **self._request,
                "seed": seed.value,
                "parallel": self._spec.traits.parallel,
            },
        )

    @cached_property
    def _train_parts(self) -> dict[str, Part]:
        known, own = self.rules.ingredients, self.rules.ingredients.trainer(self.algorithm)
        return {
            "trainer": own["trainer"],
            "plugin": own["plugin"],
            "params": own["params"],
            "backbone": Part.of(None),
            "sources": known.sources(self.target),
            "shape": own["shape"],
            "budget_images": Part.of(self._budget_images),
            "validation_episodes": Part.of(self.target.protocol.validation_episodes),
            "seed": Part.of(None),
            "device": Part.of(self.rules.device),
        }

    @cached_property
    def _train_words(self) -> tuple[str, str]:
        """Title and file name of the trainings, but for the seed."""
        spec = self._spec
        trainer = spec.name if spec.traits.meta_trains else f"the backbone for {spec.name}"
        if spec.trainer:
            trainer = f"{spec.trainer.partition(':')[2]} for {self.algorithm.shown}"
        words = (trainer, self.backbone.shown, _sources_word(self.target))
        return " / ".join(words), slug("train", *words, limit=None)

    @property
    def _spec(self) -> Any:
        return self.rules.registry.get("algorithms", self.algorithm.name).spec

    @cached_property
    def _budget_images(self) -> int:
        rules = self.target.protocol.train
        own = self.algorithm.budget or self.rules.suite.budget
        own = own or BudgetRef(episodes=rules.episodes)
        if own.images is not None:
            return own.images
        shapes = [s.train_shape for s in self.target.sources]
        largest = max((s.way * (s.shot + s.query) for s in shapes), default=1)
        return int(own.episodes or 0) * largest

    @cached_property
    def _request(self) -> dict[str, Any]:
        target, suite = self.target, self.rules.suite
        # Only of protocols with several inputs, as requests of older records are without.
        shown = {"inputs": target.inputs.label} if target.protocol.holds_back else {}
        return {
            "protocol": target.protocol.name,
            "target_dataset": target.dataset_id,
            **shown,
            "shot": target.shape.shot,
            "backbone": self.backbone.model_dump(),
            "algorithm": self.algorithm.model_dump(),
            "seed": None,
            "budget_images": self._budget_images,
            "sources": [s.id for s in target.sources],
            # What a cell tells of its sources; it opens its target alone.
            "source_domains": {s.id: s.opened.dataset.info.domain for s in target.sources},
            "source_licences": {
                s.opened.name: s.opened.dataset.info.licence for s in target.sources
            },
            "non_commercial": suite.non_commercial,
            "device": self.rules.device,
            "suite": suite.name,
            **(
                {"support_from": target.protocol.support_from}
                if target.protocol.setting == "personalised"
                else {}
            ),
        }


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


def _sources_word(target: Target) -> str:
    ids = [s.id for s in target.sources]
    word = ids[0] if len(ids) == 1 else f"{len(ids)} sources for {target.dataset_id}"
    chosen = target.inputs.modalities
    return f"{word}[{'+'.join(chosen)}]" if chosen else word
