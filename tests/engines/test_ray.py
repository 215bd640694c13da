"""The Ray engine on a real cluster: nodes and workers are lost, the coordinator is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from engine_runs import (
    CELLS,
    ONLY,
    alive,
    checkpoints,
    family,
    medbench,
    scores,
    trainings,
    wait_for,
)

pytest.importorskip("ray", reason="ray is not installed: pip install 'medbench[ray]'")
pytestmark = [
    pytest.mark.xdist_group("engines"),
    # Ray's own, in this process that starts the cluster.
    pytest.mark.filterwarnings("default"),
]

RAY = ("--engine", "ray", "--retries", 2)


@dataclass
class Servers:
    """A Ray cluster with one node of one CPU, and an S3 server when one is installed."""

    ray: Any
    s3: str | None

    def workers(self) -> list[psutil.Process]:
        """Workers that run a job now."""
        found = []
        for node in self.ray.list_all_nodes():
            (raylet,) = node.all_processes["raylet"]
            for process in psutil.Process(raylet.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and "/ conv4 /" in title:
                        found.append(process)
        return found

    @property
    def address(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.ray.address}


@pytest.fixture(scope="module")
def servers(python_path, site) -> Iterator[Servers]:
    environment = {
        "PYTHONPATH": python_path,
        "TOY_GATE": str(site / "gate"),
        "RAY_worker_niceness": "0",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server, s3 = _s3_server()
        if s3 is not None:
            patch.setenv("AWS_ENDPOINT_URL", s3)
        cluster = _cluster()
        yield Servers(cluster, s3)
        cluster.shutdown()
        if server is not None:
            server.kill()
            server.wait()


def _cluster() -> Any:
    from ray.cluster_utils import Cluster

    for tries_left in (2, 1, 0):
        try:
            return Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
            )
        except Exception as error:  # Ray's own
            # Ray allows half a minute, which a busy machine may need more than.
            if "timed out during startup" not in str(error) or not tries_left:
                raise
    raise AssertionError


def _s3_server() -> tuple[subprocess.Popen[bytes] | None, str | None]:
    try:
        import moto.server  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError:
        return None, None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    wait_for(answers, seconds=60)
    return server, f"http://127.0.0.1:{port}"


@pytest.fixture
def store(servers, tmp_path) -> str:
    """Storage that is not the run's folder: a bucket, or a folder where no S3 can be had."""
    if servers.s3 is None:
        return f"file://{tmp_path}/store"
    import s3fs

    name = f"runs-{time.time_ns()}"
    s3fs.S3FileSystem(endpoint_url=servers.s3).mkdir(name)
    return f"s3://{name}/toy"


def test_trainings_of_a_node_that_is_lost_go_on_elsewhere_with_the_same_scores(
    servers, suite, start, calm, gate, tmp_path
):
    out = tmp_path / "out"
    node = servers.ray.add_node(num_cpus=1)
    servers.ray.wait_for_nodes()
    run = start(suite, "--out", out, *RAY, *ONLY, **servers.address)
    # Two nodes with one CPU each, so that each has one of the trainings.
    wait_for(lambda: len(checkpoints(out)) == 2, run)
    servers.ray.remove_node(node, allow_graceful=False)
    gate.unlink()
    told = run.ended()
    assert "worker or node died" in told
    found = trainings(out)
    assert sorted(len(t["earlier_tries"]) for t in found) == [0, 1]
    (again,) = (t for t in found if t["earlier_tries"])
    assert again["resumed_at"], "it began anew"
    assert not list(out.rglob("*.tmp"))
    assert scores(out) == calm


def test_a_killed_worker_is_replaced_and_all_is_kept_in_the_store_when_the_folder_is_lost(
    servers, store, suite, start, calm, gate, tmp_path
):
    out = tmp_path / "out"
    where = ("--out", out, "--store", store, *RAY, *ONLY)
    run = start(suite, *where, "--workers", 1, **servers.address)
    fs = _opened(store)
    wait_for(lambda: _names(fs, store, "checkpoint.safetensors"), run)
    (worker,) = servers.workers()
    children = worker.children(recursive=True)
    assert children
    worker.kill()
    wait_for(lambda: not any(alive(c) for c in children), run)
    gate.unlink()
    told = run.ended()
    assert "it is tried again" in told
    found = trainings(out)
    assert sorted(len(t["earlier_tries"]) for t in found) == [0, 1]
    assert any(t["resumed_at"] for t in found)
    assert scores(out) == calm
    assert not _names(fs, store, "checkpoint.safetensors")
    # Of every cell its scores, and its answers by image.
    assert len(_names(fs, store, ".parquet")) == 2 * CELLS
    assert len(_names(fs, store, ".groups.parquet")) == CELLS

    shutil.rmtree(out)
    done = medbench("run", suite, *where, **servers.address)
    assert f"0 cells measured, {CELLS} kept from before" in done.stderr
    assert scores(out) == calm


def _opened(store: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(store)[0]


def _names(fs: Any, store: str, ending: str) -> list[str]:
    fs.invalidate_cache()
    try:
        return [n for n in fs.find(store) if n.endswith(ending)]
    except FileNotFoundError:
        return []


def test_jobs_of_a_killed_coordinator_are_gone_before_the_next_one_starts_any(
    servers, suite, start, calm, gate, tmp_path
):
    out = tmp_path / "out"
    where = ("--out", out, *RAY, *ONLY)
    first = start(suite, *where, **servers.address)
    wait_for(lambda: checkpoints(out), first)
    orphans = [p for w in servers.workers() for p in family(w)]
    assert orphans
    first.process.kill()
    first.process.wait()
    second = start(suite, *where, **servers.address)
    wait_for(lambda: [p for p in servers.workers() if p not in orphans], second)
    assert not any(alive(p) for p in orphans)
    gate.unlink()
    second.ended()
    assert any(t["resumed_at"] for t in trainings(out))
    assert scores(out) == calm


def test_a_folder_that_nodes_do_not_see_is_refused_with_what_to_do(servers, suite, tmp_path):
    # What a node sees under that name is another folder: here, in a bucket that does not exist.
    if servers.s3 is None:
        pytest.skip("needs moto and s3fs")
    done = medbench(
        "run", suite, "--out", tmp_path / "o", "--store", "s3://no-such-bucket/x", *RAY, code=2,
        **servers.address,
    )  # fmt: skip
    assert "cannot be written in s3://no-such-bucket/x" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.environ.get("RAY_ADDRESS") is None
