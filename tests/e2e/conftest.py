"""Suites of toy algorithms for tests of whole runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy


@pytest.fixture
def suite(distribute, tmp_path):
    """Write a suite of toy algorithms; returns the path."""
    toy.install(distribute)

    def write(*algorithms, **more) -> str:
        path = tmp_path / "suite.yaml"
        path.write_text(toy.suite(*algorithms, **more))
        return str(path)

    return write


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a file system of its own, of 400 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield small
    subprocess.run(["umount", "-l", str(small)], check=True)
