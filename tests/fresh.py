"""A fresh virtual environment above this one, with distributions that pip installed into it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FreshEnvironment:
    """Runs medbench as somebody who installed `sources` would, without a network."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, *sources: Path) -> FreshEnvironment:
        # What this environment has is seen from there; only the sources are installed.
        venv.create(folder, with_pip=False, symlinks=True)
        made = cls(folder)
        command = [*(sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))]
        command += ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--no-compile", *map(str, sources)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=made.variables()
        )
        assert done.returncode == 0, done.stderr
        return made

    def variables(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}

    def medbench(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bin" / "python"), "-m", "medbench", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=self.variables(**variables),
        )

    @property
    def packages(self) -> Path:
        (found,) = (self.folder / "lib").glob("python*/site-packages")
        return found
