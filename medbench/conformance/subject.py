"""Which plugin a name or path means, and how it is checked: its spec, parameters and excuses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from medbench.errors import UsageError, did_you_mean, nearest
from medbench.plugins import KINDS, Entry, Plugin, Registry, resolve_params

_KIND_OF = {spec: kind for kind, spec in KINDS.items()}


@dataclass(frozen=True)
class Subject:
    """A plugin to be checked: its entry, the name it was asked for by, and its parameters."""

    registry: Registry
    entry: Entry
    name: str
    params: Mapping[str, Any]
    asked_as: str = ""
    """Of an algorithm for several task kinds, the one it is checked in."""

    @property
    def task_kind(self) -> str:
        """The tasks that an algorithm is given: ``classification`` and the like."""
        return self.asked_as or _task_kinds(self.entry)[0]

    @property
    def shown(self) -> str:
        """Its name, and which of several task kinds is meant."""
        several = self.kind == "algorithms" and len(_task_kinds(self.entry)) > 1
        return f"{self.name}, {self.task_kind}" if several else self.name

    @property
    def kind(self) -> str:
        """``algorithms``, ``backbones``, ``datasets`` or ``protocols``."""
        return self.entry.kind

    @property
    def spec(self) -> Any:
        """The spec that the hook returned."""
        return self.entry.spec

    @property
    def argument(self) -> str:
        """What follows the colon in the name of a family's member."""
        return self.name.partition(":")[2] if getattr(self.spec, "takes_argument", "") else ""

    @property
    def package(self) -> str:
        """The top-level package (or module) of the plugin's code."""
        path = self.spec.resource if self.kind == "protocols" else self.spec.factory
        return str(path).partition(":")[0].partition(".")[0]


def find_subjects(
    registry: Registry, name: str, params: Mapping[str, Any] | None = None
) -> list[Subject]:
    """What `name` means: a registered name, ``MODULE:NAME`` of code, or a module with hooks.

    A name that several kinds have gives one subject for each. Raises `UsageError`.
    """
    entries = registry.find(name)
    if not entries and _is_path(name):
        entries = list(_entries_of_path(registry, name))
        named = [(entry, entry.name) for entry in entries]
    else:
        named = [(entry, name) for entry in entries]
    if not entries:
        raise UsageError(_unknown(registry, name))
    for entry, shown in named:
        if registry.entries[entry.kind].get(entry.name) is entry:
            registry.get(entry.kind, shown)  # a family without an argument is refused in its words
    return [
        Subject(registry, entry, shown, _params(entry, params or {}), task_kind)
        for entry, shown in named
        for task_kind in _task_kinds(entry)
    ]


def _task_kinds(entry: Entry) -> list[str]:
    """Each task kind that has checks of its own; several labels are asked as classes are."""
    traits = getattr(entry.spec, "traits", None)
    kinds = ["classification"] if traits is None else traits.task_kinds
    named = ["classification" if kind == "multilabel" else kind for kind in kinds]
    return list(dict.fromkeys(named)) or ["classification"]


def _unknown(registry: Registry, name: str) -> str:
    head = name.partition(":")[0]
    known = [n for table in registry.entries.values() for n in table]
    hint = ""
    if ":" in name and _is_path(name) and not nearest(head, known):
        hint = f" Nor is there a module {head}, here or installed."
    else:
        hint = did_you_mean(head, known)
    hint += registry.left_out()
    return (
        f"There is no plugin called {name!r}.{hint} Code that is not installed is named as "
        "MODULE:FACTORY, such as acme_medbench.nearest:Nearest."
    )


def _params(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    if entry.kind == "protocols":
        if given:
            raise UsageError(f"{entry.name} is a protocol, which takes no parameters.")
        return {}
    return resolve_params(entry, {**entry.spec.conformance.params, **given})


def _is_path(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    words = module.split(".")
    return all(w.isidentifier() for w in words) and (not colon or attribute.isidentifier())


def _entries_of_path(registry: Registry, path: str) -> Iterator[Entry]:
    """Specs behind ``MODULE:ATTRIBUTE``: a factory, a spec, a list of them, or a hook."""
    where, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            return
        raise UsageError(f"{path}: importing {where} failed: {error}.") from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{path}: importing {where} failed: {type(error).__name__}: {error}"
        ) from error
    if not attribute:
        yield from _from_hooks(module)
        return
    if not hasattr(module, attribute):
        raise UsageError(
            f"{path}: module {where} has no {attribute!r}.{did_you_mean(attribute, vars(module))}"
        )
    value = getattr(module, attribute)
    if callable(value) and hasattr(value, "medbench_impl"):
        value = value()
    specs = list(value) if isinstance(value, list | tuple) else [value]
    if specs and all(type(spec) in _KIND_OF for spec in specs):
        yield from (_entry(spec, where) for spec in specs)
        return
    registered = [e for table in registry.entries.values() for e in table.values()]
    near = [*registered, *_specs_near(where)]
    found = [e for e in near if getattr(e.spec, "factory", None) == path]
    if not found:
        raise UsageError(
            f"{path} is neither a spec nor the factory of one: no registered plugin names it, and "
            f"no hook in {where.partition('.')[0]} does. Checks read the spec's traits: write one, "
            "and give its hook (MODULE:medbench_algorithms) or the factory it names."
        )
    yield found[0]


def _specs_near(where: str) -> Iterator[Entry]:
    """Specs that the hooks of a module, or of the packages it lies in, return."""
    words = where.split(".")
    for n in range(len(words), 0, -1):
        module = sys.modules.get(".".join(words[:n]))
        if module is not None:
            yield from _from_hooks(module)


def _from_hooks(module: ModuleType) -> Iterator[Entry]:
    for value in list(vars(module).values()):
        if callable(value) and hasattr(value, "medbench_impl"):
            hook = value.__name__.removeprefix("medbench_")
            if hook in KINDS:
                yield from (_entry(spec, module.__name__) for spec in value())


def _entry(spec: Any, module: str) -> Entry:
    plugin = Plugin(module.partition(".")[0], "not installed", module, module, (), 0.0)
    return Entry(_KIND_OF[type(spec)], spec, plugin)
