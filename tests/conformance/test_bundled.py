"""Bundled plugins keep the promises that others are asked for; `make conformance` checks them all.

One of every sort is checked here: on features, maps and images; batched and looped; trained and
not; inductive and transductive; with and without excuses.
"""

from __future__ import annotations

import pytest

from medbench import conformance
from medbench.conformance.subject import find_subjects
from medbench.conformance.suite import examine
from medbench.plugins import KINDS, registry

SORTS = ("protonet", "linear-probe", "bd-cspn", "anil", "dn4", "baseline")
OTHERS = (
    "conv4",
    "synthetic:cells",
    "synthetic:xray",
    "synthetic-vessels",
    "synthetic-scans",
    "synthetic-patients",
)
COMPRESSED = ("int8:conv4", "pruned:conv4", "distilled:conv4")


@conformance.parametrize(*SORTS, *OTHERS, *COMPRESSED)
def test_one_of_every_sort_passes_every_check(check):
    check()


PROTOCOLS = [name for name in registry().entries["protocols"] if name.startswith("synthetic-")]


@conformance.parametrize(*PROTOCOLS)
def test_protocols_on_made_up_data_pass_every_check(check):
    check()


SPECS = [(kind, name) for kind in KINDS for name in registry().entries[kind]]


@pytest.mark.parametrize(("kind", "name"), SPECS, ids=[f"{k}-{n}" for k, n in SPECS])
def test_every_spec_is_complete_and_its_excuses_have_reasons(kind, name):
    member = {"timm": "timm:resnet18", "synthetic": "synthetic:cells"}.get(name, name)
    if getattr(registry().entries[kind][name].spec, "takes_argument", "") and ":" not in member:
        member += ":mine"
    (subject,) = [s for s in find_subjects(registry(), member) if s.kind == kind]
    asked = examine(subject)  # raises for an excuse without a reason, or of no check
    assert asked.result("spec").status == "ok", asked.result("spec").text
    assert asked.result("api-only").status == "ok", asked.result("api-only").text
