"""Two versions of one repository side by side: their sources, and an environment for each.

Both are copies in folders of their own, so that editing on does not change what is measured. Where
both declare the same project (name, dependencies, entry points), they run in this
environment and only the import path differs; otherwise each gets a virtual environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.errors import UsageError

_TAIL = 15


@dataclass(frozen=True)
class Version:
    """One version that can be run: its sources, the interpreter, and what it runs with."""

    name: str
    source: Path
    python: str
    environment: Mapping[str, str]
    commit: str

    def run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run ``python ARGUMENTS`` with this version, from its source folder."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.source,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )


def repository(here: Path) -> Path:
    """The top folder of the git repository that `here` is in. Raises `UsageError`."""
    return Path(_git(here, "rev-parse", "--show-toplevel").strip())


def export_commit(top: Path, ref: str, folder: Path) -> str:
    """Write the files of `ref` to `folder`; returns the commit. Raises `UsageError`."""
    try:
        commit = _git(top, "rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    except UsageError as error:
        raise UsageError(
            f"{top} has no commit, tag or branch {ref!r}. In a shallow clone, fetch it first "
            "('git fetch --unshallow', or fetch-depth: 0 of actions/checkout)."
        ) from error
    commit = commit.strip()
    folder.mkdir(parents=True)
    archive = folder.parent / f"{folder.name}.tar"
    _git(top, "archive", "--format=tar", f"--output={archive}", commit)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()
    return commit


def export_working_tree(top: Path, folder: Path) -> str:
    """Copy the files as they are now, without those that git ignores; returns what to call them."""
    names = _git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in names:
        source = top / name
        if name and source.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    changed = _git(top, "status", "--porcelain").strip()
    return _git(top, "rev-parse", "HEAD").strip() + ("+" if changed else "")


def import_roots(source: Path, given: Sequence[str] = ()) -> list[Path]:
    """Folders of `source` that its packages are imported from.

    Those `given`, else what its build names for development (hatch), else ``src``, else the top.
    """
    if given:
        missing = [g for g in given if not (source / g).is_dir()]
        if missing:
            raise UsageError(f"--path {missing[0]}: {source.name} has no such folder.")
        return [source / g for g in given]
    build = _pyproject(source).get("tool", {}).get("hatch", {}).get("build", {})
    named = [source / d for d in build.get("dev-mode-dirs", [])]
    if named:
        return [d for d in named if d.is_dir()]
    return [source / "src"] if (source / "src").is_dir() else [source]


def same_project(one: Path, other: Path) -> bool:
    """Whether both sources declare the same name, dependencies and entry points."""
    tables = []
    for source in (one, other):
        data = _pyproject(source)
        project = {k: v for k, v in data.get("project", {}).items() if k in _RUNNING}
        old = [(source / n).read_bytes() for n in _OLD if (source / n).is_file()]
        tables.append((project, data.get("build-system"), old))
    return bool(tables[0] == tables[1])


_RUNNING = (
    "name",
    "dependencies",
    "optional-dependencies",
    "entry-points",
    "scripts",
    "requires-python",
)
_OLD = ("setup.py", "setup.cfg", "requirements.txt")


def on_path(name: str, source: Path, commit: str, paths: Sequence[str] = ()) -> Version:
    """A version that runs in this environment, found before what is installed."""
    roots = import_roots(source, paths)
    environment = {
        "PYTHONPATH": os.pathsep.join([*map(str, roots), *_inherited()]),
        # Without it the folder one stands in would come first.
        "PYTHONSAFEPATH": "1",
    }
    version = Version(name, source, sys.executable, environment, commit)
    _check(version, roots, source)
    return version


def _inherited() -> list[str]:
    # Plugins that are neither installed nor part of the repository are found as before.
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def in_environment(name: str, source: Path, commit: str, folder: Path) -> Version:
    """A version installed into a virtual environment of its own, above this environment.

    What this environment has is seen from there, so that only what differs is installed.
    Raises `UsageError` with the end of the installer's output.
    """
    import venv

    # Where this environment has pip it can install into another, which saves a minute.
    own_pip = importlib.util.find_spec("pip") is None
    venv.create(folder, with_pip=own_pip, symlinks=True)
    python = folder / "bin" / "python"
    paths = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    above = sysconfig.get_path("purelib")
    # A .pth line that calls addsitedir also reads the .pth files there (editable installations).
    pth = Path(paths.stdout.strip()) / "above.pth"
    pth.write_text(f"import site; site.addsitedir({above!r})\n", encoding="utf-8")
    other = [sys.executable, "-m", "pip", "--python", str(python)]
    pip = [str(python), "-m", "pip"] if own_pip else other
    done = subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsageError(
            f"{name}: it cannot be installed into an environment of its own:\n"
            + "\n".join(done.stderr.splitlines()[-_TAIL:])
        )
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""}
    version = Version(name, source, str(python), environment, commit)
    _check(version, import_roots(source), folder)
    return version


def _check(version: Version, roots: Sequence[Path], below: Path) -> None:
    """Raise `UsageError` when a package of `roots` would be imported from outside `below`."""
    names = sorted(
        {p.parent.name for r in roots for p in r.glob("*/__init__.py")}
        - {"tests", "test", "docs", "examples"}
    )
    names += sorted(p.stem for r in roots for p in r.glob("*.py") if p.stem not in _SCRIPTS)
    if not names:
        raise UsageError(
            f"{version.name}: no package to measure in {', '.join(r.name for r in roots)}; name "
            "the folders it is imported from with --path."
        )
    code = (
        "import importlib.util, sys\n"
        "for n in sys.argv[1:]:\n"
        "    s = importlib.util.find_spec(n)\n"
        "    print(n, s.origin if s else None)\n"
    )
    done = version.run(["-c", code, *names])
    if done.returncode:
        raise UsageError(f"{version.name}: {done.stderr.strip().splitlines()[-1]}")
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    outside = {n: p for n, p in found.items() if not p.startswith(str(below.resolve()))}
    if len(outside) == len(names) or (outside and below == version.source):
        name, place = next(iter(outside.items()))
        raise UsageError(
            f"{version.name}: package {name} would be imported from {place}, and not from the "
            "version to measure; name its folder with --path."
        )


_SCRIPTS = ("setup", "conftest", "noxfile")


def _pyproject(source: Path) -> dict[str, Any]:
    path = source / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}.") from error


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}.") from error
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"git {arguments[0]} failed"
        raise UsageError(f"{folder}: {words}")
    return done.stdout
