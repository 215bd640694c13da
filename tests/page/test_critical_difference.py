"""The critical-difference diagram of a page: what it joins, what it says, and that it fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import page_boards
import pytest
from page_boards import Cell

from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import render_page

BLOCK = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
METHODS = (*page_boards.HOSTILE, "plain")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board of seven data sets."""
    folder = tmp_path_factory.mktemp("across")
    rng = np.random.default_rng(0)
    for i, name in enumerate(METHODS):
        for k in range(7):
            mean = 0.5 + 0.04 * i + rng.normal(0, 0.04)
            Cell(name, "conv4", f"medmnist/d{k}", mean=mean).write(folder)
    return page_boards.written(folder)


def data_of(file: Path) -> dict:
    return json.loads(BLOCK.search(file.read_text()).group(1))


@pytest.fixture
def drawn(many, show, tmp_path):
    """Shows the diagram of so many rows with such ranks, and of bars between places."""

    def draw(ranks, bars, difference, **options):
        data = data_of(many)
        table = next(t for t in data["tables"] if not t["target"])
        rows = [i % table["n"] for i in range(len(ranks))]
        table["across"] |= {"rows": rows, "ranks": ranks, "bars": bars, "difference": difference}
        file = tmp_path / "drawn.html"
        file.write_text(render_page(data), encoding="utf-8")
        return show(file, **options)

    return draw


def ends(page, selector):
    return page.eval_on_selector_all(
        f"#critical .{selector}", "(all) => all.map((e) => ['x1', 'x2', 'y1'].map((n) => "
        "Number(e.getAttribute(n))))")  # fmt: skip


def leads(page):
    """Where on the line of ranks each row hangs, best first."""
    paths = page.eval_on_selector_all(
        "#critical .lead", "(all) => all.map((e) => e.getAttribute('d'))"
    )
    return [float(re.match(r"M([\d.]+) ", d).group(1)) for d in paths]


def test_the_page_holds_the_ranks_and_bars_of_the_test(many):
    table = next(t for t in board_of([many.parent]).tables if not t.target)
    across = next(t for t in data_of(many)["tables"] if not t["target"])["across"]
    by_row = dict(zip(table.across_rows, table.across.mean_ranks, strict=True))
    shown = [table.rows[i].key for i in across["rows"]]
    assert across["ranks"] == pytest.approx([by_row[k] for k in shown], abs=1e-4)
    assert across["ranks"] == sorted(across["ranks"])
    assert across["difference"] == pytest.approx(table.across.critical_difference, abs=1e-4)
    p = {
        frozenset((table.across_rows[i], table.across_rows[j])): v
        for (i, j), v in zip(table.across.pairs, table.across.nemenyi, strict=True)
    }
    for i, one in enumerate(shown):
        for j, other in enumerate(shown[:i]):
            barred = any(low <= j and i <= high for low, high in across["bars"])
            assert barred == (p[frozenset((one, other))] >= 0.05)
    assert all(t["across"] is None for t in data_of(many)["tables"] if t["target"])


def test_bars_end_at_the_rows_they_join_and_the_critical_difference_has_its_length(drawn):
    page = drawn([1.0, 1.8, 3.0, 4.2, 4.2, 6.8], [[0, 2], [1, 4]], 2.5)
    at = leads(page)
    assert np.diff(at) / np.diff([1.0, 1.8, 3.0, 4.2, 4.2, 6.8]).clip(0.1) == pytest.approx(
        (at[2] - at[0]) / 2 * np.array([1, 1, 1, 0, 1])
    )
    first, second = ends(page, "joined")
    assert first[:2] == pytest.approx([at[0], at[2]])
    assert second[:2] == pytest.approx([at[1], at[4]])
    assert first[2] != second[2], "bars that overlap would be one"
    length = page.get_attribute("#critical .length", "d")
    low, high = re.match(r"M([\d.]+) .*H([\d.]+)", length).groups()
    assert float(high) - float(low) == pytest.approx(2.5 * (at[2] - at[0]) / 2)


def test_the_diagram_is_told_as_text_with_names_as_names(show, many):
    page = show(many)
    across = next(t for t in data_of(many)["tables"] if not t["target"])["across"]
    drawing = page.get_by_role("img", name="Critical-difference diagram")
    assert drawing.count() == 1
    told = page.locator(f"#{drawing.get_attribute('aria-describedby')}").text_content()
    bars = ", ".join(f"{low + 1} to {high + 1}" for low, high in across["bars"])
    assert told.endswith(f"Bars: {bars}.")
    page.locator("#critical summary").click()
    names = page.locator("#critical ol bdi").all_inner_texts()
    ranks = [f"{r:.2f}" for r in across["ranks"]]
    listed = page.locator("#critical ol li").all_inner_texts()
    assert [text.rpartition(": ")[2] for text in listed] == ranks
    assert f"{page_boards.SCRIPT} on conv4" in names
    groups = [
        [b.inner_text() for b in item.locator("bdi").all()]
        for item in page.locator("#critical ul li").all()
    ]
    assert groups == [names[low : high + 1] for low, high in across["bars"]]
    assert len(groups) > 1


def test_no_filter_changes_the_ranks_and_the_caption_says_so_on_paper_too(show, many):
    page = show(many)
    page.emulate_media(media="print")
    assert page.locator("#critical svg").is_visible()
    assert page.locator("#critical figcaption .note").is_visible()
    assert not page.locator("#critical summary").is_visible()
    page.emulate_media(media="screen")
    before = page.inner_html("#critical .drawing")
    page.fill("#filters input[type=search]", "plain")
    assert page.locator("#rows tbody tr").count() == 1
    assert page.inner_html("#critical .drawing") == before
    assert "all 6 rows with a score, whatever the filters" in page.inner_text("#critical")
    page.fill("#filters input[type=search]", "")
    page.select_option("#filter-target", "medmnist/d0")
    assert page.locator("#critical").count() == 0, "one data set has no ranks over data sets"


OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('#critical text')].map((t) => t.getBBox());
  const over = (a, b) => a.x < b.x + b.width - 1 && b.x < a.x + a.width - 1
    && a.y < b.y + b.height - 5 && b.y < a.y + a.height - 5;
  const room = document.querySelector('#critical svg').viewBox.baseVal;
  return [boxes.filter((a, i) => boxes.some((b, j) => i < j && over(a, b))).length,
    boxes.filter((b) => b.x < -1 || b.x + b.width > room.width + 1).length];
}"""


@pytest.mark.parametrize("options", [{}, PHONE])
def test_thirty_rows_can_be_read(drawn, options):
    ranks = [2 + 0.9 * i for i in range(30)]
    page = drawn(ranks, [[i, i + 12] for i in range(18)], 11.3, **options)
    assert page.locator("#critical .name").count() == 30
    assert page.evaluate(OVERLAPS) == [0, 0]
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelector('#critical .drawing').scrollWidth") <= width


def test_of_more_rows_than_can_be_read_the_best_are_drawn_and_all_are_listed(drawn):
    ranks = [1 + i for i in range(50)]
    page = drawn(ranks, [[i, i + 20] for i in range(30)], 20.5)
    assert page.locator("#critical .name").count() == 40
    assert "The best 40 are drawn" in page.inner_text("#critical figcaption")
    bars = ends(page, "joined")
    assert len(bars) == 20, "of bars that end at the last row drawn there is one"
    assert max(b[1] for b in bars) == pytest.approx(leads(page)[39])
    assert page.locator("#critical ol li").count() == 50
    assert page.locator("#critical ul li").count() == 30


def test_where_all_rows_differ_there_is_no_bar_and_it_is_said_in_the_dark_too(drawn):
    page = drawn([1.0, 2.0, 3.0], [], 0.9, color_scheme="dark")
    fill = page.eval_on_selector("#critical .name", "(e) => getComputedStyle(e).fill")
    assert min(map(int, re.findall(r"\d+", fill))) > 200, "light letters on the dark"
    assert ends(page, "joined") == []
    assert "tells all of them apart" in page.inner_text("#critical figcaption")
