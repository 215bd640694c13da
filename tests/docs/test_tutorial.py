"""The tutorial's plugin is a real distribution: pip installs it, medbench finds and checks it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from fresh import FreshEnvironment
from medbench.api import Support
from medbench.plugins import registry

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
