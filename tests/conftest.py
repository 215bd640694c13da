"""What every test starts from: no ambient settings, and a way to make plugin distributions."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medbench import plugins, sourcecode

# Several tests run at a time: threads of one would wait in turns for those of the others, which
# took a third of all processor time. Set before torch is imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
REAL_DATA = os.environ.get("MEDBENCH_DATA")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more workers than cores: tests of whole runs wait for processes most of their time."""
    return (os.cpu_count() or 1) + 2


# Their tests start processes and wait for them: minutes each, and little work.
WHOLE_RUNS = ("e2e", "engines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real data skip, with the reason, where there are none; whole runs begin first."""
    for item in items:
        if item.get_closest_marker("data") and not REAL_DATA:
            item.add_marker(pytest.mark.skip(reason="MEDBENCH_DATA is not set: no real data here"))
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def dealt(items: list[pytest.Item], n_workers: int) -> list[pytest.Item]:
    """The tests in an order in which half of the workers begin with whole runs.

    A worker starts with its part of the list. In their own order most whole runs are one worker's,
    and the last of them all workers' when other tests are done, five runs at a time. Tests of a
    file stay together, as they may share what was set up for them.
    """
    by_file: dict[Path, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.path, []).append(item)
    waiting = [own for path, own in by_file.items() if path.parent.name in WHOLE_RUNS]
    rest = [i for path, own in by_file.items() if path.parent.name not in WHOLE_RUNS for i in own]
    hands: list[list[pytest.Item]] = [[] for _ in range(n_workers)]
    for own in sorted(waiting, key=len, reverse=True):
        min(hands[: -(-n_workers // 2)], key=len).extend(own)
    share = -(-len(items) // n_workers)
    for hand in hands:
        taken = max(0, share - len(hand))
        hand += rest[:taken]
        del rest[:taken]
    return [item for hand in hands for item in hand] + rest


@pytest.fixture(autouse=True)
def _settings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name in ("MEDBENCH_PLUGINS", "MEDBENCH_TRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: that of MEDBENCH_BROWSER, Playwright's own, or the system's; skips without one."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; CONTRIBUTING.md tells how"
    )
    chosen = os.environ.get("MEDBENCH_BROWSER")
    found = [chosen] if chosen else [None, *filter(None, map(shutil.which, BROWSERS))]
    with sync_api.sync_playwright() as playwright:
        for program in found:
            try:
                launched = playwright.chromium.launch(
                    executable_path=program, args=["--disable-gpu"], timeout=120_000
                )
            except sync_api.Error:
                continue
            yield launched
            launched.close()
            return
    pytest.skip(f"no Chromium starts (tried {found}); CONTRIBUTING.md tells how to install one")


Distribute = Callable[..., Path]


@pytest.fixture
def distribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distribute]:
    """Write a distribution with an entry point and put it on the path, for child processes too.

    ``distribute("acme", source)`` makes distribution acme 1.0 with module acme_medbench.
    """
    site = tmp_path / "site"
    made: list[str] = []

    def make(
        name: str, source: str, version: str = "1.0", entry: str | None = None, **modules: str
    ) -> Path:
        module = f"{name.replace('-', '_')}_medbench"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[medbench]\n{module} = {entry or module}\n")
        for file, text in {module: source, **modules}.items():
            (site / f"{file}.py").write_text(textwrap.dedent(text))
            made.append(file)
        monkeypatch.syspath_prepend(str(site))
        before = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(site), before] if before else [str(site)])
        )
        plugins.registry.cache_clear()
        sourcecode.source_digest.cache_clear()
        return site

    yield make
    for file in made:
        sys.modules.pop(file, None)
