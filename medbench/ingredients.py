"""What trainings and cells depend on: the ingredients that content keys are hashes of.

A plan of a hundred thousand cells has few distinct ingredients: each is looked up, and written as
canonical JSON, once; a key then joins these texts and hashes them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medbench.config import AlgorithmRef, BackboneRef
from medbench.episodes import TooFewPatients
from medbench.episodes import digest as episodes_digest
from medbench.errors import ProtocolError
from medbench.files import bytes_digest, canonical
from medbench.modalities import Chosen, drawn_digest
from medbench.nesting import Layer, layers, mismatch
from medbench.opened import Opened
from medbench.plugins import Entry, Registry, resolve_params
from medbench.pools import NO_LABEL, SourceSet
from medbench.protocols import EVERYTHING, TARGETED, Protocol
from medbench.sourcecode import source_digest
from medbench.tasks import Target
from medbench.weights import weights_ingredient

# Raised when scoring changes in a way that makes old scores incomparable.
SCORING = 1


@dataclass(frozen=True, slots=True)
class Part:
    """An ingredient that many keys share, and its canonical JSON."""

    value: Any
    text: bytes

    @classmethod
    def of(cls, value: Any) -> Part:
        """The ingredient `value`, which must not change any more."""
        return cls(value, canonical(value))


def key_of(parts: Mapping[str, Part]) -> str:
    """What `medbench.files.content_key` gives for the values of `parts`; names are plain words.

    >>> from medbench.files import content_key
    >>> key_of({"b": Part.of([1]), "a": Part.of(None)}) == content_key({"b": [1], "a": None})
    True
    """
    members = [b'"%s":%s' % (name.encode(), parts[name].text) for name in sorted(parts)]
    return bytes_digest(b"{%s}" % b",".join(members))


class Ingredients:
    """The ingredients of one protocol's jobs.

    References and data sets are known by identity: whoever asks must keep them alive as long as
    this object.
    """

    def __init__(self, registry: Registry, protocol: Protocol, entry: Entry) -> None:
        self._registry, self._protocol, self._entry = registry, protocol, entry
        self._known: dict[tuple[Any, ...], Part] = {}

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Part:
        if key not in self._known:
            self._known[key] = Part.of(make())
        return self._known[key]

    def algorithm(self, ref: AlgorithmRef) -> Part:
        """The algorithm of a cell, with its parameters."""

        def make() -> dict[str, Any]:
            entry = self._registry.get("algorithms", ref.name)
            return {
                "name": ref.name,
                "version": entry.spec.version,
                "plugin": _plugin(entry, entry.spec.factory),
                "traits": _traits(entry),
                "params": resolve_params(entry, ref.params),
            }

        return self._once(("algorithm", id(ref)), make)

    def trainer(self, ref: AlgorithmRef) -> dict[str, Part]:
        """Of a training: its trainer, the trainer's code, parameters and the shape of tasks."""
        key = ("trainer", id(ref))
        if key not in self._known:
            entry = self._registry.get("algorithms", ref.name)
            factory = entry.spec.trainer or entry.spec.factory
            params = train_params(entry, ref)
            shape = self._protocol.train.model_dump(exclude={"episodes"})
            found = {
                "trainer": factory,
                "plugin": _plugin(entry, factory),
                "params": params,
                "shape": {k: params.get(f"train_{k}") or v for k, v in shape.items()},
            }
            self._known[key] = Part({k: Part.of(v) for k, v in found.items()}, b"")
        parts: dict[str, Part] = self._known[key].value
        return parts

    def backbone(self, ref: BackboneRef, seed: int, n_modalities: int = 1) -> Part:
        """The backbone of a cell or training, with its weights before either."""

        def make() -> dict[str, Any]:
            outermost, *inner = layers(self._registry, ref.name, ref.params)
            innermost = inner[-1] if inner else outermost
            found = _network(outermost) | {
                "image_size": self._protocol.image_size,
                "channels": self._protocol.channels,
                "weights": weights_ingredient(innermost.entry, ref, seed),
            }
            # Only where they say something, so that keys of older records stay what they are.
            if inner:
                found["wraps"] = [_network(layer) for layer in inner]
            if self._protocol.n_dims != 2:
                found["n_dims"] = self._protocol.n_dims
            if n_modalities > 1:
                found["modalities"] = n_modalities
            return found

        # A file of weights is the same, and read once, for every seed.
        by_seed = seed if ref.weights == "random" else None
        return self._once(("backbone", id(ref), by_seed, n_modalities), make)

    def sees(self, ref: BackboneRef) -> bool:
        """Whether a backbone takes the protocol's images, or volumes."""
        wanted = self._protocol.n_dims

        def make() -> bool:
            return mismatch(self._registry, ref.name, ref.params, wanted) is None

        return bool(self._once(("sees", id(ref)), make).value)

    def learns(self, ref: BackboneRef) -> bool:
        """Whether a backbone learns from source images, whatever the algorithm does."""

        def make() -> bool:
            found = layers(self._registry, ref.name, ref.params)
            return any(layer.entry.spec.learns for layer in found)

        return bool(self._once(("learns", id(ref)), make).value)

    def sources(self, target: Target) -> Part:
        """What may be meta-trained on for a target."""
        key = ("sources", *map(id, target.sources))
        return self._once(key, lambda: [self._source(s) for s in target.sources])

    def target(self, target: Target, counts: Mapping[str, int]) -> dict[str, Any]:
        """What a cell is tested on, with the digest of its episodes."""
        try:
            block = target.pool.draw(target.shape, target.episode_key, 0, counts["episodes"])
        except TooFewPatients as error:
            names = (*target.opened.dataset.info.label_names, NO_LABEL)
            told = error.told(repr(names[error.label]))
            where = f"protocol {target.protocol.name}, target {target.id}"
            raise ProtocolError(f"{where}: {told}") from error
        found: dict[str, Any] = {
            "protocol": target.protocol.id,
            "protocol_plugin": self._entry.plugin.distribution,
            "dataset": self._dataset(target.opened),
            "id": target.id,
            "episodes": episodes_digest(block),
            "n_episodes": counts["episodes"],
            "cost_episodes": counts["cost_episodes"],
        }
        if target.inputs.label != EVERYTHING:
            found["inputs"] = {
                "modalities": [m.name for m in target.opened.dataset.info.modalities],
                "label": target.inputs.label,
                "missing": drawn_digest(target.missing(block)),
            }
        return found

    def _dataset(self, opened: Opened) -> Any:
        def make() -> dict[str, Any]:
            return {
                "name": opened.name,
                "version": opened.entry.spec.version,
                # Without a column of times params are what they were before there was one.
                "params": {
                    k: v for k, v in opened.params.items() if (k, v) != ("time_column", None)
                },
                "digest": opened.digest,
            }

        return self._once(("dataset", id(opened)), make).value

    def _source(self, source: SourceSet) -> dict[str, Any]:
        images = source.train.images
        found: dict[str, Any] = {
            "dataset": self._dataset(source.opened),
            "site": source.site,
            "classes": [int(c) for c in source.train.classes],
            "n_images": len(images),
        }
        if isinstance(source.opened.dataset, Chosen):
            found["modalities"] = [m.name for m in source.opened.dataset.info.modalities]
        if self._protocol.task_kind in TARGETED:
            # Which images show nothing of the test depends on the target.
            found["images"] = bytes_digest(np.ascontiguousarray(images, "<i8").tobytes())
        if self._protocol.setting == "personalised":
            # Tasks are of one patient each, with support of that patient or of others.
            found["images"] = bytes_digest(np.ascontiguousarray(images, "<i8").tobytes())
            found["support_from"] = self._protocol.support_from
        return found


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


def _network(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "version": layer.entry.spec.version,
        "plugin": _plugin(layer.entry, layer.entry.spec.factory),
        "params": layer.params,
    }


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
    # How many processes may share a training is no part of what is learned.
    del found["parallel"]
    # Whether a cell goes without training stands in its key already.
    del found["sources_optional"]
    # Only where they say something, so that keys of older records stay what they are.
    found |= {"knows_classes": True} if found.pop("knows_classes") else {}
    found |= {"uses_support": False} if not found.pop("uses_support") else {}
    found |= {"n_dims": own} if (own := found.pop("n_dims")) != [2, 3] else {}
    return found
