"""A page in a real browser, which is watched: whatever it asks of a network, or complains of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import page_boards
import pytest

# Long enough for a machine that does other work besides.
PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def tame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board with something to choose in every filter."""
    return page_boards.written(page_boards.write_tame(tmp_path_factory.mktemp("tame")))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board of records that mean harm."""
    return page_boards.written(page_boards.write_hostile(tmp_path_factory.mktemp("hostile")))


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board whose records show some answers."""
    return page_boards.written(page_boards.write_pictured(tmp_path_factory.mktemp("pictured")))


@pytest.fixture
def faults() -> list[str]:
    """What went wrong in a page that `show` showed: requests, complaints, dialogs."""
    return []


def allowed(url: str, file: Path) -> bool:
    """Whether a page may ask for this: itself, and pictures that stand in it."""
    return url == file.as_uri() or url.startswith("data:image/webp;base64,")


@pytest.fixture
def show(browser: Any, faults: list[str]) -> Iterator[Callable[..., Any]]:
    """Shows a file and returns Playwright's page; afterwards nothing must have gone wrong."""
    contexts: list[Any] = []

    def open_page(file: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(f"console: {m.type} {m.text}"))
        page.on("pageerror", lambda e: faults.append(f"error: {e}"))
        page.on("dialog", lambda d: faults.append(f"dialog: {d.message}"))
        page.on("request", lambda r: allowed(r.url, file) or faults.append(f"asks {r.url}"))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            if page.evaluate("'hacked' in window"):
                faults.append("a record's text ran as a script")
        context.close()
    assert not faults
