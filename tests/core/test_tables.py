"""Tables say who is tied, which ranks are open, what accuracy costs, and what failures do."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from medbench.cli import main
from medbench.leaderboard import judge as judging
from medbench.leaderboard.build import board_of
from medbench.leaderboard.costs import best_within, ladder, with_fronts
from medbench.leaderboard.latex import escape
from medbench.leaderboard.model import Row
from medbench.leaderboard.render import render
from medbench.leaderboard.table import build_board
from medbench.records import find_records, write_record
from medbench.stats import Estimate, holm, sign_flip

N = 120


def cell(folder, algorithm, target="d:5w1s", seed=0, scores=None, status="ok", groups=None, **more):
    """A record of one cell; `scores` are accuracies, or several metrics."""
    data = {
        "schema": 1,
        "key": f"{algorithm}{target}{seed}",
        "status": status,
        "cell": {
            "protocol": "p", "protocol_version": 1, "target": target, "way": 5,
            "shot": int(target.rpartition("w")[2].removesuffix("s")),
            "backbone": "conv4", "algorithm": algorithm, "seed": seed, "sources": ["s"],
        },
        "created": "2026",
        "hardware": {"class": "cpu"},
        "error": "" if status == "ok" else f"it ended with {status}",
    } | more  # fmt: skip
    if status == "ok":
        arrays = scores if isinstance(scores, dict) else {"accuracy": scores}
        arrays = {k: np.asarray(v, dtype=float) for k, v in arrays.items()}
    name = f"{algorithm}_{target}_{seed}".replace("/", "-").replace(":", "-")
    path = folder / "records" / f"{name}.json"
    write_record(path, data, arrays if status == "ok" else None, groups)


def board(folder, metric="accuracy", **more):
    return build_board(find_records([folder]), metric, **more)


def episodes(rng, mean, shared, sd=0.05):
    return np.clip(mean + shared + rng.normal(0, sd, len(shared)), 0, 1)


@pytest.fixture
def three(tmp_path):
    """Two rows that are nearly equal and one that is worse, on two targets."""
    rng = np.random.default_rng(0)
    for target in ("d:5w1s", "e:5w1s"):
        shared = rng.normal(0, 0.1, N)
        for name, mean in (("one", 0.6), ("two", 0.599), ("poor", 0.5)):
            cell(tmp_path, name, target, scores=episodes(rng, mean, shared))
    return tmp_path


def test_rows_that_are_not_told_apart_share_a_letter_and_their_ranks(three):
    one, _, overall = board(three).tables
    groups = {r.algorithm: r.verdict.group for r in one.rows}
    assert groups == {"one": "a", "two": "a", "poor": "b"}
    assert [(r.verdict.rank_low, r.verdict.rank_high) for r in one.rows] == [(1, 2), (1, 2), (3, 3)]
    assert overall.rows[-1].algorithm == "poor"
    assert overall.rows[-1].verdict.group == "b"
    assert (overall.rows[-1].verdict.rank_low, overall.rows[-1].verdict.rank_high) == (3.0, 3.0)
    assert sum(r.verdict.p_best for r in one.rows) == pytest.approx(1.0)
    assert overall.rows[0].verdict.p is None
    assert one.n_pairs == 3


def test_p_and_difference_are_those_of_the_pair_computed_by_hand(three):
    (table, *_) = board(three).tables
    scores = {r.cell["algorithm"]: r.scores()["accuracy"] for r in find_records([three])
              if r.cell["target"] == "d:5w1s"}  # fmt: skip
    names = [r.algorithm for r in table.rows]
    pairs = list(itertools.combinations(names, 2))
    raw = [sign_flip((scores[a] - scores[b])[None])[0] for a, b in pairs]
    corrected = dict(zip(pairs, holm(np.array(raw)), strict=True))
    for row in table.rows[1:]:
        assert row.verdict.p == pytest.approx(corrected[names[0], row.algorithm])
        gap = scores[row.algorithm] - scores[names[0]]
        assert row.verdict.difference == pytest.approx(gap.mean())
        half = stats.t.ppf(0.975, N - 1) * gap.std(ddof=1) / np.sqrt(N)
        assert row.verdict.low == pytest.approx(gap.mean() - half, abs=0.1 * half)
        assert row.verdict.high == pytest.approx(gap.mean() + half, abs=0.1 * half)


def test_of_some_metrics_less_is_better(tmp_path):
    rng = np.random.default_rng(1)
    for name, loss in (("sure", 0.2), ("unsure", 1.0)):
        for target in ("d:5w1s", "e:5w1s"):
            scores = {"accuracy": np.full(N, 0.5), "nll": rng.normal(loss, 0.1, N)}
            cell(tmp_path, name, target, scores=scores)
    for table in board(tmp_path, "nll").tables:
        assert [r.algorithm for r in table.rows] == ["sure", "unsure"]
        assert [r.mean_rank for r in table.rows] == [1.0, 2.0]
        assert [r.verdict.group for r in table.rows] == ["a", "b"]
        assert table.rows[1].verdict.difference == pytest.approx(0.8, abs=0.05)
        assert [r.verdict.p_best for r in table.rows] == [1.0, 0.0]


def test_rows_are_paired_on_the_seeds_they_share_and_not_without_any(tmp_path):
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 0.1, N)
    for name, seeds in (("a", (0, 1, 2)), ("b", (1, 2)), ("c", (1, 2, 3))):
        for seed in seeds:
            cell(tmp_path, name, seed=seed, scores=episodes(rng, 0.5, shared))
    (table,) = board(tmp_path).tables
    assert all(r.verdict.group == "a" for r in table.rows)
    cell(tmp_path, "d", seed=9, scores=episodes(rng, 0.1, shared))
    (table,) = board(tmp_path).tables
    assert all(r.verdict is None for r in table.rows)
    assert render(board(tmp_path), "table")


def test_seeds_that_disagree_keep_rows_tied(tmp_path):
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 0.05, N)
    for seed, (one, other) in enumerate([(0.7, 0.6), (0.5, 0.6), (0.66, 0.6)]):
        cell(tmp_path, "erratic", seed=seed, scores=episodes(rng, one, shared))
        cell(tmp_path, "steady", seed=seed, scores=episodes(rng, other, shared))
    (table,) = board(tmp_path).tables
    assert [r.verdict.group for r in table.rows] == ["a", "a"]
    assert table.rows[1].verdict.low < 0 < table.rows[1].verdict.high


def test_a_table_of_many_rows_is_judged_against_its_best_and_agrees_with_all_pairs(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(4)
    for target in ("d:5w1s", "e:5w1s"):
        shared = rng.normal(0, 0.1, N)
        for i in range(9):
            for seed in range(4):
                scores = episodes(rng, 0.62 - 0.01 * i, shared, 0.02)
                cell(tmp_path, f"a{i}", target, seed, scores=scores)
    whole = board(tmp_path)
    for module in (judging, __import__("medbench.leaderboard.intervals", fromlist=["x"])):
        monkeypatch.setattr(module, "ALL_PAIRS", 5)
    against_best = board(tmp_path)
    for few, many in zip(whole.tables, against_best.tables, strict=True):
        assert [r.score for r in few.rows] == [r.score for r in many.rows]
        tied = [r.tied_with_best for r in many.rows]
        assert tied[0]
        assert not tied[-1]
        for a, b in zip(few.rows[1:], many.rows[1:], strict=True):
            # Never more certain than the comparison of all pairs.
            assert b.verdict.p >= a.verdict.p - 1e-12
            assert b.verdict.rank_low is None


def test_verdicts_are_kept_between_commands_and_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("medbench.shelf._SETTLED_NS", -1)
    (tmp_path / "cache").mkdir()
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 0.1, N)
    for name in ("a", "b", "c"):
        for target in ("d:5w1s", "e:5w1s"):
            cell(tmp_path, name, target, scores=episodes(rng, 0.5, shared))
    first = board_of([tmp_path])
    monkeypatch.setattr("medbench.leaderboard.intervals.judge", None)
    assert board_of([tmp_path]) == first
    with pytest.raises(TypeError):
        board_of([tmp_path], method="bca")


def test_bca_is_named_where_it_was_used(three):
    found = board(three, method="bca")
    plain = board(three)
    assert found.tables[0].rows[0].score.low != plain.tables[0].rows[0].score.low
    assert "bias-corrected and accelerated" in render(found, "table")
    assert "bca" in render(found, "csv")


def test_complete_cases_and_the_worst_case_stand_beside_the_table_with_failures(tmp_path):
    rng = np.random.default_rng(6)
    targets = [f"{t}:5w1s" for t in "defg"]
    for target in targets:
        shared = rng.normal(0, 0.05, N)
        cell(tmp_path, "steady", target, scores=episodes(rng, 0.5, shared))
        if target == "g:5w1s":
            cell(tmp_path, "brittle", target, status="oom")
        else:
            cell(tmp_path, "brittle", target, scores=episodes(rng, 0.6, shared))
        cell(tmp_path, "poor", target, scores=episodes(rng, 0.4, shared))
    found = board(tmp_path)
    overall, complete, worst = found.tables[-3:]
    assert [t.rule for t in (overall, complete, worst)] == ["", "complete cases", "worst case"]
    assert [r.algorithm for r in overall.rows] == ["steady", "poor", "brittle"]
    assert overall.rows[-1].score is None
    assert [r.algorithm for r in complete.rows] == ["brittle", "steady", "poor"]
    assert complete.n_targets == 3
    assert complete.rows[0].score.mean == pytest.approx(0.6, abs=0.02)
    rows = {r.algorithm: r for r in worst.rows}
    assert rows["brittle"].score.mean == pytest.approx((3 * 0.6 + 0.4) / 4, abs=0.02)
    assert rows["brittle"].mean_rank == pytest.approx((1 + 1 + 1 + 2.5) / 4, abs=0.2)
    text = render(found, "md")
    assert "overall, complete cases (3 targets)" in text
    assert "Worst case: a failed cell scores, in every episode, as badly as the worst" in text


def test_data_sets_are_compared_where_there_are_enough_of_them(tmp_path):
    rng = np.random.default_rng(7)
    for i, shot in itertools.product(range(6), (1, 5)):
        shared = rng.normal(0, 0.05, N)
        for name, mean in (("good", 0.7), ("fair", 0.6), ("poor", 0.5)):
            cell(tmp_path, name, f"d{i}:5w{shot}s", scores=episodes(rng, mean, shared))
    overall = board(tmp_path).tables[-1]
    assert overall.n_targets == 12
    assert overall.across.n_datasets == 6
    assert overall.across.mean_ranks == (1.0, 2.0, 3.0)
    text = render(board(tmp_path), "table")
    assert "over 6 data sets as observations: Friedman chi-square 12.0" in text
    shutil.rmtree(tmp_path / "records")
    for i in range(5):
        for name in ("good", "fair"):
            cell(tmp_path, name, f"d{i}:5w1s", scores=rng.random(N))
    assert board(tmp_path).tables[-1].across is None


def test_rows_tested_on_other_data_stand_in_other_tables(tmp_path):
    for name, digest in (("a", "one"), ("b", "two"), ("c", "one")):
        cell(tmp_path, name, scores=np.full(N, 0.5),
             ingredients={"target": {"dataset": {"digest": digest * 3}}})  # fmt: skip
    tables = [t for t in board(tmp_path).tables if t.target]
    assert [[r.algorithm for r in t.rows] for t in tables] == [["a", "c"], ["b"]]
    assert tables[0].title.endswith("data oneoneon")


def test_hardware_is_never_mixed_and_the_board_says_that_it_has_several(tmp_path):
    for name, machine in (("a", "slow"), ("b", "fast")):
        cell(tmp_path, name, scores=np.full(N, 0.5), hardware={"class": machine})
    found = board(tmp_path)
    assert len(found.tables) == 2
    assert "2 classes of hardware (fast; slow)" in render(found, "table")


def row(name, mean, time=None, memory=None, **more):
    score = None if mean is None else Estimate(mean, mean, mean, 1, 10)
    return Row(name, "b", False, score, 1, 0, {}, (), 10, adaptation_s=time,
               peak_host_added_bytes=memory, **more)  # fmt: skip


def of_patients(folder, targets=("d:5w1s", "e:5w1s"), n=20, kind="patient", seeds=(0,)):
    """Two rows, with answers of patients of whom some are hard for all methods."""
    for target in targets:
        # Shots of one data set are about the same patients.
        ability = np.random.default_rng(ord(target[0])).uniform(0.3, 0.9, n)
        rng = np.random.default_rng(9)
        whose = rng.integers(0, n, (N, 25))
        for name, seed in itertools.product(("a", "b"), seeds):
            right = rng.random((N, 25)) < ability[whose]
            counts = {
                "group": np.arange(n),
                "answers": np.bincount(whose.ravel(), minlength=n),
                "right": np.bincount(whose.ravel(), right.ravel(), n).astype(int),
            }
            cell(folder, name, target, seed, right.mean(axis=1), groups=(kind, counts))


@pytest.mark.parametrize(("kind", "seeds"), [("patient", (0,)), ("image", (0, 1, 2))])
def test_intervals_cover_new_patients_where_records_hold_their_answers(tmp_path, kind, seeds):
    of_patients(tmp_path, kind=kind, seeds=seeds)
    plain, wide = board(tmp_path), board(tmp_path, method="groups")
    assert len(wide.tables) == 3
    for few, many in zip(plain.tables, wide.tables, strict=True):
        for a, b in zip(few.rows, many.rows, strict=True):
            assert b.score.mean == pytest.approx(a.score.mean)
            # Twenty patients tell less than three thousand answers.
            assert b.score.high - b.score.low > 2 * (a.score.high - a.score.low)
            assert b.score.covers.endswith(f"episodes and {kind}s")
            assert a.verdict == b.verdict
    told = render(wide, "table")
    assert f"episodes and {kind}s;" in told
    assert "Tests, ties, ranks, differences and worst cases are of the images given." in told
    assert ", the images given" in render(plain, "table")


def test_shots_of_one_data_set_share_their_patients_and_data_sets_do_not(tmp_path):
    widths = {}
    for name, targets in (("shots", ("d:5w1s", "d:5w5s")), ("sets", ("d:5w1s", "e:5w1s"))):
        of_patients(tmp_path / name, targets)
        tables = board(tmp_path / name, method="groups").tables
        one, _, overall = [np.mean([r.score.high - r.score.low for r in t.rows]) for t in tables]
        widths[name] = overall / one
    # The same patients twice tell no more of others than once; other patients do.
    assert widths["shots"] == pytest.approx(1.0, abs=0.1)
    assert widths["sets"] == pytest.approx(np.sqrt(0.5), abs=0.15)


def test_intervals_over_patients_are_refused_where_they_cannot_be_had(tmp_path, capsys):
    def told(folder, *more, code=2):
        return command("leaderboard", folder, "--interval", "groups", *more, code=code,
                       capsys=capsys)  # fmt: skip

    of_patients(tmp_path / "few", n=8)
    assert "d:5w1s: 8 patients are too few to stand for others; 10 are needed" in told(
        tmp_path / "few"
    )
    some = tmp_path / "some"
    of_patients(some)
    assert "episodes and patients" in told(some, code=0)
    assert "for accuracy: f1 is no share of right answers" in told(some, "--metric", "f1")
    cell(some, "a", seed=1, scores=np.full(N, 0.5), groups=("patient", {
        "group": np.arange(20), "answers": np.full(20, 3), "right": np.full(20, 1)}))  # fmt: skip
    assert "were asked about other patients" in told(some)
    cell(some, "a", seed=1, scores=np.full(N, 0.5))
    assert "does not hold the answers of each patient or image" in told(some)
    masks = tmp_path / "masks"
    cell(masks, "unet", scores={"dice": np.full(N, 0.5)})
    assert "masks and boxes, which dice is of, are not just right or wrong" in told(masks)


def test_intervals_over_patients_stand_in_every_table_that_failures_leave(tmp_path):
    of_patients(tmp_path, ("d:5w1s", "e:5w1s", "f:5w1s"))
    cell(tmp_path, "a", "f:5w1s", status="oom")
    tables = {t.rule: t for t in board(tmp_path, method="groups").tables if not t.target}
    covers = {rule: {r.score.covers for r in t.rows if r.score} for rule, t in tables.items()}
    assert covers == {
        "": {"episodes and patients"},
        "complete cases": {"episodes and patients"},
        "worst case": {"episodes"},
    }


def test_a_front_holds_what_nothing_else_beats_in_both():
    rows = [
        row("best", 0.9, 1.0, 100.0),
        row("fast", 0.7, 0.1, 300.0),
        row("beaten", 0.6, 0.2, 200.0),
        row("equal", 0.7, 0.1, 300.0),
        row("small", 0.2, 2.0, 1.0),
        row("slow and poor", 0.9, 2.0, 100.0),
        row("unmeasured", 0.99),
        row("failed", None, 0.01, 1.0),
    ]
    marked = with_fronts(rows, "accuracy")
    assert {r.algorithm for r in marked if r.pareto_time} == {"best", "fast", "equal"}
    assert {r.algorithm for r in marked if r.pareto_memory} == {"best", "small", "slow and poor"}
    fronts = [r for r in with_fronts(rows, "nll") if r.pareto_time]
    assert {r.algorithm for r in fronts} == {"beaten", "small", "fast", "equal"}


def test_the_front_is_that_of_a_comparison_of_all_pairs():
    rng = np.random.default_rng(8)
    rows = [row(str(i), float(m), float(t)) for i, (m, t) in
            enumerate(rng.integers(0, 12, (60, 2)))]  # fmt: skip
    expected = {
        a.algorithm
        for a in rows
        if not any(
            b.score.mean >= a.score.mean
            and b.adaptation_s <= a.adaptation_s
            and (b.score.mean, b.adaptation_s) != (a.score.mean, a.adaptation_s)
            for b in rows
        )
    }
    assert {r.algorithm for r in with_fronts(rows, "accuracy") if r.pareto_time} == expected


def test_the_best_within_a_budget_of_time_and_memory():
    rows = [row("best", 0.9, 1.0, 9.0), row("fast", 0.7, 0.1, 3.0), row("unknown", 0.95)]
    assert best_within(rows, "accuracy", None, None).algorithm == "unknown"
    assert best_within(rows, "accuracy", 1.0, None).algorithm == "best"
    assert best_within(rows, "accuracy", 1.0, 5.0).algorithm == "fast"
    assert best_within(rows, "accuracy", 0.01, None).algorithm is None
    steps = [(w.time_s, w.algorithm) for w in ladder(rows, "accuracy") if w.time_s]
    assert steps == [(pytest.approx(0.1), "fast"), (pytest.approx(1.0), "best")]


def test_memory_is_the_devices_where_it_was_measured():
    assert row("a", 0.5, memory=5.0).memory_bytes == 5.0
    assert row("a", 0.5, memory=5.0, peak_device_bytes=7.0).memory_bytes == 7.0


def test_all_costs_of_a_record_reach_its_row(tmp_path):
    times = {"median": 0.01, "p95": 0.02, "iqr": 0.003}
    costs = {
        "times": {
            "adaptation_s": times,
            "prediction_s": {"median": 0.03},
            "support_feature_s": {"median": 0.004},
            "query_feature_s": {"median": 0.005},
        },
        "memory": {
            "peak_host_bytes": 3,
            "peak_host_added_bytes": 2,
            "peak_device_bytes": 5,
            "peak_device_reserved_bytes": 8,
        },
        "parameters_adapted": 66,
        "energy": {"episode_j": 1.5},
    }
    more = {"costs": costs, "backbone": {"bytes": 2**20}, "training": {"train_s": 7}}
    cell(tmp_path, "a", scores=np.full(N, 0.5), **more)
    (table,) = board(tmp_path).tables
    (found,) = table.rows
    assert (found.adaptation_s, found.adaptation_p95_s, found.adaptation_iqr_s) == (
        0.01,
        0.02,
        0.003,
    )
    assert found.feature_s == pytest.approx(0.009)
    assert (found.peak_device_bytes, found.peak_device_reserved_bytes) == (5.0, 8.0)
    assert (found.energy_j, found.model_bytes, found.train_s) == (1.5, 2.0**20, 7.0)
    text = render(board(tmp_path), "md")
    for head in ("reserved MiB", "energy J", "model MiB", "features ms"):
        assert head in text
    assert "Energy: not measured" not in text


HOSTILE = [
    r"\input{/etc/passwd}", "50% & more_#$^~{}", "a|b`c`<script>alert(1)</script>", "-- ``x'' [y]",
    "\x1b[31mred", "‮rtl", "line\nbreak", "=1+1", 'quote"s',
]  # fmt: skip


def test_hostile_names_break_no_format(tmp_path):
    for i, name in enumerate(HOSTILE):
        cell(tmp_path, name, f"d{i % 2}:5w1s", scores=np.full(N, 0.5))
    found = board(tmp_path)
    latex = render(found, "latex")
    assert r"\input" not in latex
    assert r"\textbackslash{}input\{/etc/passwd\}" in latex
    bodies = [line for line in latex.splitlines() if line.endswith(r"\\") and "conv4" in line]
    assert len(bodies) == 2 * len(HOSTILE) - len(HOSTILE) + len(HOSTILE)
    for line in bodies:
        unescaped = line.replace(r"\&", "")
        assert unescaped.count("&") == 8
    for form in ("table", "md", "latex"):
        text = render(found, form)
        assert "\x1b" not in text
        assert "‮" not in text
    assert "<script>" not in render(found, "md")
    names = {line["algorithm"] for line in csv.DictReader(io.StringIO(render(found, "csv")))}
    assert names == set(HOSTILE)
    assert json.loads(render(found, "json"))["schema"] == 1


def test_latex_bolds_the_best_and_what_is_tied_with_it(three):
    lines = render(board(three), "latex").splitlines()
    bold = [line for line in lines if line.startswith(r"\textbf{")]
    assert len(bold) == 6
    assert not any("poor" in line for line in bold)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert lines.count(rule) == 3


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")
def test_latex_is_compiled(tmp_path):
    for name in HOSTILE:
        cell(tmp_path, name, scores=np.full(N, 0.5))
    text = render(board(tmp_path), "latex")
    head = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}"
    )
    (tmp_path / "x.tex").write_text(f"{head}\n{text}\n\\end{{document}}\n")
    subprocess.run(
        ["pdflatex", "-interaction=batchmode", "-halt-on-error", "x.tex"], cwd=tmp_path, check=True
    )


def test_every_special_character_is_escaped():
    assert escape("a_b & 5% #1 $x$ {y} ~^ \\z") == (
        r"a\_b \& 5\% \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{} \textbackslash{}z"
    )


def command(*arguments, code=0, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert stop.value.code == code, shown.err
    return shown.out + shown.err


def test_a_budget_on_the_command_line(three, capsys):
    told = command("leaderboard", three, "--time", 10, "--memory", 64, capsys=capsys)
    assert "best by both: none within 10.0 ms and 64 MiB" in told


def test_two_rows_are_compared(three, capsys):
    told = command("compare", "one", "poor", three, capsys=capsys)
    assert "p v1: d:5w1s" in told
    assert told.count("better") == 4
    data = json.loads(command("compare", "poor", "one", three, "--json", capsys=capsys))
    assert data["overall"]["verdict"] == "worse"
    assert data["overall"]["difference"]["mean"] == pytest.approx(-0.1, abs=0.02)
    assert data["posterior"]["second"] > 0.5
    told = command("compare", "one", "two", three, "--matters", 0.05, capsys=capsys)
    assert "equal in practice" in told
    told = command("compare", "one", "thre", three, code=2, capsys=capsys)
    assert "There is no measured row 'thre'" in told
    told = command("compare", "one", "one", three, code=2, capsys=capsys)
    assert "are the same row" in told


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_records_are_exported_as_they_are(tmp_path, capsys, suffix):
    import pandas as pd

    read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
    scores = {"accuracy": np.linspace(0, 1, N), "auroc": np.where(np.arange(N) % 2, 0.5, np.nan)}
    cell(tmp_path, "a", scores=scores)
    cell(tmp_path, "b", status="oom")
    out = tmp_path / f"x{suffix}"
    assert "120 lines" in command("export", tmp_path, "--out", out, capsys=capsys)
    table = read(out)
    assert list(table["episode"]) == list(range(N))
    np.testing.assert_allclose(table["accuracy"], scores["accuracy"])
    assert table["auroc"].isna().sum() == N / 2
    assert "2 lines" in command("export", tmp_path, "--of", "cells", "--out", out, capsys=capsys)
    table = read(out).set_index("algorithm")
    assert list(table["status"]) == ["ok", "oom"]
    assert table.loc["a", "accuracy"] == pytest.approx(0.5)
    assert table.loc["a", "auroc"] == pytest.approx(0.5)
    told = command("export", tmp_path, "--out", tmp_path / "x.txt", code=2, capsys=capsys)
    assert "must end with .parquet or .csv" in told
