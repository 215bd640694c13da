"""The tutorial's plugin is a real distribution: pip installs it, medbench finds and checks it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medbench.api import Support

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "docs" / "tutorial" / "acme-shrunken-means"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    wheel = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    wheel += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    done = subprocess.run([*wheel, str(PLUGIN)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def medbench(site: Path | None, *arguments: str) -> subprocess.CompletedProcess:
    found = [str(site)] if site else []
    return subprocess.run(
        [sys.executable, "-m", "medbench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*found, *sys.path])},
    )


def test_it_is_not_there_before_pip_installs_it():
    done = medbench(None, "info", "acme/shrunken-means")
    assert done.returncode == 2
    assert "There is nothing called" in done.stderr


def test_it_is_found_through_its_entry_point(site):
    done = medbench(site, "plugins", "--json")
    plugins = {p["distribution"]: p for p in json.loads(done.stdout)["plugins"]}
    assert plugins["acme-shrunken-means"]["module"] == "acme_shrunken_means"
    done = medbench(site, "info", "acme/shrunken-means", "--json")
    assert json.loads(done.stdout)["distribution"] == "acme-shrunken-means"


def test_it_passes_every_check(site):
    done = medbench(site, "check", "acme/shrunken-means")
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


def test_its_centres_are_those_of_the_formula(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
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
