"""Every check finds what it is for, in a plugin that is wrong in that one way, and says so."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import wrong_specs

from medbench.conformance.check import Examination, Result
from medbench.conformance.subject import Subject, _params, find_subjects
from medbench.conformance.suite import SHELVES, checks_of, examine
from medbench.plugins import Entry, Plugin, Registry, registry

PLUGIN = Plugin("wrong", "1.0", "wrong_specs", "wrong_specs", (), 0.0)
# What a plugin of every kind is asked, and a wrong algorithm proves for all of them.
COMMON = {"import", "spec", "api-only"}
# Proved where there is a GPU.
GPU = {"device"}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wrong.txt").write_text("here")
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def everything() -> Registry:
    found = Registry(entries={k: dict(v) for k, v in registry().entries.items()})
    right = wrong_specs.RIGHT["datasets"]
    for spec in (right, replace(right, name="wrong/again-right")):
        found.entries["datasets"][spec.name] = Entry("datasets", spec, PLUGIN)
    return found


def examination(kind: str, spec, module: str = "wrong_specs") -> Examination:
    entry = Entry(kind, spec, replace(PLUGIN, module=module))
    name = f"{spec.name}:conv4" if getattr(spec, "wraps", ()) else spec.name
    return examine(Subject(everything(), entry, name, _params(entry, {})))


def results(kind: str, spec, module: str = "wrong_specs") -> dict[str, Result]:
    asked = examination(kind, spec, module)
    return {name: asked.result(name) for name in checks_of(kind)}


CASES = [
    pytest.param(kind, check, spec, id=f"{kind}-{spec.name.removeprefix('wrong/')}-{i}")
    for kind, by_check in wrong_specs.WRONG.items()
    for check, specs in by_check.items()
    for i, spec in enumerate(specs)
]


@pytest.mark.parametrize(("kind", "check", "spec"), CASES)
def test_a_wrong_plugin_fails_the_one_check_that_is_for_it(kind, check, spec):
    found = results(kind, spec)
    failed = {name: r.text for name, r in found.items() if r.bad}
    assert set(failed) == {check}, failed
    said = found[check].message()
    assert len(failed[check]) > 20
    assert found[check].check.hint in said
    assert found[check].check.reason in said


@pytest.mark.parametrize("kind", SHELVES)
def test_the_plugin_that_all_wrong_ones_vary_passes_every_check(kind):
    found = results(kind, wrong_specs.RIGHT[kind])
    assert {n: r.text for n, r in found.items() if r.status not in ("ok", "does not apply")} == {}


@pytest.mark.parametrize(
    ("factory", "kind"), [("Masks", "segmentation"), ("RightBoxes", "detection")]
)
def test_right_masks_and_boxes_pass_every_check(factory, kind):
    found = results("datasets", wrong_specs._dataset("targets", factory, task_kind=kind))
    assert {n: r.text for n, r in found.items() if r.status not in ("ok", "does not apply")} == {}
    assert found["targets"].status == "ok"


# --- methods for masks and boxes -----------------------------------------------------------------

MARK_CASES = [
    pytest.param(check, spec, id=f"{kind}-{spec.name.removeprefix('wrong/')}")
    for kind, by_check in wrong_specs.MARKS.items()
    for check, specs in by_check.items()
    for spec in specs
]
# They take longest, and are asked of the right methods and of those that are wrong in them.
SLOW = {"above-chance", "shuffled-labels", "query-labels"}
# These do not depend on the task kind, and are proved above.
ELSEWHERE = COMMON | {"other-process", "no-network", "no-writing"}


@pytest.mark.parametrize(("check", "spec"), MARK_CASES)
def test_a_wrong_method_for_masks_or_boxes_fails_the_one_check_that_is_for_it(check, spec):
    asked = examination("algorithms", spec)
    left_out = ELSEWHERE | SLOW - {check}
    found = [asked.result(name) for name in checks_of("algorithms") if name not in left_out]
    assert {r.check.id for r in found if r.bad} == {check}, [(r.check.id, r.text) for r in found]
    assert len(asked.result(check).text) > 20


@pytest.mark.parametrize("kind", wrong_specs.MARKS)
def test_right_methods_for_masks_and_boxes_pass_every_check(kind):
    found = results("algorithms", wrong_specs.RIGHT_MARKS[kind])
    assert {n: r.text for n, r in found.items() if r.status not in ("ok", "does not apply")} == {}


def test_a_method_for_two_task_kinds_is_checked_in_each():
    right = wrong_specs.RIGHT_MARKS["segmentation"]
    both = replace(right.traits, task_kinds=("classification", "multilabel", "segmentation"))
    known = Registry(entries={k: dict(v) for k, v in registry().entries.items()})
    spec = replace(right, traits=both)
    known.entries["algorithms"][spec.name] = Entry("algorithms", spec, PLUGIN)
    found = find_subjects(known, spec.name)
    assert [subject.task_kind for subject in found] == ["classification", "segmentation"]
    assert examine(found[0]).result("shapes").status == "failed"
    assert examine(found[1]).result("shapes").status == "ok"


@pytest.mark.parametrize("kind", SHELVES)
def test_every_check_is_proved_on_a_wrong_plugin(kind):
    proved = set(wrong_specs.WRONG[kind]) | GPU | COMMON
    assert set(checks_of(kind)) <= proved
    assert set(wrong_specs.WRONG[kind]) <= set(checks_of(kind))


@pytest.mark.parametrize(
    ("module", "words"),
    [("wrong_heavy", "imports torch"), ("wrong_slow", "takes 0."), ("wrong_absent", "No module")],
)
def test_a_heavy_slow_or_missing_module_fails_the_check_of_imports(module, words):
    found = examination("algorithms", wrong_specs.RIGHT["algorithms"], module).result("import")
    assert found.status == "failed"
    assert words in found.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_scores_on_another_device_fail_the_check_of_devices():
    spec = wrong_specs._algorithm("device", "OnTheCpu")
    assert examination("algorithms", spec).result("device").status == "failed"
    right = examination("algorithms", wrong_specs.RIGHT["algorithms"])
    assert right.result("device").status == "ok"


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("one-query", "predict returned (3,) for 1 queries of a 3-way task"),
        ("unequal-shots", "wrong_algorithms.py:"),
        ("api-only", "wrong_reaching.py:7 imports medbench.episodes"),
        ("backbone-untouched", "buffer net.1.running_mean|buffer blocks.0.1.running_mean"),
        ("no-writing", "adapted.log"),
        ("no-network", "192.0.2.1"),
        ("adapted-count", "n_adapted is 3, and the trait adapts says 'nothing'"),
        ("query-labels", "wrong_algorithms.py:"),
        ("support-untouched", "changed the inputs it was given"),
    ],
)
def test_a_message_names_what_was_seen_and_where(check, words):
    text = examination("algorithms", wrong_specs.ALGORITHMS[check][0]).result(check).text
    assert any(word in text for word in words.split("|")), text


def test_a_check_runs_what_it_needs_and_is_blocked_by_its_failure():
    asked = examination("algorithms", wrong_specs.ALGORITHMS["finite"][0])
    assert asked.result("one-shot").status == "blocked"
    assert asked.result("one-shot").text == "says nothing before finite passes"


def test_an_excuse_that_is_not_needed_is_an_error():
    from medbench.api import Conformance, Excuse

    excuse = Excuse("support-order", "reads it in order")
    spec = replace(wrong_specs.RIGHT["algorithms"], conformance=Conformance(excuses=(excuse,)))
    found = examination("algorithms", spec).result("support-order")
    assert found.status == "unneeded"
    assert found.bad
    assert "Take the excuse out" in found.message()


def test_an_excuse_lets_a_failure_pass_with_its_reason_and_only_for_its_parameters():
    from medbench.api import Conformance, Excuse

    wrong = wrong_specs.ALGORITHMS["support-order"][0]
    for when, status in (({}, "excused"), ({"k": (3,)}, "failed")):
        excuse = Excuse("support-order", "reads it in order", when)
        spec = replace(wrong, conformance=Conformance(excuses=(excuse,)))
        found = examination("algorithms", spec).result("support-order")
        assert found.status == status
        assert (found.text == "reads it in order") == (status == "excused")


def test_a_method_declared_not_deterministic_is_spared_comparisons():
    spec = wrong_specs._algorithm("any", "TrueRandom", deterministic=False)
    found = results("algorithms", spec)
    assert not any(r.bad for r in found.values())
    assert found["deterministic"].status == "does not apply"
    assert found["above-chance"].status == "ok"


def test_wrong_modules_lie_beside_this_one():
    for name in ("wrong_algorithms", "wrong_heavy", "wrong_slow"):
        assert importlib.util.find_spec(name) is not None
    assert "wrong_heavy" not in sys.modules
