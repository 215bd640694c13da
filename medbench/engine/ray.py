"""The Ray engine: trainings and cells as tasks of a Ray cluster, or of one started here.

Each task runs its job in a folder of its node, as the local engine would, and leaves the record in
the run's storage; the coordinator brings finished records home. Ray tries nothing again by itself:
who runs what, and how often, is the coordinator's to say.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medbench import __version__
from medbench.engine.alone import Result, Terms, Troubles
from medbench.engine.executor import Attempt, Ended, Lost, Told
from medbench.engine.scratch import (
    Spot,
    log_file,
    recorded_files,
    run_in_scratch,
    run_name,
    unseen,
)
from medbench.engine.store import Store
from medbench.errors import OutputError, Unavailable, UsageError
from medbench.files import write_json
from medbench.jobs import Job

_POLL_S = 0.5
_COUNT_NODES_EVERY_S = 5.0
# A node that joins answers within seconds, when it answers at all.
_CHECK_S = 120.0
_GONE_WITHIN_S = 60.0
_OWNER = "owner.json"
# Letters of a node's name that tell it from others.
_NODE = 12

# What of it has no types.
_RAY: Any = ray
_Found = tuple[str, str, bool]


def _job(attempt: Attempt, terms: Terms, store: Store, run: str, marker: str) -> Iterator[Any]:
    """A Ray task: one attempt, told as it goes."""
    yield from run_in_scratch(attempt, terms, store, _spot(run), marker)


def _check(store: Store, marker: str) -> _Found:
    """A Ray task: the host, its medbench, and whether it sees the storage."""
    return os.uname().nodename, __version__, store.read(marker) is not None


def _clear(run: str, alive: Sequence[str]) -> None:
    """A Ray task: removes what a run's jobs left on this node, and dead ones of this machine."""
    _spot(run).clear([node[:_NODE] for node in alive])


def _spot(run: str) -> Spot:
    return Spot(run, ray.get_runtime_context().get_node_id()[:_NODE])


@dataclass
class _Running:
    attempt: Attempt
    # Ray's generator of what the task tells.
    told: Any
    result: Result | None = None


class RayExecutor:
    """Runs jobs as Ray tasks; as many at a time as the cluster has room for, or `workers`."""

    def __init__(
        self, out: Path, terms: Terms, store: Store, *, workers: int | None, jobs_per_gpu: int
    ) -> None:
        self._out, self._terms, self._store = out, terms, store
        self._workers = workers
        self._need: dict[str, float] = {"CPU": float(terms.threads)}
        if terms.gpu:
            self._need["GPU"] = 1.0 / jobs_per_gpu
        if terms.memory_bytes:
            self._need["memory"] = float(terms.memory_bytes)
        self._run = run_name(out, store)
        self._marker = f"ray/marker-{uuid.uuid4().hex[:12]}"
        self._home = store.is_folder(out)
        self.n_slots = workers or 1
        self._counted = 0.0
        self._running: list[_Running] = []
        self._troubles = Troubles()
        self._open = False

    # --- the contract ----------------------------------------------------------------------------

    def open(self) -> None:
        """See `medbench.engine.executor.Executor.open`."""
        with _handlers_kept():
            self._connect()
        self._open = True
        self._fence()
        self._store.write(self._marker, b"")
        self._check_nodes()
        self.n_slots = self._room()
        if not self._home:
            self._exchange()

    def has_room(self, job: Job) -> bool:
        """See `medbench.engine.executor.Executor.has_room`."""
        if self._workers is None and time.monotonic() - self._counted > _COUNT_NODES_EVERY_S:
            # Nodes come and go.
            self.n_slots = self._room() or self.n_slots
        return len(self._running) < self.n_slots

    def start(self, attempt: Attempt) -> str:
        """See `medbench.engine.executor.Executor.start`."""
        options: dict[str, Any] = {
            "num_cpus": self._need["CPU"],
            "num_gpus": self._need.get("GPU", 0.0),
            "max_retries": 0,
            "num_returns": "streaming",
            "name": attempt.job.title,
        }
        if "memory" in self._need:
            options["memory"] = self._need["memory"]
        told = (
            ray.remote(_job)
            .options(**options)
            .remote(attempt, self._terms, self._store, self._run, self._marker)
        )
        self._running.append(_Running(attempt, told))
        return "ray"

    def wait(self) -> Sequence[Told | Ended]:
        """See `medbench.engine.executor.Executor.wait`."""
        if not self._running:
            time.sleep(_POLL_S)
            return []
        by_told = {r.told: r for r in self._running}
        ready, _ = ray.wait(list(by_told), num_returns=1, timeout=_POLL_S)
        if ready and len(by_told) > 1:
            ready, _ = ray.wait(list(by_told), num_returns=len(by_told), timeout=0)
        news: list[Told | Ended] = []
        for told in ready:
            news += self._hear(by_told[told])
        return news

    def stop(self) -> None:
        """See `medbench.engine.executor.Executor.stop`."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(exceptions.RayError, ConnectionError):
            self._cancel_all()
            nodes = [node["NodeID"] for node in _alive_nodes()]
            self._on_every_node(_clear, 20.0, self._run, nodes)
        with contextlib.suppress(OutputError):
            self._store.remove(self._marker)
            if not self._home:
                self._exchange(bring=False)  # records of lost jobs, which are written here
        ray.shutdown()

    # --- the cluster -----------------------------------------------------------------------------

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            raise UsageError(
                f"RAY_ADDRESS={address}: run this on a node of the cluster, with RAY_ADDRESS=auto; "
                "jobs must end with the process that gives them out."
            )
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                ray.init(address=address, **common)
            else:
                # Ray would let every other program on this machine go first.
                os.environ.setdefault("RAY_worker_niceness", "0")
                cores = len(os.sched_getaffinity(0))
                n_cpus = self._workers * self._terms.threads if self._workers else cores
                ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, **common)
        except Exception as error:  # Ray raises anything, plain `Exception` too
            what = f"The Ray cluster at {address} cannot be reached"
            what = what if address else "Ray cannot be started here"
            raise Unavailable(f"{what}: {' '.join(str(error).split())[:300]}") from error

    def _fence(self) -> None:
        """Wait until the jobs of an earlier coordinator of this run are gone; then sign."""
        path = self._out / "ray" / _OWNER
        context = ray.get_runtime_context()
        here = {"cluster": context.gcs_address, "session": _session(), "job": context.get_job_id()}
        try:
            before = json.loads(path.read_text())
            same = all(before[k] == here[k] for k in ("cluster", "session"))
        except (OSError, ValueError, KeyError):
            same = False
        until = time.monotonic() + _GONE_WITHIN_S
        while same and not _is_over(before["job"]):
            if time.monotonic() > until:
                raise Unavailable(
                    f"Ray job {before['job']} of an earlier run into {self._out} still lives. End "
                    "its process, and run the same command again."
                )
            time.sleep(_POLL_S)
        write_json(path, here)

    def _room(self) -> int:
        """How many jobs may run at a time."""
        self._counted = time.monotonic()
        if self._workers is not None:
            return self._workers
        n = 0
        for node in _alive_nodes():
            has = node["Resources"]
            n += int(min(has.get(name, 0.0) / need for name, need in self._need.items()))
        return n

    def _check_nodes(self) -> None:
        if self._workers is None and not self._room():
            need = ", ".join(f"{n:g} {name}" for name, n in self._need.items())
            have = "; ".join(
                ", ".join(f"{n['Resources'].get(name, 0.0):g} {name}" for name in self._need)
                for n in _alive_nodes()
            )
            raise Unavailable(
                f"No node of the Ray cluster can run a job, which needs {need}; the nodes have "
                f"{have}. When nodes come on demand, say how many jobs with --workers."
            )
        found: list[_Found] = self._on_every_node(_check, _CHECK_S, self._store, self._marker)
        for host, version, sees in found:
            if version != __version__:
                raise Unavailable(f"{host} has medbench {version}, and this is {__version__}.")
            if not sees:
                raise Unavailable(unseen(host, self._store))

    def _on_every_node(self, task: Any, limit_s: float, *arguments: Any) -> list[Any]:
        remote = ray.remote(task)
        asked = [
            remote.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(*arguments)
            for node in _alive_nodes()
        ]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=limit_s)
        found = []
        for answer in done:
            try:
                found.append(ray.get(answer))
            except exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, OutputError | ModuleNotFoundError):
                    raise Unavailable(f"A node of the Ray cluster says: {cause}") from error
                raise
            except exceptions.RayError:
                continue  # it died meanwhile
        return found

    def _cancel_all(self) -> None:
        told: list[Any] = [r.told for r in self._running]
        self._running.clear()
        for one in told:
            ray.cancel(one, force=True)
        until = time.monotonic() + _GONE_WITHIN_S
        while told and time.monotonic() < until:
            heard: list[Any] = ray.wait(told, num_returns=1, timeout=_POLL_S)[0]
            for one in heard:
                try:
                    ray.get(next(one))
                except (StopIteration, exceptions.RayError):
                    told.remove(one)

    # --- what jobs tell --------------------------------------------------------------------------

    def _hear(self, running: _Running) -> list[Told | Ended]:
        job = running.attempt.job
        try:
            news = ray.get(next(running.told))
        except StopIteration:
            return [self._end(running)]
        except exceptions.RayError as error:
            self._running.remove(running)
            return [Ended(job, 0.0, self._obituary(error))]
        if isinstance(news, Result):
            running.result = news
            return []
        self._troubles.worked = True
        return [Told(job, news.fraction, news.text)]

    def _end(self, running: _Running) -> Ended:
        self._running.remove(running)
        job, result = running.attempt.job, running.result
        if result is None:
            return Ended(job, 0.0, Lost("crash", "Its Ray task told nothing.", again=True))
        if result.trouble:
            return Ended(job, result.seconds, self._troubles.lost(result.trouble))
        self._troubles.worked = True
        if not self._home:
            names = [] if result.lost else recorded_files(job)
            for name in (log_file(job), *names):
                self._store.get(name, self._out / name)
        return Ended(job, result.seconds, result.lost)

    def _obituary(self, error: exceptions.RayError) -> Lost:
        if isinstance(error, exceptions.OutOfMemoryError):
            return Lost("oom", "Ray ended it when its node's memory ran out.")
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        text = f"{type(error).__name__}: {first.strip()[:300]}"
        if isinstance(error, exceptions.RayTaskError):
            # Nothing of a job gets here, so it is the node that is not right.
            return self._troubles.lost(f"A Ray task failed. {text}")
        return Lost("crash", f"Its Ray worker or node died. {text}", again=True)

    # --- records here and there ------------------------------------------------------------------

    def _exchange(self, *, bring: bool = True) -> None:
        """Leave in the store what it lacks and, with `bring`, the other way round."""
        for top in ("trainings", "records"):
            here = {
                str(p.relative_to(self._out))
                for p in (self._out / top).rglob("*")
                if p.is_file() and not p.name.startswith(".")
            }
            there = {n for n in self._store.names(top) if not Path(n).name.startswith(".")}
            # A record comes after what it speaks of.
            for name in sorted(there - here if bring else (), key=_record_last):
                if not name.endswith("checkpoint.safetensors"):
                    self._store.get(name, self._out / name)
            for name in sorted(here - there, key=_record_last):
                self._store.put(self._out / name, name)


def _record_last(name: str) -> tuple[bool, str]:
    return name.endswith(".json"), name


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in _RAY.nodes() if node["Alive"]]


def _session() -> str:
    return str(_RAY._private.worker.global_worker.node.session_name)


def _is_over(job_id: str) -> bool:
    """Whether Ray has ended all tasks of a driver."""
    jobs = {j["JobID"]: j for j in _RAY._private.state.jobs()}
    return job_id not in jobs or bool(jobs[job_id]["IsDead"])


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    # Ray would handle SIGTERM in its own way.
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, and then Ray changed nothing
            for number, handler in before.items():
                signal.signal(number, handler)
