"""Tables show what rows gain over those of their backbone that adapt to nothing."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats
from test_tables import N, board, cell, episodes

from medbench.briefs import read_brief
from medbench.explain import explain
from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import render_page
from medbench.leaderboard.page_rows import page_data
from medbench.leaderboard.render import render
from medbench.records import find_records
from medbench.stats import holm

REFERENCE = {"traits": {"uses_support": False, "works_on": "features", "adapts": "nothing"}}


@pytest.fixture
def sites(tmp_path):
    """Two methods and a reference on two sites; on a second backbone there is no reference."""
    rng = np.random.default_rng(0)
    for target in ("d@a:5w1s", "d@b:5w1s"):
        shared = rng.normal(0, 0.1, N)
        cell(tmp_path, "source-only", target, scores=episodes(rng, 0.5, shared), **REFERENCE)
        for name, mean in (("good", 0.6), ("alike", 0.501)):
            cell(tmp_path, name, target, scores=episodes(rng, mean, shared))
    return tmp_path


def scores(folder, target, *names):
    found = {
        r.cell["algorithm"]: r.scores()["accuracy"]
        for r in find_records([folder])
        if r.cell["target"] == target
    }
    return [found[name] for name in names]


def gains(table):
    return {r.algorithm: r.gains for r in table.rows}


def test_a_gain_is_scipys_paired_result_on_the_scores_of_the_episodes(sites):
    tables = board(sites).tables
    for table, target in zip(tables[:2], ("d@a:5w1s", "d@b:5w1s"), strict=True):
        raw = {}
        for name in ("good", "alike"):
            row, base = scores(sites, target, name, "source-only")
            (gain,) = gains(table)[name]
            apart = row - base
            assert gain.reference == "source-only"
            assert gain.mean == pytest.approx(apart.mean())
            t_test = stats.ttest_rel(row, base)
            low, high = t_test.confidence_interval(0.95)
            assert gain.low == pytest.approx(low, abs=0.1 * (high - low))
            assert gain.high == pytest.approx(high, abs=0.1 * (high - low))
            drawn = stats.permutation_test(
                (apart,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1
            )
            raw[name] = (drawn.pvalue, gain.p)
        expected = holm(np.array([p for p, _ in raw.values()]))
        assert [p for _, p in raw.values()] == pytest.approx(expected.tolist(), abs=0.02)
        assert raw["good"][1] < 1e-6
        assert gains(table)["source-only"] == ()


def test_the_gain_over_all_sites_is_the_mean_of_those_of_each(sites):
    *single, overall = board(sites).tables
    for name in ("good", "alike"):
        means = [gains(t)[name][0].mean for t in single]
        (whole,) = gains(overall)[name]
        assert whole.mean == pytest.approx(np.mean(means))
        widths = [gains(t)[name][0].high - gains(t)[name][0].low for t in single]
        assert whole.high - whole.low < min(widths)


def test_without_a_reference_row_of_its_backbone_a_row_has_no_gain(tmp_path):
    rng = np.random.default_rng(1)
    other = {"cell": {
        "protocol": "p", "protocol_version": 1, "target": "d:5w1s", "way": 5, "shot": 1,
        "backbone": "resnet12", "algorithm": "good", "seed": 0, "sources": ["s"],
    }}  # fmt: skip
    cell(tmp_path, "plain", scores=rng.random(N))
    cell(tmp_path, "other", scores=rng.random(N), **other)
    before = board(tmp_path)
    texts = {form: render(before, form) for form in ("md", "csv", "latex", "table")}
    assert not any("gain" in text for text in texts.values())
    cell(tmp_path, "source-only", scores=rng.random(N), **REFERENCE)
    (table,) = board(tmp_path).tables
    found = {(r.algorithm, r.backbone): len(r.gains) for r in table.rows}
    assert found == {("plain", "conv4"): 1, ("source-only", "conv4"): 0, ("good", "resnet12"): 0}


def test_a_failed_reference_is_none_and_a_failed_row_gains_nothing(sites):
    cell(sites, "source-only", "d@a:5w1s", seed=1, status="crash")
    cell(sites, "broken", "d@b:5w1s", status="crash")
    first, second, *totals = board(sites).tables
    assert not any(r.gains for r in first.rows)
    assert gains(second)["broken"] == ()
    assert len(gains(second)["good"]) == 1
    assert not any(r.gains for t in totals for r in t.rows)


def test_of_metrics_of_which_less_is_better_a_gain_is_a_smaller_value(tmp_path):
    rng = np.random.default_rng(2)
    for name, loss, more in (("good", 0.4, {}), ("source-only", 0.9, REFERENCE)):
        both = {"accuracy": np.full(N, 0.5), "nll": rng.normal(loss, 0.1, N)}
        cell(tmp_path, name, scores=both, **more)
    (table,) = board(tmp_path, "nll").tables
    (gain,) = gains(table)["good"]
    assert gain.mean == pytest.approx(0.5, abs=0.05)
    assert gain.low < gain.mean < gain.high


def test_seeds_are_paired_and_widen_the_interval(tmp_path):
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 0.1, N)
    for seed in range(3):
        lucky = 0.05 * seed
        cell(tmp_path, "good", seed=seed, scores=episodes(rng, 0.55 + lucky, shared, 0.02))
        cell(tmp_path, "source-only", seed=seed, scores=episodes(rng, 0.5, shared, 0.02),
             **REFERENCE)  # fmt: skip
    (table,) = board(tmp_path).tables
    (gain,) = gains(table)["good"]
    assert gain.mean == pytest.approx(0.1, abs=0.01)
    # Three models whose gains are 0.05, 0.10 and 0.15 may well be of a method that gains 0.02.
    assert gain.low < 0.06


def test_every_form_of_a_board_shows_gains_beside_scores(sites):
    made = board(sites)
    table = render(made, "table")
    head = next(line for line in table.splitlines() if "algorithm" in line)
    names = [part.strip() for part in head.split("│")]
    assert names[names.index("accuracy [95 %]") + 1] == "gain over source-only [95 %]"
    assert "gain over source-only: the mean difference" in table
    good = gains(made.tables[0])["good"][0]
    shown = f"{100 * good.mean:+.1f} [{100 * good.low:+.1f}, {100 * good.high:+.1f}]"
    assert shown in table
    assert shown.replace("[", "\\[").replace("]", "\\]") in render(made, "md")
    assert "gain over source" in render(made, "latex")
    lines = list(csv.DictReader(io.StringIO(render(made, "csv"))))
    (line,) = [x for x in lines if x["algorithm"] == "good" and x["target"] == "d@a"]
    assert float(line["gain_over_source-only"]) == good.mean
    assert float(line["gain_over_source-only_p"]) == good.p
    (line,) = [x for x in lines if x["algorithm"] == "source-only" and x["target"] == "d@a"]
    assert line["gain_over_source-only"] == ""
    document = json.loads(render(made, "json"))
    assert document["tables"][0]["rows"][0]["gains"][0]["mean"] == good.mean


def test_a_page_has_the_column_and_other_pages_stay_what_they_were(sites, tmp_path):
    briefs = [read_brief(r.path) for r in find_records([sites])]
    data = page_data(board(sites), briefs, "")
    assert data["references"] == ["source-only"]
    rows = data["tables"][0]["rows"]
    good = gains(board(sites).tables[0])["good"][0]
    assert rows["gain0"][0] == round(100 * good.mean, 1)
    assert "gainColumn" in render_page(data)
    del data["references"]
    assert "gainColumn" not in render_page(data)


def test_a_board_that_was_read_before_says_the_same(sites):
    (sites / "cache").mkdir()
    first = board_of([sites])
    assert board_of([sites]) == first
    assert first.tables[0].rows[0].gains


def test_a_reference_is_explained_in_words(sites):
    (record, *_) = [r for r in find_records([sites]) if r.cell["algorithm"] == "source-only"]
    assert "looks at no labelled image of its tasks" in explain(record)
