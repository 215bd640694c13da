"""The page of a board as people use it: mouse, keyboard, phone, dark, on paper."""

from __future__ import annotations

import re
import shlex

import page_boards
import pytest

from medbench.leaderboard.build import board_of
from medbench.leaderboard.costs import best_within
from medbench.leaderboard.pairs import compare_rows

FIRST = "accuracy [95 %]"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def names(page) -> list[str]:
    """The rows of the table, as ``algorithm / backbone``."""
    cells = [page.locator(f"#rows tbody {c} bdi").all_text_contents() for c in ("th", "th + td")]
    return [" / ".join(pair) for pair in zip(*cells, strict=True)]


def column(page, label: str) -> list[str]:
    cells = page.locator(f'#rows tbody td[data-label="{label}"]')
    return cells.all_inner_texts()


def overall(folder, protocol="cross v1"):
    tables = board_of([folder]).tables
    return next(t for t in tables if t.protocol == protocol and not t.target and not t.rule)


def label(row) -> str:
    return f"{row.algorithm} / {row.backbone}"


def test_the_best_rows_over_all_targets_are_shown_first(show, tame):
    page = show(tame)
    rows = overall(tame.parent).rows
    assert names(page) == [label(r) for r in rows]
    assert page.locator("#caption").inner_text() == "cross v1: overall (4 targets)"
    shown = column(page, FIRST)
    for row, text in zip(rows, shown, strict=True):
        if row.score is not None:
            s = row.score
            assert text == f"{100 * s.mean:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]"


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order_round(show, tame):
    page = show(tame)
    head = page.get_by_role("button", name="adapt ms (p95)")
    head.click()
    known = [r for r in overall(tame.parent).rows if r.adaptation_s is not None]
    cheap = [label(r) for r in sorted(known, key=lambda r: r.adaptation_s)]
    assert names(page) == [*cheap, "slow / conv4"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    head.click()
    assert names(page) == [*reversed(cheap), "slow / conv4"], "what was not measured stays last"
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="algorithm", exact=True).click()
    found = [n.partition(" ")[0] for n in names(page)]
    assert found == sorted(found)
    assert names(page)[3:5] == ["ridge / vit", "ridge / conv4"], "equals stay best first"


FILTERS = {
    "backbone": ("vit", lambda r: r.backbone == "vit"),
    "setting": ("transductive", lambda r: r.transductive),
    "weights": ("imagenet", lambda r: r.weights == ("imagenet",)),
    "overlap": ("with overlap", lambda r: bool(r.overlap)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_the_rows_that_it_names_in_table_and_plots(show, tame, name):
    page = show(tame)
    value, wanted = FILTERS[name]
    page.select_option(f"#filter-{name}", value)
    expected = [label(r) for r in overall(tame.parent).rows if wanted(r)]
    assert 0 < len(expected) < 6
    assert names(page) == expected
    assert page.locator("#status").inner_text().startswith(f"{len(expected)} row")
    assert page.locator("#pareto .point").count() == len(expected)
    assert page.locator("#ranks circle.mean").count() == len(expected)
    assert f"{len(expected)} rows" in page.locator("#pareto svg").get_attribute("aria-label")
    page.get_by_role("button", name="Reset").click()
    assert len(names(page)) == 6


def test_target_shot_licence_and_hardware_choose_tables(show, tame):
    page = show(tame)
    page.select_option("#filter-target", "medmnist/retina")
    page.select_option("#filter-shot", "5-shot")
    assert page.locator("#caption").inner_text() == "cross v1: medmnist/retina, 5-way 5-shot"
    page.select_option("#filter-licence", "CC BY 4.0")
    assert names(page) == []
    assert "Reset" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Reset").click()
    page.select_option("#filter-protocol", "")
    page.select_option("#filter-hardware", "large machine")
    assert names(page) == ["ridge / vit"]
    page.select_option("#filter-hardware", "")
    assert "classes of hardware and do not compare" in page.locator("#warnings").inner_text()


def test_a_shot_that_the_target_has_not_lets_the_target_go(show, tame):
    page = show(tame)
    page.select_option("#filter-shot", "5-shot")
    assert page.input_value("#filter-target") == ""
    assert set(column(page, "target")) == {
        f"medmnist/{t}, 5-way 5-shot" for t in ("breast", "retina")
    }


def test_the_text_filter_narrows_while_it_is_typed(show, tame):
    page = show(tame)
    page.locator("#filter-text").press_sequentially("RIDGE on v")
    assert names(page) == ["ridge / vit"]


def test_two_rows_are_compared_as_on_the_terminal(show, tame):
    page = show(tame)
    page.get_by_label("Compare ridge on conv4").check()
    page.get_by_label("Compare protonet on conv4").check()
    found = compare_rows([tame.parent], "ridge@conv4", "protonet@conv4", None, "accuracy", 0.01)
    lines = page.locator("#pairs tbody tr").all()
    assert len(lines) == len(found.targets) + 1
    for line, pair in zip(lines, [*found.targets, found.overall], strict=True):
        cells = line.locator("td").all_inner_texts()
        d = pair.difference
        numbers = [f"{100 * v:+.1f}".replace("-", "\u2212") for v in (d.mean, d.low, d.high)]
        assert cells[2] == f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
        assert cells[3] == ("<0.001" if pair.p < 0.001 else f"{pair.p:.3f}")
        assert cells[5] == pair.verdict
    assert page.locator("#pareto .point.picked").count() == 2
    assert (
        "medbench compare -- ridge@conv4 protonet@conv4 ." in page.locator("#compare").inner_text()
    )
    # A third takes the place of the first.
    page.get_by_label("Compare maml on conv4").check()
    assert page.get_by_label("Compare ridge on conv4").is_checked() is False
    page.select_option("#pick-0", "")
    assert "Pick two rows" in page.locator("#comparison").inner_text()


def test_rows_on_different_machines_are_not_compared(show, tame):
    page = show(tame)
    page.select_option("#filter-protocol", "")
    page.select_option("#filter-target", "")
    page.get_by_label("Compare ridge on conv4").first.check()
    page.locator("tr", has_text="large machine").get_by_role("checkbox").check()
    assert page.locator("#rows input:checked").count() == 1
    assert page.locator("#pairs").count() == 0


def test_the_front_is_that_of_the_rows_shown(show, tame):
    page = show(tame)
    for name, of in (
        ("time", lambda r: r.adaptation_s),
        ("memory", lambda r: r.memory_bytes),
        ("size", lambda r: r.model_bytes),
    ):
        page.select_option("#budget", name)
        rows = [r for r in overall(tame.parent).rows if r.score and of(r) is not None]
        front = [
            r for r in rows
            if not any(of(o) <= of(r) and o.score.mean >= r.score.mean and o is not r for o in rows)
        ]  # fmt: skip
        assert page.locator("#pareto .on-front").count() == len(front)
        page.locator("#pareto summary").click()
        told = page.locator("#pareto li").all_inner_texts()
        assert [t.partition(":")[0] for t in told] == [
            f"{r.algorithm} on {r.backbone}" for r in sorted(front, key=of)
        ]
    page.select_option("#filter-backbone", "conv4")
    assert page.locator("#pareto .point").count() == 3


@pytest.mark.parametrize(("time", "memory"), [(30, None), (None, 50), (160, 100), (1, None)])
def test_the_best_within_a_budget_is_the_tables_own(show, tame, time, memory):
    page = show(tame)
    page.fill("#limit-time", "" if time is None else str(time))
    page.fill("#limit-memory", "" if memory is None else str(memory))
    seconds, size = time and time / 1e3, memory and memory * 2.0**20
    best = best_within(overall(tame.parent).rows, "accuracy", seconds, size)
    told = page.locator("#within").inner_text()
    if best.algorithm is None:
        assert told == "No row shown is within these limits."
    else:
        assert f"{best.algorithm} on {best.backbone}, accuracy {100 * best.mean:.1f}" in told


def test_the_grid_of_budgets_has_the_best_of_each(show, tame):
    page = show(tame)
    rows = overall(tame.parent).rows
    sizes = page.locator("#budgets thead th").all_inner_texts()[1:]
    assert sizes == ["64 MiB", "256 MiB", "1,024 MiB"]
    lines = page.locator("#budgets tbody tr").all()
    assert [x.locator("th").inner_text() for x in lines] == [
        "10 ms", "100 ms", "1,000 ms"
    ]  # fmt: skip
    for line, time in zip(lines, (0.01, 0.1, 1.0), strict=True):
        limits = (2.0**26, 2.0**28, 2.0**30)
        for cell, size in zip(line.locator("td").all_inner_texts(), limits, strict=True):
            best = best_within(rows, "accuracy", time, size)
            assert cell == f"{100 * best.mean:.1f} {best.algorithm} on {best.backbone}"
    # A row that was not measured is within no limit.
    page.select_option("#filter-target", "medmnist/breast")
    page.fill("#filter-text", "slow")
    mean = column(page, FIRST)[0].partition(" ")[0]
    assert page.locator("#budgets td").all_inner_texts() == [f"{mean} slow on conv4"]
    assert page.locator("#budgets thead th").all_inner_texts()[1:] == ["no limit"]


def test_a_row_tells_where_it_comes_from_and_how_to_run_it_again(show, tame):
    page = show(tame)
    page.get_by_role("button", name="protonet").click()
    dialog = page.get_by_role("dialog")
    text = dialog.inner_text()
    assert "protonet on conv4" in text
    for part in dialog.locator("summary").all():
        part.click()
    text = dialog.inner_text()
    for word in ("acme-medbench 1.0", "steps 5", f"digest {16 * 'd'}", f"digest {16 * 'e'}",
                 "torch 2.4", "2026-11-01 10:00:00 UTC"):  # fmt: skip
        assert word in text
    commands = [c for c in dialog.locator("code").all_inner_texts() if "reproduce" in c]
    files = [shlex.split(c)[2] for c in commands]
    assert len(set(files)) == 4
    assert all((tame.parent / f).is_file() for f in files)
    drawn = dialog.locator("svg[role=img]").first.get_attribute("aria-label")
    assert drawn == "Learning curve: loss from 0.5 to 0.02, validation accuracy from 0.1 to 1."
    page.keyboard.press("Escape")
    assert dialog.count() == 0


def test_failed_cells_are_told_with_their_logs(show, tame):
    page = show(tame)
    failure = page.locator("details.failure")
    failure.locator("summary").click()
    text = failure.inner_text()
    assert "oom slow on conv4, medmnist/retina:5w5s, seed 0" in text
    assert "out of memory: 9 GB" in text
    assert failure.locator("pre").inner_text() == "step 1\nstep 2: killed"
    file = shlex.split(failure.locator("code").inner_text())[2]
    assert (tame.parent / file).is_file()
    page.select_option("#filter-target", "medmnist/breast")
    assert page.locator("details.failure").count() == 0
    page.select_option("#filter-target", "medmnist/retina")
    page.select_option("#filter-shot", "1-shot")
    assert page.locator("details.failure").count() == 0


def test_all_of_it_works_by_keyboard(show, tame):
    page = show(tame)

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")

    tab_to(".skip")
    tab_to("[data-column=backbone]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.column") == "backbone", "focus is kept"
    assert page.locator("[aria-sort]").inner_text().startswith("backbone")
    for _ in range(2):
        tab_to("#rows input[type=checkbox]")
        page.keyboard.press("Space")
    assert page.locator("#pairs tbody tr").count() == 5
    tab_to("button.name")
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").locator("h2").inner_text().startswith(name)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == name
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px", "where one is can be seen"


@pytest.mark.parametrize("file", ["tame", "hostile"])
def test_a_phone_shows_all_without_scrolling_sideways(show, request, file):
    page = show(request.getfixturevalue(file), **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    card = page.locator("#rows tbody tr").first
    assert card.bounding_box()["width"] <= 390
    assert card.locator("td[data-label='adapt ms (p95)']").is_visible()
    page.locator("#rows button.name").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    page.select_option("#sort", "p_best")
    page.get_by_role("button", name="Turn round").click()
    shares = column(page, "P(best)")
    assert shares == sorted(shares, key=lambda s: (s == "-", s)), "what is missing stays last"
    assert shares[0] < "0.5"


# Every visible text with less contrast to what is behind it than WCAG 2 asks of small letters.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(colour)) return colour;
    }
    throw Error('nothing is behind it');
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  let n = 0;
  while (walker.nextNode()) {
    const [text, element] = [walker.currentNode.data, walker.currentNode.parentElement];
    if (!text.trim() || !element.checkVisibility() || element.closest('script, style')) continue;
    const style = getComputedStyle(element);
    const pair = [element.closest('svg') ? style.fill : style.color, behind(element)].map(light);
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    n += 1;
    if (ratio < 4.5) found.push([ratio, element.outerHTML.slice(0, 80), text]);
  }
  return [n, found];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_in_the_dark(show, tame, scheme):
    page = show(tame, color_scheme=scheme)
    page.get_by_label("Compare ridge on conv4").check()
    page.get_by_label("Compare protonet on conv4").check()
    for summary in page.locator("summary").all():
        summary.click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) > 128) == (scheme == "light")
    n, faint = page.evaluate(CONTRAST)
    assert n > 200
    assert faint == []


def test_paper_gets_the_tables_and_plots_without_what_is_to_be_clicked(show, tame):
    page = show(tame)
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("#rows input").first.is_visible()
    assert page.locator("#rows tbody tr").count() == 6
    assert page.locator("#pareto svg").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_the_page_says_where_the_tables_are(show, tame):
    page = show(tame, java_script_enabled=False)
    assert "LEADERBOARD.md" in page.locator("noscript").inner_text()


def test_answers_are_shown_for_the_rows_that_are(show, pictured):
    page = show(pictured)
    pictures = page.locator("#pictures img")
    assert pictures.count() == 4, "two rows of two targets; one row has none"
    for i in range(4):
        pictures.nth(i).scroll_into_view_if_needed()
        width = "e => e.decode().then(() => e.naturalWidth)"
        assert pictures.nth(i).evaluate(width) == 2 * 144 + 4
    captions = page.locator("#pictures figcaption").all_inner_texts()
    assert captions[0].startswith("unet on conv4\nlungs")
    assert "CC0" in page.locator("#pictures > p").inner_text()
    page.select_option("#filter-target", "nuclei")
    assert pictures.count() == 2
    page.fill("#filter-text", "panet")
    assert pictures.count() == 1
    page.fill("#filter-text", "blind")
    assert "None of these rows" in page.locator("#pictures").inner_text()


def test_a_page_without_pictures_may_load_none(tame, pictured):
    assert "img-src data:;" in pictured.read_text()
    assert "img-src" not in tame.read_text()


def test_names_that_want_to_be_scripts_are_names(show, hostile):
    page = show(hostile)
    shown = page.locator("#rows tbody th bdi").all_text_contents()
    hidden = {ord(c): f"\\u{ord(c):04x}" for c in "\u2028\u202e\u202c"}
    visible = {name.translate(hidden) for name in page_boards.HOSTILE}
    assert {v if len(v) <= 80 else f"{v[:79]}\u2026" for v in visible} <= set(shown)
    for box in page.locator("#rows tbody input").all()[:2]:
        box.check()
    for summary in page.locator("main summary").all():
        summary.click()
    for button in page.locator("#rows button.name").all():
        button.click()
        for summary in page.get_by_role("dialog").locator("summary").all():
            summary.click()
        gone = button.inner_text() == "gone"
        heading = page.get_by_role("dialog").get_by_role("heading").first.inner_text()
        assert gone or heading.partition(" on ")[0] in visible, "the dialog has the whole name"
        assert gone or page.get_by_role("dialog").locator("svg").count() > 0
        page.keyboard.press("Escape")
    for name in ("target", "backbone", "sort"):
        for value in page.locator(f"#filter-{name} option, #{name} option").all():
            assert value.inner_text()
    assert (
        page.evaluate("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    )
    assert page.evaluate("document.scripts.length") == 2
    assert page_boards.IMAGE in page.locator("#failed").inner_text()


def test_no_script_but_the_pages_own_would_run(show, hostile, faults, tmp_path):
    """Should a text ever become markup, the page's policy still stops it."""
    broken = tmp_path / "broken.html"
    text = hostile.read_text()
    broken.write_text(text.replace("<main>", "<main><script>window.hacked = 4</script>"))
    page = show(broken)
    assert page.locator("#rows tbody tr").count() > 0
    assert page.evaluate("'hacked' in window") is False
    assert "Content Security Policy" in faults.pop()
