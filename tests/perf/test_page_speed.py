"""A board's page with ten thousand rows: how large it is, and how long a browser takes to sort it.

Needs Chromium (CONTRIBUTING.md). The goal is 200 ms for a sort, from the click to the next frame.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plain_scale

from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import page_text
from medbench.leaderboard.page_facts import stem_of
from medbench.records import slug

N_ROWS, PER_TABLE = 10_000, 250
SORT = """async ([name, rounds]) => {
  const spent = [];
  for (let i = 0; i < rounds; i += 1) {
    const start = performance.now();
    document.querySelector(`[data-column=${name}]`).click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    spent.push(performance.now() - start);
  }
  return spent;
}"""


def write_board(folder: Path, n_tables: int, n_rows: int) -> None:
    """Records of so many rows on each of so many targets, no two with the same costs."""
    write = plain_scale.Writer(folder)
    rng = np.random.default_rng(0)
    plain = dict(write.document)
    for i, (t, r) in enumerate(np.ndindex(n_tables, n_rows)):
        algorithm, backbone = f"vendor{r % 7}/algorithm-{r // 5}", f"backbone-{r % 5}"
        target, shot = f"folder:wbc_sites@site{t // 2}:4w{(1, 5)[t % 2]}s", (1, 5)[t % 2]
        times = {
            name: {k: v * factor for k, v in spent.items()}
            for name, spent in plain["costs"]["times"].items()
            for factor in [rng.lognormal()]
        }
        memory = {"peak_host_added_bytes": int(1e7 * rng.lognormal())}
        write.document = plain | {
            "costs": plain["costs"] | {"times": times, "memory": memory},
            "training": plain["training"] | {"key": f"{r}-{t // 2}"},
            "created": f"2026-11-{1 + i % 28:02d}T{i % 24:02d}:{i % 60:02d}:00+00:00",
        }
        key = plain_scale.key(i)
        names = {"algorithm": algorithm, "algorithm_label": algorithm, "backbone": backbone,
                 "backbone_label": backbone, "seed": 0}  # fmt: skip
        place = slug(plain["cell"]["protocol"], target)
        stem = f"{stem_of(place, slug(backbone), slug(algorithm), 0)}-{key[:12]}"
        write(stem, key, names | {"shot": shot, "target": target})


def test_ten_thousand_rows_are_sorted(benchmark, browser, tmp_path):
    few = benchmark.disabled
    write_board(tmp_path / "run", 2 if few else N_ROWS // PER_TABLE, PER_TABLE)
    text = page_text(board_of([tmp_path / "run"]), [tmp_path / "run"])
    file = tmp_path / "index.html"
    file.write_text(text, encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    page = browser.new_page()
    page.goto(file.as_uri())
    page.select_option("#filter-target", "")
    names = ("adaptation_s", "algorithm", "p", "score")
    spent = {name: page.evaluate(SORT, [name, 2 if few else 10]) for name in names}
    shown = page.locator("#rows tbody tr").count()
    assert shown == 100
    benchmark.extra_info["bytes"] = len(text.encode())
    benchmark.extra_info["ms"] = {k: [float(np.median(v)), max(v)] for k, v in spent.items()}
    benchmark.pedantic(page.evaluate, (SORT, ["adaptation_s", 1]), rounds=1 if few else 10)
    page.close()
