"""Which images a protocol trains on, validates on and tests on; pure numpy.

A *target* is what a cell is tested on: a dataset (or one site of it), with its classes, ways and
shots. Its *sources* are what may be meta-trained on for it. Here the rules are kept that make a
comparison fair: support from the train images and queries from the test images, no class, domain
or site on both sides, no patient on both sides of an episode. Where tasks are of one patient each
(setting ``personalised``), no patient is on both sides of meta-training and test instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.api import Place
from medbench.draws import Ints
from medbench.episodes import Block, Pool, Shape
from medbench.errors import DataMissing, ProtocolError, UsageError, did_you_mean
from medbench.modalities import missing_in, names_of, shown_of
from medbench.opened import Opened, open_dataset
from medbench.patient_pool import PatientPool
from medbench.plugins import Registry
from medbench.pools import NO_LABEL, SourceSet, least_classes, unreachable
from medbench.protocols import EVERYTHING, TARGETED, Inputs, Protocol
from medbench.settings import groups_of, tested


@dataclass(frozen=True)
class Target:
    """What one cell is tested on, and what may be meta-trained on for it."""

    protocol: Protocol
    opened: Opened
    site: str | None
    shape: Shape
    pool: Pool
    sources: tuple[SourceSet, ...]
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def dataset_id(self) -> str:
        """Dataset and site, without way and shot."""
        return self.opened.name + (f"@{self.site}" if self.site else "")

    @property
    def shown_id(self) -> str:
        """Dataset, site and, where something is held back, what of an image is shown."""
        label = self.inputs.label
        return self.dataset_id + (f"[{label}]" if label != EVERYTHING else "")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The aligned modalities that a network sees; empty where there is one alone."""
        return names_of(self.opened.dataset.info)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.protocol.task_kind == "multilabel"

    @property
    def targeted(self) -> bool:
        """Whether the targets are masks or boxes, of classes that an image may share."""
        return self.protocol.task_kind in TARGETED

    @property
    def n_way(self) -> int:
        """How many classes (or labels) a task asks about."""
        return len(self.opened.dataset.info.label_names) if self.multilabel else self.shape.way

    @property
    def id(self) -> str:
        """Dataset, site, inputs, way and shot: ``medmnist/retina:5w1s``, ``scans[ct]:4w5s``."""
        return f"{self.shown_id}:{self._ways}"

    @property
    def _ways(self) -> str:
        return f"{self.n_way}w{self.shape.shot}s"

    def support_labels(self, block: Block) -> NDArray[Any]:
        """Labels ``(n, n_support)`` of a block, or ``(n, n_support, n_way)`` of 0 and 1.

        These tell which classes of its episode an image shows.
        """
        if self.multilabel:
            return self.opened.dataset.labels[block.support].astype(np.int64)
        if self.targeted:
            shown = self.opened.dataset.labels[block.support].astype(np.int64)
            return np.take_along_axis(shown, block.classes[:, None, :], axis=2)
        return np.broadcast_to(block.support_labels, block.support.shape)

    def query_labels(self, block: Block) -> NDArray[Any]:
        """As `support_labels`, of the queries; for classes and labels alone."""
        if self.multilabel:
            return self.opened.dataset.labels[block.query].astype(np.int64)
        return block.query_labels

    @property
    def episode_key(self) -> str:
        """The name of this target's episode sequence; it depends on neither sources nor inputs."""
        return f"{self.protocol.id}/{self.dataset_id}:{self._ways}"

    def missing(self, block: Block) -> tuple[Ints, Ints]:
        """What each support and query image of a block lacks, as `modalities.missing_in` tells."""
        return missing_in(self.inputs, self.modalities, self.episode_key, block)

    def rows(self, block: Block) -> tuple[Ints, Ints]:
        """Support and query of a block as rows of `medbench.embed.ImageStore.shown`."""
        if not self.inputs.missing and not self.inputs.missing_support:
            return block.support, block.query
        n = len(self.opened.dataset.labels)
        support, query = self.missing(block)
        return block.support + n * support, block.query + n * query


@dataclass(frozen=True)
class Resolved:
    """A protocol on the data of this machine: its targets, and what was left out and why."""

    protocol: Protocol
    datasets: tuple[Opened, ...]
    targets: tuple[Target, ...]
    left_out: tuple[str, ...]


def resolve(
    registry: Registry,
    protocol: Protocol,
    place: Place,
    *,
    non_commercial: bool = False,
    shots: Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
) -> Resolved:
    """Open the protocol's datasets and build its targets, in order.

    `shots` and `targets` select some of the protocol's. Raises `ProtocolError` when the data
    cannot serve the protocol, `DataError` when they are missing or wrong.
    """
    opened, left_out = _open_all(registry, protocol, place, non_commercial)
    if protocol.setting == "cross_domain" and len(opened) < 2 and not protocol.without_sources:
        raise ProtocolError(
            f"protocol {protocol.name}: cross-domain training needs at least two datasets, and "
            f"{len(opened)} is here. Left out: {', '.join(left_out)}."
        )
    for shot in shots or ():
        if shot not in protocol.shots:
            raise UsageError(
                f"protocol {protocol.name} has no shot {shot}; it has "
                f"{', '.join(map(str, protocol.shots))}."
            )
    found: list[Target] = []
    wanted = targets if targets is not None else protocol.targets
    # Inputs with the same modalities share their sources, and so their trainings.
    shown = {inputs.modalities: shown_of(protocol, inputs, opened) for inputs in protocol.inputs}
    built = {modalities: groups_of(protocol, sets) for modalities, sets in shown.items()}
    groups = [(inputs, *g) for inputs in protocol.inputs for g in built[inputs.modalities]]
    known = list(dict.fromkeys(g[1].name + (f"@{g[2]}" if g[2] else "") for g in groups))
    for target in wanted or ():
        if not any(is_meant(target, g[1].name, g[2], g[0].label) for g in groups):
            labels = ", ".join(f"[{inputs.label}]" for inputs in protocol.inputs)
            ends = f" Inputs: {labels}." if protocol.holds_back else ""
            raise UsageError(
                f"protocol {protocol.name} has no target {target!r} here."
                f"{did_you_mean(target, known)}{ends}"
            )
    for inputs, opened_set, site, pool, sources in groups:
        chosen = wanted is None or any(
            is_meant(t, opened_set.name, site, inputs.label) for t in wanted
        )
        if not chosen:
            continue
        for shot in shots or protocol.shots:
            shape = _shape(protocol, pool, shot)
            names = opened_set.dataset.info.label_names
            every = protocol.way == "all"
            trouble = unreachable(opened_set, pool) if every else None
            trouble = trouble or pool.problem(shape, (*names, NO_LABEL))
            if shape.way < least_classes(protocol):
                trouble = f"there is {shape.way} class with images, and a task needs two"
            if trouble:
                name = opened_set.name + (f"@{site}" if site else "")
                raise ProtocolError(
                    f"protocol {protocol.name}, target {name}: {trouble}. Use fewer shots or "
                    "queries, name other 'targets', or bring more images."
                )
            if isinstance(pool, PatientPool) and pool.left_out(shape):
                left_out.append(
                    f"{pool.left_out(shape)} of the {len(pool.patients)} patients of "
                    f"{opened_set.name} at {shot} shot{'s' if shot > 1 else ''} (too few images or "
                    "classes)"
                )
            kept = tuple(sources)
            found.append(Target(protocol, opened_set, site, shape, pool, kept, inputs))
    return Resolved(protocol, tuple(opened), tuple(found), tuple(left_out))


def alone(
    registry: Registry,
    protocol: Protocol,
    place: Place,
    dataset_id: str,
    shot: int,
    shown: str = EVERYTHING,
) -> Target:
    """One target as `resolve` builds it, without its sources: for a cell, whose training is done.

    `shown` is the label of its inputs. Only the target's own dataset is opened. Raises what
    `open_dataset` raises.
    """
    refs = {ref.name: ref for ref in protocol.datasets}
    name, site = dataset_id, None
    if name not in refs:
        name, _, site = dataset_id.rpartition("@")
    inputs = next(inputs for inputs in protocol.inputs if inputs.label == shown)
    (opened,) = shown_of(protocol, inputs, [open_dataset(registry, refs[name], place)])
    pool = tested(protocol, opened, site)
    return Target(protocol, opened, site, _shape(protocol, pool, shot), pool, (), inputs)


def _shape(protocol: Protocol, pool: Pool, shot: int) -> Shape:
    way = pool.n_classes if protocol.way == "all" else protocol.way
    return Shape(way, shot, protocol.queries)


def is_meant(target: str, dataset: str, site: str | None, shown: str) -> bool:
    """Whether `target` names a dataset or site with these inputs, or with all there are.

    >>> is_meant("scans", "scans", None, "ct"), is_meant("scans[all]", "scans", None, "ct")
    (True, False)
    """
    names = (dataset, site, f"{dataset}@{site}")
    return target in names or target in [f"{name}[{shown}]" for name in names]


def _open_all(
    registry: Registry, protocol: Protocol, place: Place, non_commercial: bool
) -> tuple[list[Opened], list[str]]:
    opened: list[Opened] = []
    left_out: list[str] = []
    for ref in protocol.datasets:
        try:
            one = open_dataset(registry, ref, place)
        except DataMissing:
            if not ref.optional:
                raise
            left_out.append(f"{ref.name} (not found)")
            continue
        info = one.dataset.info
        if info.non_commercial and not non_commercial:
            reason = (
                f"its licence ({info.licence}) allows no commercial use; set "
                "'non_commercial: true' in the suite if yours is not"
            )
            if not ref.optional:
                raise ProtocolError(f"protocol {protocol.name}: dataset {ref.name}: {reason}.")
            left_out.append(f"{ref.name} ({reason})")
            continue
        # Where images have several labels, what is meta-trained on has one label an image.
        serves = {
            protocol.task_kind,
            *(["classification"] if protocol.task_kind == "multilabel" else []),
        }
        if info.task_kind not in serves:
            raise ProtocolError(
                f"protocol {protocol.name} is for {protocol.task_kind}, and dataset {ref.name} is "
                f"{info.task_kind}."
            )
        if len(info.image_shape) != protocol.n_dims + 1:
            wanted = "flat images (height, width, channels)"
            if protocol.n_dims == 3:
                wanted = "volumes (depth, height, width, channels)"
            raise ProtocolError(
                f"protocol {protocol.name}: the images of {ref.name} are "
                f"{'x'.join(map(str, info.image_shape))}, and its backbones take {wanted}; n_dims "
                f"in its file is {protocol.n_dims}."
            )
        opened.append(one)
    if not opened:
        raise DataMissing(
            f"protocol {protocol.name}: none of its datasets can be used: {', '.join(left_out)}. "
            "Set MEDBENCH_DATA to the folder that holds them, or get them with 'medbench data get'."
        )
    return opened, left_out
