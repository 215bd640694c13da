"""The specs: cheap to import, complete, and true to the code behind them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from medbench.api import DatasetSpec
from medbench_datasets import medbench_datasets
from medbench_datasets._medmnist_facts import MEDMNIST

SPECS = {spec.name: spec for spec in medbench_datasets()}


def test_all_datasets_are_there() -> None:
    families = {name for name, spec in SPECS.items() if spec.takes_argument}
    targets = {"voc", "coco", "masks", "boxes", "npz-masks", "msd", "dicom"}
    assert families == {"npz", "folder", "csv", "aligned", "synthetic"} | targets
    apart = {"omniglot", "synthetic-vessels", "synthetic-scans", "synthetic-patients"}
    assert set(SPECS) == {f"medmnist/{n}" for n in MEDMNIST} | families | apart
    assert len(MEDMNIST) == 18


def test_listing_the_specs_imports_nothing_heavy() -> None:
    code = (
        "import sys, medbench_datasets as d; d.medbench_datasets();"
        "print([m for m in ('numpy', 'torch', 'PIL', 'medmnist') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_factories_take_the_parameters_with_the_defaults_that_the_spec_states(
    spec: DatasetSpec,
) -> None:
    module, _, name = spec.factory.partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    keywords = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert ("argument" in keywords) == bool(spec.takes_argument)
    keywords.pop("argument", None)
    assert {n: p.default for n, p in keywords.items()} == {
        p.name: p.default for p in spec.parameters
    }
    for parameter in spec.parameters:
        assert parameter.optional == (parameter.default is None)
        assert not parameter.choices or parameter.optional or parameter.default in parameter.choices


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_specs_say_who_made_the_data_and_on_what_terms(spec: DatasetSpec) -> None:
    assert spec.licence
    assert spec.summary
    assert spec.domain
    assert spec.citation.title
    assert spec.non_commercial == ("NC" in spec.licence)
    if spec.fetch:
        module, _, name = spec.fetch.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
