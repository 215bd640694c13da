"""Finds plugins, loads them one by one, and reports those that cannot be used.

The only module that knows pluggy. pluggy's own entry-point loader stops at the first plugin that
raises and leaves a half-registered one behind, so each entry point is loaded, checked and asked
for its specs apart; whatever goes wrong with one becomes a `Fault` and touches no other.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, get_args

import pluggy

from medbench import hookspecs
from medbench.api import (
    AlgorithmSpec,
    BackboneSpec,
    DatasetSpec,
    Parameter,
    ProtocolSpec,
    Stage,
    TaskKind,
    Traits,
)
from medbench.errors import PluginError, UsageError, did_you_mean

GROUP = "medbench"
BUNDLED = "medbench"
Spec = AlgorithmSpec | BackboneSpec | DatasetSpec | ProtocolSpec
KINDS: dict[str, type[Any]] = {
    "datasets": DatasetSpec,
    "backbones": BackboneSpec,
    "algorithms": AlgorithmSpec,
    "protocols": ProtocolSpec,
}
_TYPES = ("int", "float", "bool", "str")
_WORKS_ON = ("features", "maps", "images")
HOOKS = tuple(n for n in vars(hookspecs) if n.startswith("medbench_"))


@dataclass(frozen=True)
class Fault:
    """A plugin that was left out, or a hook of it that failed, and why."""

    distribution: str
    version: str
    entry_point: str
    cause: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (entry point {self.entry_point}): {self.cause}"


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: one entry point of one distribution."""

    distribution: str
    version: str
    entry_point: str
    module: str
    hooks: tuple[str, ...]
    load_s: float


@dataclass(frozen=True)
class Entry:
    """A registered spec and the plugin that brought it."""

    kind: str
    spec: Any
    plugin: Plugin

    @property
    def name(self) -> str:
        """The spec's name."""
        return str(self.spec.name)

    def origin(self) -> str:
        """Distribution and version, for messages about this entry."""
        return f"{self.plugin.distribution} {self.plugin.version}"


@dataclass
class Registry:
    """All that is registered, by kind and name, with the faults of what is not."""

    entries: dict[str, dict[str, Entry]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    plugins: list[Plugin] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("medbench"))

    def get(self, kind: str, name: str) -> Entry:
        """The entry called `name`; for ``NAME:ARGUMENT`` the family's entry.

        Raises `UsageError` with near matches, and says so when a faulty plugin may have had it.
        """
        table = self.entries[kind]
        head, _, argument = name.partition(":")
        if head in table:
            wants = getattr(table[head].spec, "takes_argument", "")
            if wants and not argument:
                raise UsageError(
                    f"{kind[:-1]} {name!r} is a family: write {head}:{wants}, "
                    f"with a {wants.lower()} of your choice."
                )
            if argument and not wants:
                raise UsageError(f"{kind[:-1]} {head!r} takes no argument, and {name!r} gives one.")
            return table[head]
        hint = did_you_mean(head, table)
        raise UsageError(f"There is no {kind[:-1]} called {name!r}.{hint}{self.left_out()}")

    def left_out(self) -> str:
        """What to add where a name is not found: that a faulty plugin may have had it."""
        if not self.faults:
            return ""
        more = "" if len(self.faults) == 1 else f", and {len(self.faults) - 1} more"
        return f" Some plugins could not be loaded: {self.faults[0]}{more}; see 'medbench plugins'."

    def find(self, name: str) -> list[Entry]:
        """Entries of every kind that are called `name`."""
        head = name.partition(":")[0]
        return [table[head] for table in self.entries.values() if head in table]

    def announce(self, record: Mapping[str, Any]) -> list[Fault]:
        """Tell every plugin of a record; returns what went wrong in them."""
        return [
            fault
            for plugin in self.plugins
            if "medbench_on_record" in plugin.hooks
            for fault in [self._call(plugin, "medbench_on_record", record=record)[1]]
            if fault
        ]

    def _call(self, plugin: Plugin, hook: str, **kwargs: Any) -> tuple[Any, Fault | None]:
        others = [p for p in self.manager.get_plugins() if p.__name__ != plugin.module]
        caller = self.manager.subset_hook_caller(hook, remove_plugins=others)
        try:
            results = caller(**kwargs)
        except (Exception, SystemExit) as error:
            return None, _fault(plugin, f"{hook} raised {_short(error)}", error)
        return (results[0] if results else None), None

    def _add(self, plugin: Plugin, specs: Mapping[str, list[Any]]) -> str | None:
        """Register all specs of a plugin, or none: the reason is returned."""
        for kind, given in specs.items():
            names: set[str] = set()
            for spec in given:
                other = self.entries[kind].get(spec.name)
                if other is not None:
                    return (
                        f"{kind[:-1]} {spec.name!r} is already registered by "
                        f"{other.origin()}; {plugin.distribution} {plugin.version} wants the same "
                        "name. One of them must rename it: a prefix such as "
                        f"'{plugin.distribution}/{spec.name}' keeps names apart"
                    )
                if spec.name in names:
                    return f"{kind[:-1]} {spec.name!r} is given twice"
                names.add(spec.name)
        for kind, given in specs.items():
            for spec in given:
                self.entries[kind][spec.name] = Entry(kind, spec, plugin)
        self.plugins.append(plugin)
        return None


@cache
def registry() -> Registry:
    """The registry of this process, loaded at the first call."""
    return load(
        importlib.metadata.entry_points(group=GROUP),
        only=os.environ.get("MEDBENCH_PLUGINS"),
        trace=os.environ.get("MEDBENCH_TRACE", "") not in ("", "0"),
    )


def load(
    entry_points: Iterable[importlib.metadata.EntryPoint],
    only: str | None = None,
    trace: bool = False,
) -> Registry:
    """Load `entry_points` one by one into a new registry.

    `only` is the text of ``MEDBENCH_PLUGINS``: None loads every distribution, otherwise the named
    ones (commas between) and always the bundled; empty loads the bundled alone. With `trace` each
    hook call goes to standard error.
    """
    result = Registry()
    result.manager.add_hookspecs(hookspecs)
    if trace:
        _trace(result.manager)
    found = sorted(
        {
            (_distribution(e)[0] != BUNDLED, *_distribution(e), e.name, e.value): e
            for e in entry_points
        }.items()
    )
    if only is not None:
        wanted = {_canonical(w) for w in only.split(",") if w.strip()} | {BUNDLED}
        known = {_canonical(key[1]) for key, _ in found} | {BUNDLED}
        for word in sorted(wanted - known):
            result.faults.append(
                Fault(
                    word,
                    "?",
                    "-",
                    f"MEDBENCH_PLUGINS names {word!r}, which is not installed or "
                    f"has no entry point in group {GROUP!r}.{did_you_mean(word, known)}",
                )
            )
        found = [(key, e) for key, e in found if _canonical(key[1]) in wanted]
    for (_, distribution, version, *_rest), entry_point in found:
        fault = _load_one(result, entry_point, distribution, version)
        if fault:
            result.faults.append(fault)
    return result


def _load_one(
    result: Registry, entry_point: importlib.metadata.EntryPoint, distribution: str, version: str
) -> Fault | None:
    start = time.perf_counter()
    bare = Plugin(distribution, version, entry_point.name, entry_point.module, (), 0.0)
    try:
        module = entry_point.load()
    except (Exception, SystemExit) as error:
        return _fault(bare, f"importing {entry_point.value} failed: {_short(error)}", error)
    if not isinstance(module, ModuleType):
        return _fault(
            bare,
            f"the entry point must name a module, and {entry_point.value} is a "
            f"{type(module).__name__}: write '{entry_point.name} = \"{entry_point.module}\"'",
        )
    hooks, trouble = _hooks_of(module)
    if trouble:
        return _fault(bare, trouble)
    try:
        result.manager.register(module, name=f"{distribution}:{entry_point.name}")
    except Exception as error:  # pluggy: wrong signature, registered twice
        if result.manager.is_registered(module):
            result.manager.unregister(module)
        return _fault(bare, f"a hook does not fit its specification: {_short(error)}")
    plugin = Plugin(
        distribution, version, entry_point.name, module.__name__, hooks, time.perf_counter() - start
    )
    specs: dict[str, list[Any]] = {}
    fault: Fault | None = None
    for kind, spec_type in KINDS.items():
        hook = f"medbench_{kind}"
        if hook not in hooks:
            continue
        returned, fault = result._call(plugin, hook)
        if fault is None:
            try:
                reason = _nonsense(hook, returned, spec_type)
                fault = _fault(plugin, reason) if reason else None
            except Exception as error:  # a field holds something of another type
                fault = _fault(plugin, f"{hook}: a spec cannot be read: {_short(error)}", error)
        if fault:
            break
        specs[kind] = list(returned)
    if fault is None:
        plugin = dataclasses.replace(plugin, load_s=time.perf_counter() - start)
        reason = result._add(plugin, specs)
        fault = _fault(plugin, reason) if reason else None
    if fault:
        result.manager.unregister(module)
    return fault


def _hooks_of(module: ModuleType) -> tuple[tuple[str, ...], str | None]:
    """Names of the hooks a module implements, or what is wrong with them."""
    hooks = []
    for name, value in vars(module).items():
        marked = callable(value) and hasattr(value, "medbench_impl")
        if marked and name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f". Hooks: {', '.join(HOOKS)}"
            return (), f"{name} is marked as a hook, and there is no hook of that name{hint}"
        if not marked and name.startswith("medbench_") and callable(value) and name in HOOKS:
            return (), f"{name} lacks the decorator: write @medbench.api.hookimpl above it"
        if marked:
            hooks.append(name)
    if not hooks:
        return (), f"module {module.__name__} implements no hook. Hooks: {', '.join(HOOKS)}"
    return tuple(sorted(hooks)), None


def _nonsense(hook: str, returned: Any, spec_type: type[Any]) -> str | None:
    """What is wrong with a hook's return value; None when it is a sequence of good specs."""
    want = f"a list of {spec_type.__name__}"
    if not isinstance(returned, list | tuple):
        return f"{hook} must return {want}, and returned {type(returned).__name__}"
    for spec in returned:
        if not isinstance(spec, spec_type):
            return f"{hook} must return {want}, and the list holds a {type(spec).__name__}"
        for text in ("name", "summary"):
            value = getattr(spec, text)
            if not isinstance(value, str) or not value.strip():
                return f"{hook}: a {spec_type.__name__} has an empty or non-text {text}: {value!r}"
        if any(c.isspace() or c in ":,=\\" or not c.isprintable() for c in spec.name):
            return f"{hook}: the name {spec.name!r} has a space, comma, colon, '=' or backslash"
        wants = int if isinstance(spec, ProtocolSpec) else str
        if not isinstance(spec.version, wants):
            return (
                f"{hook}: {spec.name}: version {spec.version!r} is {type(spec.version).__name__}, "
                f"and {wants.__name__} is needed"
            )
        if not isinstance(spec, ProtocolSpec):
            if not isinstance(spec.factory, str) or spec.factory.count(":") != 1:
                return f"{hook}: {spec.name}: factory {spec.factory!r} is not 'module:name'"
            trouble = _wrong_word(spec)
            if trouble:
                return f"{hook}: {spec.name}: {trouble}"
            for parameter in spec.parameters:
                trouble = parameter_problem(parameter, parameter.default)
                if trouble:
                    return f"{hook}: {spec.name}: default of {parameter.name}: {trouble}"
    return None


def _wrong_word(spec: Any) -> str | None:
    """Which field of a spec has none of the words it may have; None when all do."""
    words: list[tuple[str, Any, tuple[Any, ...]]] = []
    for parameter in spec.parameters:
        if not isinstance(parameter, Parameter):
            return f"parameters must be a tuple of Parameter, and it holds {parameter!r}"
        words.append((f"type of parameter {parameter.name}", parameter.type, _TYPES))
        words.append((f"stage of parameter {parameter.name}", parameter.stage, get_args(Stage)))
    if isinstance(spec, AlgorithmSpec):
        traits: Any = spec.traits
        if not isinstance(traits, Traits):
            return f"traits must be a Traits, and is {traits!r}"
        words.append(("trait works_on", spec.traits.works_on, _WORKS_ON))
        words += [("trait task_kinds", kind, get_args(TaskKind)) for kind in spec.traits.task_kinds]
        words += [("trait n_dims", n, (2, 3)) for n in spec.traits.n_dims]
    if isinstance(spec, DatasetSpec):
        words.append(("task_kind", spec.task_kind, get_args(TaskKind)))
    if isinstance(spec, BackboneSpec):
        if spec.wraps and not spec.takes_argument:
            return "it wraps backbones, and takes_argument is empty: say 'BACKBONE'"
        if spec.fuses and not spec.wraps:
            return "it fuses modalities, and wraps is empty: it needs a network for each"
        words.append(("n_dims", spec.n_dims, (2, 3, *((None,) if spec.wraps else ()))))
        words += [("wraps", n, (2, 3)) for n in spec.wraps]
    for what, value, valid in words:
        if value not in valid:
            return f"{what} is {value!r}, and one of {', '.join(map(str, valid))} is needed"
    return None


def parameter_problem(parameter: Parameter, value: Any) -> str | None:
    """Why `value` does not fit `parameter`, in words; None when it does."""
    if value is None:
        return None if parameter.optional else f"null, and {parameter.type} is needed"
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str,),
    }
    is_bool = isinstance(value, bool)
    if is_bool != (parameter.type == "bool") or not isinstance(value, kinds[parameter.type]):
        return f"{value!r} is {type(value).__name__}, and {parameter.type} is needed"
    if parameter.choices and value not in parameter.choices:
        return f"{value!r} is not one of {', '.join(map(str, parameter.choices))}"
    if isinstance(value, int | float) and not is_bool:
        if value != value or value in (float("inf"), float("-inf")):
            return f"{value!r} is not finite"
        if parameter.minimum is not None and value < parameter.minimum:
            return f"{value!r} is below the minimum, {parameter.minimum:g}"
        if parameter.maximum is not None and value > parameter.maximum:
            return f"{value!r} is above the maximum, {parameter.maximum:g}"
        if parameter.above is not None and value <= parameter.above:
            return f"{value!r} must be greater than {parameter.above:g}"
    return None


def resolve_params(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` completed with defaults, in the spec's order.

    Raises `UsageError` for an unknown name, a wrong type, or a value out of range.
    """
    known = {p.name: p for p in entry.spec.parameters}
    for name, value in given.items():
        if name not in known:
            if not known:
                raise UsageError(f"{entry.name} takes no parameters, and {name!r} was given.")
            raise UsageError(f"{entry.name} has no parameter {name!r}.{did_you_mean(name, known)}")
        trouble = parameter_problem(known[name], value)
        if trouble:
            raise UsageError(f"{entry.name}: parameter {name}: {trouble}. ({known[name].help})")
    resolved = {name: given.get(name, p.default) for name, p in known.items()}
    for name, p in known.items():
        if p.type == "float" and isinstance(resolved[name], int):
            resolved[name] = float(resolved[name])
    return resolved


def load_factory(entry: Entry, path: str | None = None) -> Callable[..., Any]:
    """The object behind a spec's factory (or `path`, another ``module:name`` of the spec).

    Raises `PluginError` that names the distribution when it cannot be imported.
    """
    path = path or entry.spec.factory
    module, _, attribute = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{entry.kind[:-1]} {entry.name!r} of {entry.origin()} cannot be loaded: "
            f"{path}: {_short(error)}"
        ) from error
    return found


def _distribution(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    dist = getattr(entry_point, "dist", None)
    return _name_and_version(dist) if dist is not None else ("unknown", "?")


@lru_cache(maxsize=256)
def _name_and_version(dist: importlib.metadata.Distribution) -> tuple[str, str]:
    # Each of the two is found by parsing all of the metadata, with the readme.
    found = dist.metadata
    return str(found["Name"]), str(found["Version"])


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    tail = f": {text[0]}" if text else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        tail += f" (install {error.name.partition('.')[0]!r}, or the plugin's extra that brings it)"
    return f"{type(error).__name__}{tail}"


def _fault(plugin: Plugin, cause: str, error: BaseException | None = None) -> Fault:
    detail = "".join(traceback.format_exception(error)) if error else ""
    return Fault(plugin.distribution, plugin.version, plugin.entry_point, cause, detail)


def _trace(manager: pluggy.PluginManager) -> None:
    def before(hook: str, impls: Any, kwargs: Mapping[str, Any]) -> None:
        who = ", ".join(i.plugin_name for i in impls)
        sys.stderr.write(f"medbench: hook {hook}({', '.join(kwargs)}) -> {who}\n")

    def after(outcome: Any, hook: str, impls: Any, kwargs: Any) -> None:
        if outcome.excinfo is not None:
            sys.stderr.write(f"medbench: hook {hook} raised {outcome.excinfo[0].__name__}\n")

    manager.add_hookcall_monitoring(before, after)
