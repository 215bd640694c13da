"""The specs say what the code does."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

from medbench.api import AlgorithmSpec
from medbench_algorithms import medbench_algorithms

SPECS = {spec.name: spec for spec in medbench_algorithms()}


def load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def test_the_seven_are_there() -> None:
    assert set(SPECS) >= {
        "protonet",
        "simpleshot",
        "linear-probe",
        "nearest-neighbour",
        "baseline",
        "maml",
        "anil",
    }


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_parameters_and_defaults_are_those_of_the_constructor(spec: AlgorithmSpec) -> None:
    own = {n: p.default for n, p in inspect.signature(load(spec.factory)).parameters.items()}
    # A trainer of its own takes the parameters of training.
    declared = [p for p in spec.parameters if not (spec.trainer and p.stage == "train")]
    assert {p.name: p.default for p in declared} == own
    load(spec.factory)(**own)


@pytest.mark.parametrize(
    "spec",
    [s for s in SPECS.values() if s.trainer],
    ids=[s.name for s in SPECS.values() if s.trainer],
)
def test_trainers_take_the_parameters_of_training(spec: AlgorithmSpec) -> None:
    assert spec.trainer is not None
    given = {p.name: p.default for p in spec.parameters if p.stage != "adapt"}
    assert given.keys() == inspect.signature(load(spec.trainer)).parameters.keys()
    load(spec.trainer)(**given)


def test_plain_trainings_can_be_shared() -> None:
    shared = [SPECS[n] for n in ("simpleshot", "linear-probe", "nearest-neighbour", "baseline")]
    assert len({s.trainer for s in shared}) == 1
    names = {tuple(p.name for p in s.parameters if p.stage != "adapt") for s in shared}
    assert names == {("pretrain", "lr", "batch_size")}
    defaults = {s.name: {p.name: p.default for p in s.parameters}["pretrain"] for s in shared}
    assert defaults == {
        "simpleshot": "supervised",
        "baseline": "supervised",
        "linear-probe": "none",
        "nearest-neighbour": "none",
    }


@pytest.mark.parametrize("name", ["protonet", "maml", "anil"])
def test_episodic_trainers_declare_the_shape_of_their_tasks(name: str) -> None:
    stages = {p.name: p.stage for p in SPECS[name].parameters}
    assert {stages[f"train_{k}"] for k in ("way", "shot", "query")} == {"train"}


def test_maml_is_transductive_by_its_batch_norm() -> None:
    for name in ("maml", "anil"):
        assert SPECS[name].traits.is_transductive({"batch_norm": "query"})
        assert not SPECS[name].traits.is_transductive({"batch_norm": "support"})


def test_listing_the_plugins_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, medbench_algorithms as a, medbench_backbones as b\n"
        "a.medbench_algorithms(), b.medbench_backbones()\n"
        "assert not {'torch', 'numpy', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
