"""Verdicts on cells, and every way in which a gate must not pass silently."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medbench.errors import ConfigError, DataError, UsageError
from medbench.gate.baseline import read_baseline, write_baseline
from medbench.gate.judge import judge
from medbench.gate.reading import read_side
from medbench.gate.thresholds import Thresholds, load_thresholds
from medbench.gate.verdicts import Verdict

RNG = np.random.default_rng(0)
LEVEL = np.clip(RNG.normal(0.7, 0.1, 400), 0, 1)


def gate(before, after, **rules):
    return judge(read_side(before, "accuracy"), read_side(after, "accuracy"), Thresholds(**rules))


def verdict(outcome, metric):
    (found,) = [c for c in outcome.comparisons if c.metric == metric]
    return found.verdict


def test_the_same_run_again_passes_and_is_equivalent(run_folder):
    outcome = gate(
        run_folder("a", {"m": {"scores": LEVEL}}), run_folder("b", {"m": {"scores": LEVEL}})
    )
    assert outcome.exit_code == 0
    assert verdict(outcome, "accuracy") is Verdict.EQUIVALENT
    assert verdict(outcome, "tensor_bytes") is Verdict.EQUIVALENT
    assert outcome.headline.startswith("PASS")


def test_a_loss_of_accuracy_fails_and_a_gain_does_not(run_folder):
    worse = np.clip(LEVEL - RNG.normal(0.02, 0.05, 400), 0, 1)
    a, b = run_folder("a", {"m": {"scores": LEVEL}}), run_folder("b", {"m": {"scores": worse}})
    outcome = gate(a, b)
    assert (outcome.exit_code, verdict(outcome, "accuracy")) == (1, Verdict.REGRESSION)
    assert "--only 'd:5w5s / conv4 / m / seed0'" in outcome.reproduce
    back = gate(b, a)
    assert (back.exit_code, verdict(back, "accuracy")) == (0, Verdict.IMPROVEMENT)


def test_accuracy_is_compared_as_scipy_does_it(run_folder):
    from scipy import stats

    other = np.clip(LEVEL + RNG.normal(0.004, 0.05, 400), 0, 1)
    outcome = gate(
        run_folder("a", {"m": {"scores": LEVEL}}), run_folder("b", {"m": {"scores": other}})
    )
    (found,) = [c for c in outcome.comparisons if c.metric == "accuracy"]
    test = stats.ttest_rel(other, LEVEL)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_the_declared_tolerance_is_no_difference(run_folder):
    a = run_folder("a", {"m": {"scores": LEVEL}})
    b = run_folder("b", {"m": {"scores": LEVEL - 0.006}})
    assert gate(a, b).exit_code == 1
    outcome = gate(a, b, accuracy={"tolerance": 0.007})
    assert (outcome.exit_code, verdict(outcome, "accuracy")) == (0, Verdict.EQUIVALENT)


def test_too_few_episodes_cannot_tell_and_may_be_made_to_fail(run_folder):
    a = run_folder("a", {"m": {"scores": [0.5, 0.7, 0.6, 0.8]}})
    b = run_folder("b", {"m": {"scores": [0.6, 0.5, 0.7, 0.6]}})
    assert verdict(gate(a, b), "accuracy") is Verdict.CANNOT_TELL
    assert gate(a, b).exit_code == 0
    assert gate(a, b, fail_on=["regression", "cannot_tell"]).exit_code == 1


def test_tensor_memory_is_exact(run_folder):
    a = run_folder("a", {"m": {"tensor_bytes": 1_000_000}})
    for size, wanted in (
        (1_060_000, Verdict.REGRESSION), (1_040_000, Verdict.EQUIVALENT),
        (940_000, Verdict.IMPROVEMENT),
    ):  # fmt: skip
        b = run_folder(f"b{size}", {"m": {"tensor_bytes": size}})
        assert verdict(gate(a, b), "tensor_bytes") is wanted
    tiny = (
        run_folder("t", {"m": {"tensor_bytes": 1000}}),
        run_folder("u", {"m": {"tensor_bytes": 5000}}),
    )
    assert verdict(gate(*tiny), "tensor_bytes") is Verdict.EQUIVALENT


def test_one_run_each_tells_a_doubled_time_and_not_a_tenth(run_folder):
    a = run_folder("a", {"m": {"adapt": 0.02}})
    double = gate(a, run_folder("b", {"m": {"adapt": 0.04}}))
    assert verdict(double, "adaptation_s") is Verdict.REGRESSION
    tenth = gate(a, run_folder("c", {"m": {"adapt": 0.022}}))
    assert verdict(tenth, "adaptation_s") is Verdict.CANNOT_TELL
    assert any("not measured in turns" in n for n in tenth.notices)


def test_a_slower_machine_is_told_by_its_calibration(run_folder):
    a = run_folder("a", {"m": {"adapt": 0.02, "speed": 0.002}})
    b = run_folder("b", {"m": {"adapt": 0.032, "speed": 0.0032}})
    outcome = gate(a, b)
    assert outcome.exit_code == 0
    (found,) = [c for c in outcome.comparisons if c.metric == "adaptation_s"]
    assert found.effect == pytest.approx(0.0, abs=1e-9)
    assert any("60% slower now" in n for n in outcome.notices)


def test_differences_of_microseconds_matter_to_nobody(run_folder):
    a = run_folder("a", {"m": {"adapt": 2e-5}})
    outcome = gate(a, run_folder("b", {"m": {"adapt": 6e-5}}))
    assert outcome.exit_code == 0


def test_records_of_an_older_medbench_compare_by_their_medians(run_folder):
    a = run_folder("a", {"m": {"raw": False}})
    outcome = gate(a, run_folder("b", {"m": {"adapt": 0.2}}))
    assert verdict(outcome, "adaptation_s") is Verdict.REGRESSION
    (found,) = [c for c in outcome.comparisons if c.metric == "adaptation_s"]
    assert "no calibration" in found.note


def test_missing_cells_fail_and_are_named_and_new_ones_are_named(run_folder):
    a = run_folder("a", {"m": {}, "gone": {}})
    outcome = gate(a, run_folder("b", {"m": {}, "fresh": {}}))
    assert outcome.exit_code == 1
    assert [(t.what, t.title.split(" / ")[2], t.fatal) for t in outcome.troubles] == [
        ("missing", "gone", True), ("new", "fresh", False),
    ]  # fmt: skip


def test_fewer_cells_than_planned_fails(run_folder):
    a = run_folder("a", {"m": {}})
    outcome = gate(a, run_folder("b", {"m": {}}, planned=["m", "n"]))
    assert outcome.exit_code == 1
    assert [(t.what, t.title) for t in outcome.troubles] == [("missing", "n")]


def test_half_of_the_cells_failed(run_folder):
    names = [f"m{i}" for i in range(4)]
    a = run_folder("a", {n: {} for n in names})
    failing = {n: {"status": "crash"} if i < 2 else {} for i, n in enumerate(names)}
    outcome = gate(a, run_folder("b", failing))
    assert outcome.exit_code == 1
    assert "2 cells failed" in outcome.headline
    assert "it broke" in outcome.troubles[0].message


def test_a_cell_that_fails_on_both_sides_fails_and_a_repaired_one_does_not(run_folder):
    a = run_folder("a", {"m": {}, "x": {"status": "oom"}})
    assert gate(a, run_folder("b", {"m": {}, "x": {"status": "oom"}})).exit_code == 1
    outcome = gate(a, run_folder("c", {"m": {}, "x": {}}))
    assert (outcome.exit_code, outcome.troubles[0].what) == (0, "repaired")


def test_nothing_measured_is_three(run_folder):
    good, bad = run_folder("a", {"m": {}}), run_folder("b", {"m": {"status": "crash"}})
    assert gate(good, bad).exit_code == 3
    assert gate(bad, good).exit_code == 3
    other = gate(good, run_folder("c", {"else": {}}))
    assert (other.exit_code, "no cell could be compared" in other.headline) == (3, True)


def test_other_protocol_versions_are_not_compared_and_fail(run_folder):
    a = run_folder("a", {"m": {}, "n": {}})
    outcome = gate(a, run_folder("b", {"m": {"version": 2}, "n": {}}))
    assert outcome.exit_code == 1
    assert "version 1 before and 2 now" in outcome.troubles[0].message
    assert {c.title.split(" / ")[2] for c in outcome.comparisons} == {"n"}


def test_other_episodes_are_not_compared_and_fewer_are_the_first(run_folder):
    a = run_folder("a", {"m": {"scores": LEVEL}})
    outcome = gate(a, run_folder("b", {"m": {"scores": LEVEL, "episodes": "other"}}))
    assert outcome.exit_code == 3
    fewer = gate(a, run_folder("c", {"m": {"scores": LEVEL[:100], "episodes": "first"}}))
    assert fewer.exit_code == 0
    assert any("the first 100" in n for n in fewer.notices)


def test_other_hardware_leaves_out_times_and_says_so(run_folder):
    a = run_folder("a", {"m": {"adapt": 0.01}})
    b = run_folder("b", {"m": {"adapt": 0.09, "hardware": "another"}})
    outcome = gate(a, b)
    assert outcome.exit_code == 0
    assert verdict(outcome, "time") is Verdict.NOT_COMPARED
    assert any("TIMES AND MEMORY WERE NOT COMPARED" in n for n in outcome.notices)
    assert "2 not compared" in outcome.headline
    strict = gate(a, b, require=["accuracy", "time"])
    assert (strict.exit_code, "time was required" in strict.headline) == (1, True)


def test_a_cell_that_failed_in_one_round_has_failed(run_folder):
    good = run_folder("g", {"m": {}})
    for i, status in enumerate(["ok", "crash", "ok"]):
        run_folder(f"b/rounds/{i}", {"m": {"status": status}}, second=i)
    outcome = gate(good, good.parent / "b")
    assert outcome.exit_code == 3
    assert "in 1 of 3 rounds" in outcome.troubles[0].message


def test_a_baseline_file_says_what_the_run_says(run_folder, tmp_path):
    for i in range(3):
        run_folder(f"a/rounds/{i}", {"m": {"scores": LEVEL, "adapt": 0.01 + i / 1000}}, second=i)
    side = read_side(tmp_path / "a", "accuracy")
    write_baseline(tmp_path / "b.json", side, "c0ffee")
    again = read_baseline(tmp_path / "b.json", "accuracy")
    assert again.cells == side.cells
    assert again.commit == "c0ffee"
    assert len((tmp_path / "b.json").read_text().splitlines()) < 15


def test_missing_scores_survive_the_baseline_file(run_folder, tmp_path):
    side = read_side(run_folder("a", {"m": {"scores": [np.nan, 0.5, 0.7]}}), "accuracy")
    write_baseline(tmp_path / "b.json", side)
    (cell,) = read_baseline(tmp_path / "b.json", "accuracy").cells.values()
    np.testing.assert_array_equal(cell.scores, [np.nan, 0.5, 0.7])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda t: t[: len(t) // 2], "not a readable baseline"),
        (lambda t: t.replace("0.8", "0.7", 1), "cut, merged or edited"),
        (lambda t: t.replace('"schema": 1', '"schema": 9'), "upgrade"),
        (lambda t: "{}", "not a baseline file"),
        (lambda t: t[: t.index('"cells"')] + '"cells": []}', "cut, merged or edited"),
    ],
)
def test_a_damaged_baseline_is_an_error(run_folder, tmp_path, harm, words):
    path = tmp_path / "b.json"
    write_baseline(path, read_side(run_folder("a", {"m": {}}), "accuracy"))
    path.write_text(harm(path.read_text()))
    with pytest.raises(DataError, match=words):
        read_side(path, "accuracy")


def test_a_baseline_is_not_written_from_a_run_that_is_not_whole(run_folder, tmp_path):
    for name, cells, planned in (
        ("a", {"m": {}, "n": {"status": "crash"}}, None),
        ("b", {"m": {}}, ["m", "n"]),
        ("c", {"m": {"status": "crash"}}, None),
    ):
        side = read_side(run_folder(name, cells, planned=planned), "accuracy")
        with pytest.raises(UsageError, match="measured"):
            write_baseline(tmp_path / "x.json", side)
    assert not (tmp_path / "x.json").exists()


def test_damaged_records_are_errors_and_not_a_cell_less(run_folder):
    for name, harm in (("a", lambda d: d[:40]), ("b", lambda d: d.replace('"times"', '"x"', 0))):
        folder = run_folder(name, {"m": {}, "n": {}})
        path = next((folder / "records").glob("n*.json"))
        path.write_text(harm(path.read_text()))
        if name == "a":
            with pytest.raises(DataError, match="not a readable record"):
                read_side(folder, "accuracy")
    folder = run_folder("c", {"m": {}})
    path = next((folder / "records").glob("*.json"))
    data = json.loads(path.read_text())
    data["costs"]["episodes"]["adapt_s"] = ["fast"]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="times cannot be used"):
        read_side(folder, "accuracy")
    next((folder / "records").glob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="changed after they were recorded"):
        read_side(folder, "accuracy")


def test_empty_and_unknown_places_are_explained(tmp_path):
    with pytest.raises(UsageError, match="There is no"):
        read_side(tmp_path / "none", "accuracy")
    with pytest.raises(UsageError, match="holds no records"):
        read_side(tmp_path, "accuracy")
    (tmp_path / "rounds").mkdir()
    with pytest.raises(UsageError, match="holds no rounds"):
        read_side(tmp_path, "accuracy")


def test_an_unknown_metric_is_named_with_the_known(run_folder):
    with pytest.raises(DataError, match="no metric 'auroc'; it has accuracy"):
        read_side(run_folder("a", {"m": {}}), "auroc")


def test_thresholds_come_from_yaml_with_the_line_of_an_error(tmp_path, run_folder):
    path = tmp_path / "gate.yaml"
    path.write_text("overrides:\n  - cells: slow\n    memory: {smallest: 0.5}\n")
    rules = load_thresholds(path)
    assert rules.of("d / conv4 / slow-one / seed0")[2].smallest == 0.5
    assert rules.of("d / conv4 / m / seed0")[2].smallest == 0.05
    path.write_text("time:\n  smalest: 0.1\n")
    with pytest.raises(ConfigError, match=r"gate\.yaml:2: unknown key 'smalest'.*'smallest'"):
        load_thresholds(path)
    path.write_text("accuracy: {metric: nll}\n")
    with pytest.raises(ConfigError, match="falls as a method improves"):
        load_thresholds(path)


def test_scores_at_chance_are_told_because_they_cannot_get_worse(run_folder):
    guessing = np.tile([0.14, 0.30], 200)
    cells = {"m": {"scores": LEVEL}, "n": {"scores": guessing}}
    outcome = gate(run_folder("a", cells), run_folder("b", cells))
    (told,) = [text for text in outcome.notices if "near chance" in text]
    assert "In 1 of 2 cells accuracy is near chance (22% in 5-way tasks" in told
    assert "guessing gives 20%" in told
    only = {"m": {"scores": LEVEL}}
    quiet = gate(run_folder("c", only), run_folder("d", only))
    assert not [text for text in quiet.notices if "near chance" in text]


def test_a_baseline_that_is_not_there_yet_is_refused_with_the_command_that_writes_it(
    run_folder, tmp_path, capsys
):
    from medbench.cli import main

    now, file = run_folder("a", {"m": {"scores": LEVEL}}), tmp_path / "base.json"
    with pytest.raises(SystemExit) as stop:
        main(["gate", str(file), str(now)])
    assert stop.value.code == 2
    assert f"medbench gate {file} {now} --update" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gate", str(file), str(now), "--update"])
    assert f"{file}: 1 cell of {now}." in capsys.readouterr().out


@pytest.mark.parametrize(("waits", "kept"), [(0.0, True), (0.015, True), (0.025, False)])
def test_waits_longer_than_their_times_are_not_believed(run_folder, waits, kept):
    side = read_side(run_folder("a", {"m": {"adapt": 0.02, "waits": waits}}), "accuracy")
    (cell,) = side.cells.values()
    expected = (waits,) * 6 if kept else ()
    assert cell.rounds[0].waits == dict.fromkeys(("adaptation_s", "prediction_s"), expected)
