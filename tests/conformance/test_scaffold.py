"""New plugins: written, installed by pip, found, checked and measured."""

from __future__ import annotations

import json
import tomllib

import pytest

from fresh import FreshEnvironment
from medbench.errors import UsageError
from medbench.plugins import registry
from medbench.scaffold import scaffold

NAMES = {
    "algorithm": "acme/city-block",
    "backbone": "acme/small-net",
    "dataset": "acme/smears",
    "protocol": "acme/three-shots",
}
# Other beginnings, as (kind, name, what `--with` says).
VARIANTS = (
    ("algorithm", "acme/prototypes", "meta-train"),
    ("algorithm", "acme/outlines", "masks"),
    ("dataset", "acme/marks", "masks"),
)
MADE = (*((kind, name, None) for kind, name in NAMES.items()), *VARIANTS)
OWN = ",".join(name.replace("/", "-") for _, name, _ in MADE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """All new distributions, installed by pip."""
    folder = tmp_path_factory.mktemp("new")
    folders = [folder / name.replace("/", "-") for _, name, _ in MADE]
    for where, (kind, name, variant) in zip(folders, MADE, strict=True):
        scaffold(kind, name, registry(), where, variant)
    return FreshEnvironment.of(folder / "venv", *folders)


def test_new_plugins_are_listed_with_their_distribution(place):
    done = place.medbench("list", "--json", MEDBENCH_PLUGINS=OWN)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    for kind, name, _ in MADE:
        rows = {row["name"]: row for row in listed[f"{kind}s"]}
        assert rows[name]["distribution"] == name.replace("/", "-")
    assert {"acme/smears-sites", "acme/marks-sites"} <= {r["name"] for r in listed["protocols"]}
    assert "left out" not in done.stderr


def test_new_plugins_pass_every_check(place):
    names = [*(name for _, name, _ in MADE), "acme/smears-sites", "acme/marks-sites"]
    done = place.medbench("check", *names, "--json", MEDBENCH_PLUGINS=OWN)
    found = json.loads(done.stdout)
    bad = [
        (row["name"], c["check"], c["text"])
        for row in found
        for c in row["checks"]
        if c["status"] not in ("ok", "does not apply")
    ]
    assert bad == []
    assert done.returncode == 0
    assert len(found) == len(names)


def test_new_plugins_are_measured_in_the_quickstart_suite(place, tmp_path):
    few = "episodes: 4, cost_episodes: 2"
    protocols = (
        f"{{name: acme/three-shots, targets: [site A], shots: [3], {few}}}",
        f"{{name: acme/smears-sites, targets: [north], shots: [1], {few}}}",
    )
    done = place.medbench(
        "run",
        "quickstart",
        f"--set=protocols=[{', '.join(protocols)}]",
        "--set=algorithms=[acme/city-block]",
        "--set=backbones=[acme/small-net]",
        "--set=budget.episodes=5",
        f"--out={tmp_path / 'out'}",
        "--workers=1",
        MEDBENCH_PLUGINS=OWN,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "records").glob("*.json")]
    assert {r["status"] for r in records} == {"ok"}
    assert {r["cell"]["protocol"] for r in records} == {"acme/three-shots", "acme/smears-sites"}
    assert {r["cell"]["dataset"] for r in records} >= {"acme/smears"}
    assert {r["cell"]["algorithm"] for r in records} == {"acme/city-block"}
    assert {r["cell"]["backbone"] for r in records} == {"acme/small-net"}


@pytest.mark.parametrize(("kind", "name", "variant"), MADE)
def test_a_new_distribution_has_all_that_an_author_needs(kind, name, variant, tmp_path):
    folder = tmp_path / "new"
    made = scaffold(kind, name, registry(), folder, variant)
    written = {path.relative_to(folder).as_posix() for path in made}
    package = name.replace("/", "_").replace("-", "_")
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


def test_a_beginning_that_a_kind_does_not_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match="takes no --with, and not --with masks"):
        scaffold("backbone", "acme/net", registry(), tmp_path / "new", "masks")
    with pytest.raises(UsageError, match="takes --with masks, and not --with meta-train"):
        scaffold("dataset", "acme/data", registry(), tmp_path / "new", "meta-train")
    assert not (tmp_path / "new").exists()


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
