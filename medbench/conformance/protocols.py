"""Checks of protocols: rules that can be read, and that the data here can serve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medbench.api import Place
from medbench.conformance.check import Broken, DoesNotApply, Shelf
from medbench.conformance.common import COMMON
from medbench.conformance.subject import Subject
from medbench.errors import DataMissing, MedbenchError, ProtocolError
from medbench.opened import default_place
from medbench.plugins import Registry, load_factory, resolve_params
from medbench.protocols import Protocol, load_protocol
from medbench.tasks import Resolved, resolve

PROTOCOLS = Shelf("protocols")
_TOO_FEW = (
    "Ask for fewer shots or queries, name other targets, or bring images of more patients: those "
    "in the support set are not asked about."
)
PROTOCOLS.take(*COMMON)


@dataclass
class Rules:
    """What the checks of one protocol share: its data are opened once."""

    subject: Subject
    _resolved: Resolved | None = None

    @property
    def registry(self) -> Registry:
        """The registry with this protocol in it, installed or not."""
        entries = {k: dict(v) for k, v in self.subject.registry.entries.items()}
        entries["protocols"][self.subject.entry.name] = self.subject.entry
        return Registry(entries=entries)

    @property
    def protocol(self) -> Protocol:
        """The rules, from the plugin's file."""
        return load_protocol(self.registry, self.subject.entry.name)[0]

    def resolved(self) -> Resolved:
        """Its targets on the data here. Raises `DoesNotApply` where these are missing."""
        if self._resolved is None:
            place: Place = default_place()
            try:
                self._resolved = resolve(self.registry, self.protocol, place, non_commercial=True)
            except DataMissing as why:
                raise DoesNotApply(f"its data are not here: {why}") from why
            except MedbenchError as error:
                left = [d.name for d in self.protocol.datasets if d.optional]
                if left and "at least two datasets" in str(error):
                    raise DoesNotApply(f"too few of its data are here: {error}") from error
                raise
        return self._resolved


@PROTOCOLS.add(
    "file",
    reason="The rules are the YAML file; spec and file must mean the same version of them.",
    hint="Ship the file inside the package (resource='package:file.yaml'), with the spec's name "
    "and version in it; docs/protocols lists the keys.",
)
def _file(rules: Rules) -> None:
    _ = rules.protocol


@PROTOCOLS.add(
    "datasets",
    reason="A protocol that names unknown data can never run.",
    hint="Name registered data sets with their parameters; a data set of another distribution "
    "needs that distribution among your dependencies.",
    needs=("file",),
)
def _datasets(rules: Rules) -> None:
    for ref in rules.protocol.datasets:
        entry = rules.registry.get("datasets", ref.name)
        resolve_params(entry, ref.params)
        load_factory(entry)


@PROTOCOLS.add(
    "targets",
    reason="Every target must have enough images for its episodes, and something to train on.",
    hint="Use fewer shots or queries, name other targets, or bring more images; data sets of one "
    "domain are never source and target of each other.",
    needs=("datasets",),
)
def _targets(rules: Rules) -> None:
    if not rules.resolved().targets:
        raise Broken("it has no target on the data here.")


@PROTOCOLS.add(
    "episodes",
    reason="An interval over episodes that are mostly the same images says little.",
    hint="Ask for fewer episodes or queries than the images of the smallest class can make "
    "different.",
    needs=("targets",),
)
def _episodes(rules: Rules) -> None:
    for target in rules.resolved().targets:
        n = min(50, rules.protocol.episodes)
        try:
            block = target.pool.draw(target.shape, target.episode_key, 0, n)
        except ProtocolError as error:
            raise Broken(f"target {target.id}: {error}", _TOO_FEW) from error
        supports = np.sort(block.support, axis=1)
        if n > 1 and len(np.unique(supports, axis=0)) == 1:
            raise Broken(
                f"target {target.id}: the first {n} episodes all have the same support images, so "
                "that they are one episode."
            )
