"""Suites: YAML in, frozen models out, checked against the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from medbench.bundled import bundled_suites
from medbench.errors import ConfigError, UsageError, did_you_mean, nearest
from medbench.model import Model
from medbench.nesting import layers
from medbench.plugins import Registry, resolve_params
from medbench.protocols import PositiveInt, Scalar, _as_reference
from medbench.yamlfile import Document

__all__ = [
    "AlgorithmRef",
    "BackboneRef",
    "BudgetRef",
    "ProtocolRef",
    "Suite",
    "bundled_suites",
    "load_suite",
    "open_suite",
]


class ProtocolRef(Model):
    """A protocol by name; a suite may run fewer episodes, shots or targets of it.

    Episode i is the same however many are run, so fewer episodes are a prefix of the frozen list.
    """

    name: StrictStr
    episodes: PositiveInt | None = None
    cost_episodes: PositiveInt | None = None
    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    targets: Annotated[tuple[StrictStr, ...], Field(min_length=1)] | None = None


class BudgetRef(Model):
    """How much meta-training may look at: in images, or episodes of the protocol's training shape.

    Every image counts each time it is seen.
    """

    episodes: PositiveInt | None = None
    images: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self) -> BudgetRef:
        if (self.episodes is None) == (self.images is None):
            raise ValueError("give 'episodes' or 'images', one of them.")
        return self


class BackboneRef(Model):
    """A backbone by name; `weights` is ``random``, ``pretrained`` or the path of a file."""

    name: StrictStr
    label: StrictStr | None = None
    params: dict[str, Scalar] = {}
    weights: StrictStr = "random"

    @property
    def shown(self) -> str:
        """The name tables print."""
        return self.label or self.name


class AlgorithmRef(Model):
    """An algorithm by name, with parameters and perhaps a budget of its own."""

    name: StrictStr
    label: StrictStr | None = None
    params: dict[str, Scalar] = {}
    budget: BudgetRef | None = None

    @property
    def shown(self) -> str:
        """The name tables print."""
        return self.label or self.name


class Suite(Model):
    """Protocols x backbones x algorithms x seeds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", strict=True)]
    summary: StrictStr = ""
    protocols: Annotated[
        tuple[Annotated[ProtocolRef, BeforeValidator(_as_reference)], ...], Field(min_length=1)
    ]
    backbones: Annotated[
        tuple[Annotated[BackboneRef, BeforeValidator(_as_reference)], ...], Field(min_length=1)
    ]
    algorithms: Annotated[
        tuple[Annotated[AlgorithmRef, BeforeValidator(_as_reference)], ...], Field(min_length=1)
    ]
    seeds: Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    budget: BudgetRef | None = None
    non_commercial: StrictBool = False
    cell_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    # A training that is cut short goes on from its checkpoint, but only when asked to.
    training_timeout_s: Annotated[float, Field(gt=0)] = 172800.0

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        for kind in ("backbones", "algorithms"):
            shown = [r.shown for r in getattr(self, kind)]
            for name in shown:
                if shown.count(name) > 1:
                    raise ValueError(
                        f"{kind}: {name!r} is given twice; give one of them another 'label'."
                    )
        names = [p.name for p in self.protocols]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"protocols: {name!r} is given twice.")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names one twice.")
        return self


def load_suite(
    name: str, registry: Registry, overrides: Sequence[str] = ()
) -> tuple[Suite, dict[str, Any]]:
    """The suite called `name` (bundled, or the path of a YAML file), and its plain values.

    `overrides` are ``key=value`` texts. Raises `ConfigError` or `UsageError`.
    """
    document = open_suite(name)
    for assignment in overrides:
        document.set(assignment)
    suite = document.validate(Suite)
    _check_names(document, suite, registry)
    return suite, document.value


def open_suite(name: str) -> Document:
    """The document of a bundled suite or of a file. Raises `UsageError` for neither."""
    bundled = bundled_suites()
    if name in bundled:
        return Document(bundled[name], f"{name} (bundled suite)")
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_dir():
            raise UsageError(f"{name} is a folder; give a suite's name or a YAML file.")
        if not path.exists():
            files = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            near = nearest(name, [*files, *bundled])
            told = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"There is no file {name}.{told} 'medbench list suites' shows those that need none."
            )
        return Document.read(path)
    raise UsageError(
        f"There is no suite called {name!r}, and no file of that name.{did_you_mean(name, bundled)}"
    )


def _check_names(document: Document, suite: Suite, registry: Registry) -> None:
    """Every name known and every parameter valid, with the line in the file when not."""
    problems: list[str] = []

    def check(kind: str, index: int, name: str, params: Any) -> None:
        path: tuple[str | int, ...] = (kind, index)
        try:
            entry = registry.get(kind, name)
            if params is not None:
                path = (*path, "params")
                if kind == "backbones":
                    layers(registry, name, params)
                else:
                    resolve_params(entry, params)
        except UsageError as error:
            problems.append(f"{document.where(path)}: {error}")

    for i, protocol in enumerate(suite.protocols):
        check("protocols", i, protocol.name, None)
    for i, backbone in enumerate(suite.backbones):
        check("backbones", i, backbone.name, backbone.params)
    for i, algorithm in enumerate(suite.algorithms):
        check("algorithms", i, algorithm.name, algorithm.params)
    if problems:
        raise ConfigError("\n".join(problems))
