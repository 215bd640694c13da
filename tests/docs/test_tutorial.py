"""The tutorial's plugin is a real distribution: pip installs it, medbench finds and checks it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fresh import FreshEnvironment
from medbench.api import Support
from medbench.conformance.subject import find_subjects
from medbench.conformance.suite import checks_of, examine
from medbench.plugins import registry
from medbench.scaffold import scaffold

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "docs" / "tutorial" / "acme-shrunken-means"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    return FreshEnvironment.of(tmp_path_factory.mktemp("tutorial") / "venv", PLUGIN)


def test_it_is_not_there_before_pip_installs_it():
    assert registry().find("acme/shrunken-means") == []


def test_it_is_found_through_its_entry_point_and_passes_every_check(place):
    done = place.medbench("check", "acme/shrunken-means", "--json")
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(done.stdout)
    assert found["origin"] == "acme-shrunken-means 0.1.0"
    assert {check["status"] for check in found["checks"]} <= {"ok", "does not apply"}


def test_its_centres_are_those_of_the_formula(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place.packages))
    module = importlib.import_module("acme_shrunken_means.algorithm")
    inputs = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 8.0]])
    support = Support(inputs, torch.tensor([0, 0, 1]), 2, (0,))
    found = module.ShrunkenMeans(shrinkage=1.0).adapt(support)
    # Means (1, 0) and (4, 8), of all (2.5, 4); weights 2/3 and 1/2.
    expected = torch.tensor([[1.5, 4 / 3], [3.25, 6.0]])
    assert torch.allclose(found.centres, expected)
    assert found.n_adapted == 4
    plain = module.ShrunkenMeans(shrinkage=0.0).adapt(support)
    assert torch.allclose(plain.centres, torch.tensor([[1.0, 0.0], [4.0, 8.0]]))
    assert found.predict(inputs).shape == (3, 2)


# --- the data set --------------------------------------------------------------------------------


def images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for site in ("north", "south"):
        for number, kind in enumerate(("lymphocyte", "monocyte", "neutrophil", "platelet")):
            (folder / site / kind).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 60 * (number + 1), (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / site / kind / f"{i}.png")


@pytest.fixture
def smears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plugin as the page leaves it: what `medbench new` wrote, with the page's changes."""
    made = tmp_path / "plugin"
    scaffold("dataset", "clinic/smears", registry(), made)
    package = made / "src" / "clinic_smears"
    page = (ROOT / "docs" / "tutorial" / "dataset.md").read_text()
    (package / "dataset.py").write_text(page.split("```python\n")[1].split("```")[0])
    for file, changes in {
        "__init__.py": {
            'modality="made up"': 'modality="microscopy"',
            'domain="clinic-smears"': 'domain="microscopy-blood-clinic"',
            'licence="CC0-1.0"': 'licence="CC-BY-4.0"',
            "n_classes=3": "n_classes=4",
        },
        "sites.yaml": {"image_size: 28": "image_size: 64", "channels: 1": "channels: 3"},
    }.items():
        text = (package / file).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (package / file).write_text(text)
    images(tmp_path / "data" / "clinic-smears")
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(made / "src"))
    yield package
    for name in ("clinic_smears", "clinic_smears.dataset"):
        sys.modules.pop(name, None)


def outcomes(kind: str) -> dict[str, str]:
    (subject,) = find_subjects(registry(), f"clinic_smears:medbench_{kind}")
    asked = examine(subject)
    results = [asked.result(name) for name in checks_of(kind)]
    return {r.check.id: f"{r.status} {r.text}" for r in results if r.status != "ok"}


def test_the_data_set_of_the_tutorial_passes_every_check(smears):
    assert outcomes("datasets") == {
        "patients": "does not apply it does not know the patients",
        "targets": "does not apply its task is classification",
    }


def test_a_spec_left_as_it_was_fails_as_the_tutorial_says(smears):
    text = (smears / "__init__.py").read_text()
    (smears / "__init__.py").write_text(text.replace("n_classes=4", "n_classes=3"))
    said = outcomes("datasets")["info"]
    assert said == "failed number of classes is 4 in info and 3 in the spec."
    assert said.partition(" ")[2] in (ROOT / "docs" / "tutorial" / "dataset.md").read_text()
