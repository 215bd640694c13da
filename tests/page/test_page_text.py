"""The page as a file: the same bytes from the same records, and nothing in it that could act."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import page_boards
import pytest
from page_boards import Cell, written

from medbench.cli import main
from medbench.errors import ConfigError
from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import named, page_text
from medbench.leaderboard.page_facts import shell_word
from medbench.leaderboard.page_pairs import Packed, packed_pairs, unpacked
from medbench.shelf import find_briefs
from medbench.stats import compare

BLOCK = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data_of(file: Path) -> dict:
    return json.loads(BLOCK.search(file.read_text()).group(1))


def test_the_same_records_make_the_same_bytes_in_any_folder_and_process(tame, tmp_path):
    records = sorted((tame.parent / "records").iterdir())
    (tmp_path / "records").mkdir()
    # The last written first, and names that hash otherwise.
    for file in reversed(records):
        shutil.copy(file, tmp_path / "records")
    command = [sys.executable, "-m", "medbench", "leaderboard", str(tmp_path), "--format", "html"]
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "MEDBENCH_PLUGINS": ""},
    )
    assert done.stdout.decode().rstrip("\n") == tame.read_text().rstrip("\n")


def test_what_records_say_can_end_no_block_and_open_no_element(hostile):
    text = hostile.read_text()
    block = BLOCK.search(text).group(1)
    assert not set("<>&\u2028\u2029\u202e") & set(block)
    assert page_boards.SCRIPT in data_of(hostile)["algorithms"]
    assert text.count("<script") == 2
    assert "<img" not in text
    # In the heading, where Jinja2 writes it.
    assert "it&#39;s &#34;quoted&#34;" in text


def test_the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else(hostile):
    text = hostile.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, pattern in (
        ("script-src", r"<script>(.*?)</script>"),
        ("style-src", r"<style>(.*?)</style>"),
    ):
        own = re.search(pattern, text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert not re.search(r'(src|href)="(?!#)', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_packed_pairs_are_the_paired_tests(tmp_path, seeds, metric):
    rng = np.random.default_rng(0)
    for name, target, seed in itertools.product("abcd", ("d", "e"), seeds):
        Cell(name, target=target, seed=seed, mean=0.5 + 0.02 * rng.random()).write(tmp_path)
    briefs, _ = find_briefs([tmp_path])
    members = [
        {(n, "conv4"): [b for b in briefs if b.own.algorithm == n and t in b.setting.target]
         for n in "abcd"}
        for t in ("d:", "e:")
    ]  # fmt: skip
    keys = [(n, "conv4") for n in "abcd"]
    packed = packed_pairs(keys, range(4), members, metric, 10**6)
    assert isinstance(packed, Packed)
    found = unpacked(packed)
    assert len(found) == 6
    board = board_of([tmp_path], metric)
    overall = next(t for t in board.tables if not t.target)
    shown = {r.algorithm: r.verdict.p for r in overall.rows}
    order = [p for *_, p in found.values()]
    for (i, j), (mean, low, high, p, among) in found.items():
        sides = [
            [np.stack([b.scores(metric) for b in t[keys[k]]]) for t in members] for k in (i, j)
        ]
        d = compare(*sides)
        assert (mean, low, high) == pytest.approx((d.mean, d.low, d.high), abs=6e-6)
        assert p == pytest.approx(d.p, rel=3e-4)
        # Among all pairs, with Holm's correction, it is the p of the table.
        best = overall.rows[0].algorithm
        if best in (keys[i][0], keys[j][0]):
            other = keys[j][0] if best == keys[i][0] else keys[i][0]
            rank = sorted(order).index(among)
            steps = [
                min(1.0, q * (len(order) - k)) for k, q in enumerate(sorted(order)[: rank + 1])
            ]
            assert shown[other] == pytest.approx(max(steps), rel=1e-3)


def test_a_record_that_the_page_cannot_name_by_its_row_is_named_in_full(tmp_path):
    path = Cell("protonet").write(tmp_path)
    other = path.with_name("it's here.json")
    document = json.loads(path.read_text())
    path.rename(other)
    assert document["scores_file"] == path.with_suffix(".parquet").name
    page = data_of(written(tmp_path))
    assert page["tables"][0]["records"]["key"] == "'records/it'\\''s here.json'"


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "a\nb", "\u202eturned", "$(rm)`x`"])
def test_a_word_of_a_command_is_one_word_of_a_shell(word):
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shell_word(word)}"], capture_output=True, check=True,
        env={"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.stdout.decode() == word
    assert shell_word(word).isprintable()


def test_a_changed_page_is_found_by_board_check(tmp_path, capsys):
    sites = Path(__file__).parents[2] / "leaderboards" / "sites"
    shutil.copytree(sites, tmp_path / "sites")
    page = tmp_path / "sites" / "index.html"
    page.write_text(page.read_text().replace('"mean":[', '"mean":[9', 1))
    with pytest.raises(SystemExit) as stop:
        main(["board", "check", str(tmp_path / "sites")])
    assert stop.value.code == 1
    assert "index.html: the records make another table" in capsys.readouterr().err


def test_a_page_is_called_as_its_suite_and_a_copy_elsewhere_is_the_same(tmp_path, capsys):
    for name in ("one", "other"):
        Cell("protonet").write(tmp_path / name)
        text = f"name: cells-{name}\nsummary: Cells & <b>{name}</b>\nprotocols: [p]\n"
        (tmp_path / name / "suite.yaml").write_text(text)
    text = written(tmp_path / "one").read_text()
    assert "<title>cells-one: medbench leaderboard</title>" in text
    assert (
        "<h1><bdi>cells-one</bdi></h1>\n<p><bdi>Cells &amp; &lt;b&gt;one&lt;/b&gt;</bdi></p>"
        in text
    )
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert written(tmp_path / "copy").read_text() == text
    folders = [tmp_path / name for name in ("one", "other")]
    both = page_text(board_of(folders), folders)
    assert "<title>cells-one, cells-other: medbench leaderboard</title>" in both
    # As a board's own records are named when its page is built.
    assert named([tmp_path / "one" / "records"])[0] == "cells-one"
    (tmp_path / "one" / "suite.yaml").unlink()
    assert "<title>cross v1: medbench leaderboard</title>" in written(tmp_path / "one").read_text()
    (tmp_path / "one" / "suite.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        named([tmp_path / "one"])
