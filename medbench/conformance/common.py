"""Checks of every kind of plugin: its module is light, its spec complete, its imports allowed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from medbench.conformance.check import Broken, DoesNotApply, Shelf
from medbench.conformance.subject import Subject
from medbench.plugins import BUNDLED
from medbench.sourcecode import imported_files

IMPORT_LIMIT_S = 0.5
COMMON = Shelf("every")

_TIMED = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[2])
import medbench.api
start = time.perf_counter()
module = __import__(sys.argv[1], fromlist=["x"])
for name, value in list(vars(module).items()):
    if callable(value) and hasattr(value, "medbench_impl") and name != "medbench_on_record":
        value()
heavy = [m for m in ("torch", "timm", "tensorflow", "jax", "sklearn") if m in sys.modules]
print(json.dumps([time.perf_counter() - start, heavy]))
"""


@cache
def _import(module: str) -> tuple[float, tuple[str, ...], str]:
    """Seconds and heavy libraries of importing a module and calling its hooks, or the error."""
    best, heavy = float("inf"), []
    for _ in range(3):  # a busy machine delays one of them, and not all three
        done = subprocess.run(
            [sys.executable, "-c", _TIMED, module, json.dumps(sys.path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        if done.returncode:
            return 0.0, (), (done.stderr.strip().splitlines() or ["it exits"])[-1]
        seconds, heavy = json.loads(done.stdout.strip().splitlines()[-1])
        best = min(best, seconds)
        if best <= IMPORT_LIMIT_S or heavy:
            break
    return best, tuple(heavy), ""


@COMMON.add(
    "import",
    reason="'medbench list' imports every installed plugin; a slow one makes all commands slow.",
    hint="Let the module with the hooks import medbench.api alone, and torch only in the modules "
    "that factories name; do nothing else when it is imported. Name what you import: "
    "'from medbench.api import *' loads torch for Backbone.",
)
def _imports_fast(subject: Subject) -> None:
    module = subject.entry.plugin.module
    seconds, heavy, error = _import(module)
    if error:
        raise Broken(f"importing {module} in a fresh process failed: {error}")
    if heavy:
        raise Broken(f"importing {module} imports {', '.join(heavy)} ({seconds:.2f} s).")
    if seconds > IMPORT_LIMIT_S:
        raise Broken(
            f"importing {module} and calling its hooks takes {seconds:.2f} s, and at most "
            f"{IMPORT_LIMIT_S:g} s is allowed."
        )


_UNKNOWN = ("", "unknown", "unstated", "todo", "none", "tbd", "?")


def _empty(text: object) -> bool:
    return str(text).strip().lower() in _UNKNOWN


@COMMON.add(
    "spec",
    reason="Tables print where a method or data set comes from and under which licence it may be "
    "used; a plugin's name must not collide with another's.",
    hint="Fill in summary, licence and citation (title, authors, venue, year), and begin the name "
    "with your distribution's: 'acme/nearest'.",
)
def _spec_is_complete(subject: Subject) -> None:
    spec = subject.spec
    missing: list[str] = []
    # What a licence of the user's own data is, the user says.
    own = subject.kind == "datasets" and bool(spec.takes_argument)
    fields = ["summary"] if subject.kind == "protocols" else ["summary", "licence"]
    missing += [
        f"{name} is {getattr(spec, name)!r}"
        for name in fields
        if _empty(getattr(spec, name)) and not (own and name == "licence")
    ]
    if subject.kind != "protocols":
        c = spec.citation
        missing += [
            f"citation.{name} is {getattr(c, name)!r}"
            for name in ("title", "authors", "venue")
            if _empty(getattr(c, name))
        ]
        if not 1900 <= c.year <= 2100:
            missing.append(f"citation.year is {c.year!r}")
    if "/" not in spec.name and subject.entry.plugin.distribution != BUNDLED:
        missing.append(f"name {spec.name!r} has no prefix")
    if missing:
        raise Broken(f"{spec.name}: {'; '.join(missing)}.")


@COMMON.add(
    "api-only",
    reason="What is not in medbench.api may change with every version of medbench.",
    hint="Import from medbench.api; what you need and do not find there is worth an issue.",
)
def _imports_api_alone(subject: Subject) -> None:
    paths = {subject.entry.plugin.module}
    if subject.kind != "protocols":
        more = [subject.spec.factory, getattr(subject.spec, "trainer", None)]
        paths |= {p.partition(":")[0] for p in more if p}
    wrong = sorted({line for path in paths for line in _foreign_imports(path)})
    if wrong:
        raise Broken("; ".join(wrong[:5]) + ".")


def _foreign_imports(module: str) -> Iterator[str]:
    files = imported_files(module)
    if not files:
        raise DoesNotApply(f"the source of {module} cannot be found")
    for file in sorted(files):
        if file.suffix == ".py":
            yield from _in_file(file)


@cache
def _in_file(file: Path) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
            if node.module == "medbench":
                names = [f"medbench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [
            f"{file.name}:{node.lineno} imports {name}"
            for name in names
            if name.partition(".")[0] == "medbench" and name != "medbench.api"
        ]
    return tuple(found)
