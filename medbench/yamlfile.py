"""Reads a YAML file into a frozen model; every error says file, line and the nearest valid word.

The dialect is YAML 1.2's core: ``no`` and ``on`` are words, ``1e-3`` is a number, ``10:30`` is
text. PyYAML's own rules (YAML 1.1) turn these into False, a string and 630.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from medbench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from medbench.model import Model

_MAX_NODES = 100_000
Path_ = tuple[str | int, ...]


M = TypeVar("M", bound="Model")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"])


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 reads 010 as eight; 1.2 and everybody else as ten.
    return int(str(loader.construct_scalar(node)), 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


class Document:
    """A YAML file as plain values, with the line of every value."""

    def __init__(self, text: str, name: str) -> None:
        """`name` is what errors call the file. Raises `ConfigError`."""
        self.name = name
        self._lines: dict[Path_, int] = {}
        self._nodes = 0
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                self.value = {} if node is None else self._build(loader, node, ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise ConfigError(
                f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error.problem}"
                f"{f' ({error.context})' if error.context else ''}."
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(self.value, dict):
            raise ConfigError(
                f"{name}:1: the file must hold keys and values ('name: ...'), and it holds a "
                f"{_kind(self.value)}."
            )

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document in a file. Raises `ConfigError` when it cannot be read."""
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text; is it a YAML file?") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error

    def _build(self, loader: _Loader, node: yaml.Node, path: Path_) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(path) > 50:
            raise ConfigError(
                f"{self.name}:{node.start_mark.line + 1}: too large or too deeply nested."
            )
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node, deep=True)
                line = key_node.start_mark.line + 1
                if not isinstance(key, str):
                    raise ConfigError(
                        f"{self.name}:{line}: the key {key!r} is a {_kind(key)}; keys are words "
                        f"(quote it if you mean the text)."
                    )
                if key in result:
                    raise ConfigError(
                        f"{self.name}:{line}: {key!r} is given twice (first on line "
                        f"{self._lines[(*path, key)]}); keep one."
                    )
                self._lines[(*path, key)] = line
                result[key] = self._build(loader, value_node, (*path, key))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self._build(loader, item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            return loader.construct_object(node, deep=True)
        except ValueError as error:
            raise ConfigError(f"{self.name}:{node.start_mark.line + 1}: {error}.") from error

    def line(self, path: Path_) -> int:
        """The line of the value at `path`, or of the nearest value that holds it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def where(self, path: Path_) -> str:
        """``file:line`` of the value at `path`."""
        return f"{self.name}:{self.line(path)}"

    def error(self, path: Path_, message: str) -> ConfigError:
        """A `ConfigError` about the value at `path`."""
        return ConfigError(f"{self.where(path)}: {message}")

    def set(self, assignment: str) -> None:
        """Apply ``a.b.c=VALUE``; a list is indexed by number or by the ``name`` of its items.

        The value is YAML. Raises `ConfigError` for a path that leads nowhere.
        """
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"--set {assignment!r}: write key=value, such as seeds=[0,1].")
        value = Document(f"value: {text}", f"--set {dotted}").value["value"]
        steps = dotted.strip().split(".")
        here = self.value
        for i, step in enumerate(steps):
            last = i == len(steps) - 1
            if isinstance(here, list):
                index = _index(here, step)
                if index is None:
                    names = [_name(item) for item in here]
                    raise ConfigError(
                        f"--set {assignment!r}: {'.'.join(steps[:i])} has no item {step!r}."
                        f"{did_you_mean(step, [n for n in names if n])}"
                    )
                if last:
                    here[index] = value
                elif isinstance(here[index], str):
                    # A bare name stands for {name: ...}; a setting turns it into that.
                    here[index] = {"name": here[index]}
                here = here[index]
            elif isinstance(here, dict):
                if last:
                    here[step] = value
                else:
                    here = here.setdefault(step, {})
            else:
                raise ConfigError(
                    f"--set {assignment!r}: {'.'.join(steps[:i])} is a {_kind(here)} and has no "
                    f"parts."
                )

    def validate(self, model: type[M]) -> M:
        """The document as `model`. Raises `ConfigError` that lists every problem with its line."""
        # Not at the top: `medbench list` reads suites too, and validates none.
        from pydantic import ValidationError

        try:
            return model.model_validate(self.value)
        except ValidationError as error:
            # A list whose only item is wrong is also reported as too short, which is no news.
            lines = [
                self._explain(model, dict(e))
                for e in error.errors()
                if not (e["type"] == "too_short" and e["input"])
            ]
            raise ConfigError("\n".join(dict.fromkeys(lines))) from error

    def _explain(self, model: type[Model], error: dict[str, Any]) -> str:
        path: Path_ = tuple(error["loc"])
        known = self._known(path)
        shown = ".".join(str(p) for p in known) or "the file"
        value = error.get("input")
        if error["type"] == "extra_forbidden":
            key = str(path[-1])
            valid = _fields(model, path[:-1])
            place = f" in {'.'.join(map(str, path[:-1]))}" if path[:-1] else ""
            return f"{self.where(path)}: unknown key {key!r}{place}.{did_you_mean(key, valid)}"
        if error["type"] == "missing":
            place = ".".join(map(str, path[:-1])) or "the file"
            return f"{self.where(path[:-1])}: {place} lacks the key {str(path[-1])!r}."
        message = str(error["msg"]).removeprefix("Value error, ")
        message = message.removeprefix("Input should be ")
        plain = {
            "tuple_type": "a list, such as [0, 1]",
            "model_type": "keys and values, such as {episodes: 100}",
            "dict_type": "keys and values, such as {width: 32}",
            "too_short": "a list with at least one entry",
            "string_pattern_mismatch": "a word of letters, digits, dots, dashes and underscores",
        }
        message = plain.get(str(error["type"]), message)
        if error["type"] == "value_error":
            return f"{self.where(known)}: {shown}: {message}"
        hint = ""
        if isinstance(value, str) and re.match(r"^[-+.\d][-+.\deE]*$", value):
            hint = " It is text: remove the quotes to make it a number."
        return (
            f"{self.where(known)}: {shown} is {value!r} ({_kind(value)}), and should be "
            f"{message}.{hint}"
        )

    def _known(self, path: Path_) -> Path_:
        # pydantic puts the names of union members into a location; the file knows none of them.
        kept: Path_ = ()
        for part in path:
            if (*kept, part) in self._lines:
                kept = (*kept, part)
        return kept or tuple(p for p in path[:1])


def _fields(model: type[Model], path: Path_) -> list[str]:
    """The keys valid at `path` below `model`."""
    here: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part) if hasattr(here, "model_fields") else None
        if field is None:
            return []
        found = _models_in(field.annotation)
        if not found:
            return []
        here = found[0]
    return list(here.model_fields)


def _models_in(annotation: Any) -> list[type[Model]]:
    from medbench.model import Model

    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [m for a in inner for m in _models_in(a)]


def _index(items: list[Any], step: str) -> int | None:
    if step.isdigit() and int(step) < len(items):
        return int(step)
    return next((i for i, item in enumerate(items) if _name(item) == step), None)


def _name(item: Any) -> str | None:
    name = item.get("label", item.get("name")) if isinstance(item, dict) else item
    return name if isinstance(name, str) else None


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "yes/no value", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else str(type(value)))
