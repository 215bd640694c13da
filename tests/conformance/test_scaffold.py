"""New plugins: written, installed by pip, found, checked and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medbench.errors import UsageError
from medbench.plugins import registry
from medbench.scaffold import KINDS, scaffold

ROOT = Path(__file__).parents[2]
NAMES = {
    "algorithm": "acme/city-block",
    "backbone": "acme/small-net",
    "dataset": "acme/smears",
    "protocol": "acme/three-shots",
}
# What a quickstart cell of each needs, and no more.
SMALL = (
    "--set=protocols=[{name: PROTOCOL, episodes: 4, cost_episodes: 2, shots: [SHOT]}]",
    "--set=budget={episodes: 4}",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four new distributions, installed by pip into one folder, without a network."""
    folder = tmp_path_factory.mktemp("new")
    sources = []
    for kind, name in NAMES.items():
        scaffold(kind, name, registry(), folder / kind)
        sources.append(str(folder / kind))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target"]
    done = subprocess.run(
        [*command, str(folder / "site"), *sources], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def medbench(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(site), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "medbench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "MEDBENCH_PLUGINS": "acme-" + ",acme-".join(OWN)},
    )


OWN = [name.partition("/")[2] for name in NAMES.values()]


def test_new_plugins_are_listed_with_their_distribution(site):
    done = medbench(site, "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    for kind, name in NAMES.items():
        rows = {row["name"]: row for row in listed[f"{kind}s"]}
        assert rows[name]["distribution"] == name.replace("/", "-")
    assert "acme/smears-sites" in {row["name"] for row in listed["protocols"]}
    assert "left out" not in done.stderr


def test_new_plugins_pass_every_check(site):
    done = medbench(site, "check", *NAMES.values(), "acme/smears-sites", "--json")
    found = json.loads(done.stdout)
    bad = [
        (row["name"], c["check"], c["text"])
        for row in found
        for c in row["checks"]
        if c["status"] not in ("ok", "does not apply")
    ]
    assert bad == []
    assert done.returncode == 0
    assert len(found) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_new_plugins_are_measured_in_the_quickstart_suite(kind, site, tmp_path):
    name, protocol, shot = NAMES[kind], "synthetic-classes", 1
    settings = [
        "--set=algorithms=[protonet]",
        "--set=backbones=[{name: conv4, params: {width: 8}}]",
    ]
    if kind == "algorithm":
        settings[0] = f"--set=algorithms=[{name}]"
    elif kind == "backbone":
        settings[1] = f"--set=backbones=[{name}]"
    elif kind == "dataset":
        protocol = "acme/smears-sites"
    else:
        protocol, shot = name, 3
    small = [s.replace("PROTOCOL", protocol).replace("SHOT", str(shot)) for s in SMALL]
    if kind in ("dataset", "protocol"):
        target = "north" if kind == "dataset" else "site A"
        small[0] = small[0].replace("shots:", f"targets: [{target}], shots:")
    out = tmp_path / "out"
    done = medbench(site, "run", "quickstart", *settings, *small, f"--out={out}", "--workers=1")
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in (out / "records").glob("*.json")]
    assert records
    assert {r["status"] for r in records} == {"ok"}
    key = {"algorithm": "algorithm", "backbone": "backbone", "protocol": "protocol"}.get(kind)
    if key:
        assert {r["cell"][key] for r in records} == {name}
    else:
        assert all(r["cell"]["target"].startswith(name) for r in records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_distribution_has_all_that_an_author_needs(kind, tmp_path):
    folder = tmp_path / "new"
    made = scaffold(kind, NAMES[kind], registry(), folder)
    written = {path.relative_to(folder).as_posix() for path in made}
    package = NAMES[kind].replace("/", "_").replace("-", "_")
    assert written >= {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        ".github/workflows/test.yaml",
        "tests/test_conformance.py",
        f"src/{package}/__init__.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["medbench"] == {package: package}
    for path in folder.rglob("*"):
        if path.is_file():
            assert "@@" not in path.read_text()
            assert "PACKAGE" not in path.name
            if path.suffix == ".py":
                compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nearest", "'acme/nearest'"),
        ("Acme/My Method", "'acme/my-method'"),
        ("acme/2fast", "begins with a letter"),
        ("acme/a--b", "single dashes"),
        ("acme/../../etc", "'acme/etc'"),
        ("acme/", "'acme/mine'"),
        ("medbench/algorithms", "is installed"),
        ("acme/predictor", "which the code beside it imports"),
        ("acme/" + "x" * 60, "60 is the most"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_one_that_can(
    name, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="NAME") as error:
        scaffold("algorithm", name, registry())
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_never_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="left as it is"):
        scaffold("algorithm", "acme/nearest", registry(), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    from medbench.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["new", "algorithm", "acme/nearest"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "pip install -e" in shown
    assert "medbench check acme/nearest" in shown
    assert (tmp_path / "acme-nearest" / "pyproject.toml").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["new", "algorithm", "acme/nearest"])
    assert stop.value.code == 2
