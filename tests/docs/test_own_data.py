"""The page on one's own images: every command on it does what it says, on made-up files."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import own_data
import pytest

from medbench.cli import main
from medbench.plugins import registry
from medbench.scaffold import scaffold

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own-data.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("medbench ")
]
READS = [line for line in LINES if line.split()[1] in ("data", "check")]
RUNS = [line for line in LINES if line.split()[1] == "run"]


def block(language: str, beginning: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (one,) = [body for body in found if body.startswith(beginning)]
    return one


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "data"
    own_data.write_all(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        exec(block("python", "import numpy"), {})
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The distributions of the page, as installed: what `new` wrote, with the page's rules."""
    made = []
    for name in ("clinic/scanners", "clinic/nuclei", "clinic/brains", "clinic/spleens"):
        distribution = name.replace("/", "-")
        folder = tmp_path_factory.mktemp("plugins") / distribution
        scaffold("protocol", name, registry(), folder)
        package = distribution.replace("-", "_")
        (folder / "src" / package / "rules.yaml").write_text(block("yaml", f"name: {name}"))
        info = folder / "src" / f"{package}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[medbench]\n{package} = {package}\n")
        made.append(folder / "src")
    return made


@pytest.fixture(autouse=True)
def _installed(
    data: Path, plugins: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("MEDBENCH_DATA", str(data))
    for folder in plugins:
        monkeypatch.syspath_prepend(str(folder))
    registry.cache_clear()
    (tmp_path / "scanners.yaml").write_text(block("yaml", "name: scanners"))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("clinic_scanners", "clinic_nuclei", "clinic_brains", "clinic_spleens"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("line", READS)
def test_what_the_page_reads_and_checks_is_fine(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line)[1:])
    shown = capsys.readouterr()
    assert not stop.value.code, shown.out + shown.err
    assert ": fine" in shown.out or " ok" in shown.out


@pytest.mark.parametrize("line", RUNS)
def test_what_the_page_runs_can_be_planned(line, capsys):
    words = shlex.split(line)[1:]
    with pytest.raises(SystemExit) as stop:
        main(words if "--dry-run" in words else [*words, "--dry-run"])
    shown = capsys.readouterr()
    assert not stop.value.code, shown.out + shown.err
    expected = {
        "spleens": "msd:Task09_Spleen",
        "runs/scans": "synthetic-scans",
        "brains": "aligned:brains",
        "scanners": "GE",
    }
    wanted = next((word for name, word in expected.items() if name in line), "masks:nuclei")
    assert wanted in shown.out + shown.err


def test_every_layout_of_the_page_is_read():
    shown = re.findall(r"^\| .*\| `([\w-]+:[^`]+)`", TEXT, re.MULTILINE)
    named = {word.partition(":")[0] for word in shown}
    read = {word.partition(":")[0] for line in READS for word in line.split() if ":" in word}
    more = {"npz-masks", "voc", "coco", "boxes", "msd", "aligned"}
    assert named == {"folder", "csv", "npz", "masks", *more}
    assert named - read == {"npz-masks"}
    assert "dicom" in read
