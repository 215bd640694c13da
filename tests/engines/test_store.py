"""The storage that a cluster shares: whole files or none, on a disk, in memory and over S3."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'medbench[ray]'")

from medbench.engine import scratch
from medbench.engine.store import Store, open_store
from medbench.errors import OutputError, UsageError
from medbench.jobs import Job


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path) -> Store:
    if request.param == "memory":
        return Store(f"memory://{tmp_path}/store")
    return Store(f"{'file://' if request.param == 'file' else ''}{tmp_path}/store")


def test_what_is_put_is_there_and_what_is_not_is_told(store, tmp_path):
    source, back = tmp_path / "a.bin", tmp_path / "deep" / "back.bin"
    source.write_bytes(bytes(range(256)) * 100)
    assert not store.get("records/a.bin", back)
    assert store.read("records/a.bin") is None
    assert store.names("records") == set()
    store.put(source, "records/a.bin")
    store.write("records/below/b.json", b"{}")
    assert store.get("records/a.bin", back)
    assert back.read_bytes() == source.read_bytes()
    assert store.names("records") == {"records/a.bin", "records/below/b.json"}
    store.put(back, "records/below/b.json")
    assert store.read("records/below/b.json") == source.read_bytes()
    store.remove("records/a.bin")
    store.remove("records/a.bin")
    assert store.names("records") == {"records/below/b.json"}


def test_a_put_that_is_killed_in_the_middle_leaves_the_file_that_was_there(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import shutil\n"
        "from medbench.engine.store import Store\n"
        "def half(source, target):\n"
        "    Path(target).write_bytes(Path(source).read_bytes()[:10])\n"
        "    os._exit(9)\n"
        "shutil.copyfile = half\n"
        "Store(sys.argv[1]).put(Path(sys.argv[2]), 'records/x.json')\n"
    )
    store, source = Store(str(tmp_path / "store")), tmp_path / "x.json"
    store.write("records/x.json", b"before")
    source.write_bytes(b"after, and longer than ten bytes")
    done = subprocess.run([sys.executable, "-c", code, store.url, str(source)], check=False)
    assert done.returncode == 9
    assert store.read("records/x.json") == b"before"


def test_a_folder_is_known_as_itself_and_nothing_else(tmp_path):
    assert open_store(str(tmp_path)).is_folder(tmp_path)
    assert open_store(f"file://{tmp_path}").is_folder(tmp_path)
    assert not open_store(str(tmp_path / "other")).is_folder(tmp_path)
    assert not Store("memory:///x").is_folder(tmp_path)


@pytest.mark.parametrize(
    ("url", "words"),
    [("memory://x", "not seen by others"), ("s4://bucket", "Give a folder that all nodes see")],
)
def test_an_address_that_cannot_serve_is_refused(url, words):
    with pytest.raises(UsageError, match=words):
        open_store(url)


def test_a_store_that_cannot_be_written_says_which_and_what_to_look_at(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store(f"{tmp_path}/file/below")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        store.put(tmp_path / "file", "records/x")


@pytest.fixture
def s3(monkeypatch):
    """A server that speaks S3, and an address in a bucket of it."""
    pytest.importorskip("moto", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket/runs"
        s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.kill()
        server.wait()


@pytest.mark.filterwarnings("default")
def test_a_bucket_serves_as_a_folder_does(s3, tmp_path):
    store = open_store(s3)
    test_what_is_put_is_there_and_what_is_not_is_told(store, tmp_path)
    with pytest.raises(OutputError, match="cannot be written in s3://no-such-bucket"):
        open_store("s3://no-such-bucket").write("marker", b"")


@pytest.mark.parametrize("counted", [True, False])
def test_a_cell_leaves_all_its_files_and_its_record_last(tmp_path, monkeypatch, counted):
    store, work, names = Store(str(tmp_path / "store")), tmp_path / "work", []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda s, p, n: (names.append(n), put(s, p, n))[1])
    job = Job("cell", "k" * 32, "a cell", "cell", {}, None, {})
    endings = [".parquet", ".groups.parquet", ".json"] if counted else [".parquet", ".json"]
    for ending in endings:
        path = work / "records" / f"{job.file_stem}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ending)
    scratch._leave(job, store, work, complete=True)
    assert [n.removeprefix(f"records/{job.file_stem}") for n in names] == endings
    # Another try finds none of them.
    scratch._fetch(job, store, work)
    assert not list((work / "records").iterdir())
