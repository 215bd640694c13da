"""A fingerprint of the source code behind a plugin's factory.

It is part of every content key: an edited plugin is a different plugin. Only the modules that a
factory's module imports from its own package count, so that a new method beside forty others
makes none of their records stale.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# What loads code that no import statement shows.
_LOADERS = {"importlib", "pkgutil", "runpy", "__import__", "exec", "eval"}


@cache
def source_digest(module: str) -> str:
    """BLAKE2b-128 over `module` and what it imports, directly or not, from its own package.

    The whole package counts where a module cannot be parsed or loads code by name.
    """
    h = hashlib.blake2b(digest_size=16)
    files = imported_files(module)
    if not files:
        return h.hexdigest()
    root = _root(module)
    for file in sorted(files):
        name = file.relative_to(root).as_posix().encode()
        body = file.read_bytes()
        h.update(b"%d %s %d " % (len(name), name, len(body)) + body)
    return h.hexdigest()


def imported_files(module: str) -> set[Path]:
    """The files of `module` and of what it imports, directly or not, from its own package.

    Empty where there is no such package, or no file of it.
    """
    package = module.partition(".")[0]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return set()
    if not found.submodule_search_locations:
        return {Path(found.origin)}
    root = Path(found.origin).parent
    return _reachable(module, package, root) or set(root.rglob("*.py"))


def _root(module: str) -> Path:
    found = importlib.util.find_spec(module.partition(".")[0])
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _reachable(module: str, package: str, root: Path) -> set[Path] | None:
    """Files of `module` and all it imports from `package`; None when that cannot be told."""
    waiting, files = [module], set[Path]()
    while waiting:
        name = waiting.pop()
        file = _file(name, package, root)
        if file is None:
            if name == module:
                return None
            continue  # a name imported from a module, not a module
        if file in files:
            continue
        files.add(file)
        if file.suffix != ".py":
            continue
        wanted = _wanted(file.read_bytes(), name, package, is_package=file.name == "__init__.py")
        if wanted is None:
            return None
        waiting += wanted
    return files


# Methods share modules, and reading a module's syntax takes milliseconds.
@cache
def _wanted(
    source: bytes, module: str, package: str, *, is_package: bool
) -> tuple[str, ...] | None:
    """What the source of a module may import from `package`; None when that cannot be told."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    if _loads_by_name(tree):
        return None
    return tuple(_imported(tree, module, package, is_package=is_package))


def _file(module: str, package: str, root: Path) -> Path | None:
    inside = root.joinpath(*module.split(".")[1:])
    if module == package or inside.is_dir():
        init = inside / "__init__.py"
        return init if init.is_file() else None
    if inside.with_suffix(".py").is_file():
        return inside.with_suffix(".py")
    compiled = sorted(inside.parent.glob(f"{inside.name}.*.so")) if inside.parent.is_dir() else []
    return compiled[0] if compiled else None


def _loads_by_name(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {node.func.id}
        else:
            continue
        if names & _LOADERS:
            return True
    return False


def _imported(tree: ast.AST, module: str, package: str, *, is_package: bool) -> Iterator[str]:
    """Names of modules of `package` that an import statement anywhere in `tree` may load."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name`: the name may be a module of its own.
            wanted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in wanted:
            if name == package or name.startswith(f"{package}."):
                yield name
