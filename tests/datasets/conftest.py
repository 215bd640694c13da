"""Places and tiny files for tests of the bundled datasets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medbench.api import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty data folder and an empty cache."""
    (tmp_path / "data").mkdir()
    return Place(tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def data(place: Place) -> Path:
    """The data folder of `place`."""
    assert place.data is not None
    return place.data


@pytest.fixture
def real(tmp_path: Path) -> Place:
    """The real data that MEDBENCH_DATA names, with an empty cache."""
    import os

    return Place(Path(os.environ["MEDBENCH_DATA"]).resolve(), tmp_path / "cache")


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve bytes by name from this machine; `cut` bytes are sent of what was announced."""
    with contextlib.ExitStack() as stack:

        def start(files: dict[str, bytes], cut: int | None = None) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    content = files.get(self.path.lstrip("/"))
                    if content is None:
                        self.send_error(404)
                        return
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[:cut])

                def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                    return

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start
