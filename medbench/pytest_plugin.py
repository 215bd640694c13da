"""The pytest plugin: a cell measured in a test, kept by pytest-benchmark, judged by the gate.

Loaded in every pytest session of an environment that has medbench, so it imports nothing heavy
until a test asks for a cell.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from medbench.gate.verdicts import Outcome
    from medbench.pytest_cells import MeasuredCell

_OUT = pytest.StashKey[Path]()
_OUTCOME = pytest.StashKey["Outcome | str"]()
_HARDWARE = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the gate."""
    group = parser.getgroup("medbench", "few-shot cells measured in tests")
    group.addoption(
        "--medbench-gate",
        metavar="BASELINE",
        help="Fail when a measured cell is worse than in this baseline file or run.",
    )
    group.addoption(
        "--medbench-update", metavar="FILE", help="Write what was measured to this baseline file."
    )
    group.addoption("--medbench-thresholds", metavar="YAML", help="What counts as worse.")
    group.addoption("--medbench-out", metavar="DIR", help="Keep records here [a temporary folder].")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and choose where records go, one place for all workers."""
    config.addinivalue_line(
        "markers", "medbench(algorithm, protocol, shot, ...): the cell that medbench_cell measures."
    )
    told = getattr(config, "workerinput", {}).get("medbench_out")
    named = told or config.getoption("--medbench-out")
    if named:
        config.stash[_OUT] = Path(named).resolve()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where records go."""
    node.workerinput["medbench_out"] = str(_out(node.config))


@pytest.fixture
def medbench_cell(request: pytest.FixtureRequest) -> MeasuredCell:
    """The cell that the test's ``medbench`` marker describes, measured in a process of its own.

    Fails the test, with the record's reason, when the cell fails. Where pytest-benchmark is
    active, the seconds of every episode are kept as its rounds.
    """
    from medbench.errors import MedbenchError
    from medbench.pytest_cells import run_cell

    marker = request.node.get_closest_marker("medbench")
    if marker is None or marker.args:
        pytest.fail(
            "medbench_cell needs a marker with keywords: "
            "@pytest.mark.medbench(algorithm='acme/nearest', protocol='synthetic-classes', shot=5)",
            pytrace=False,
        )
    try:
        cell = run_cell(marker.kwargs, _out(request.config), _name(request.node.nodeid))
    except MedbenchError as error:
        pytest.fail(str(error), pytrace=False)
    if not cell.record.ok:
        data = cell.record.data
        pytest.fail(f"{data['status']} in stage {data.get('stage')}: {data.get('error')}", False)
    request.config.stash[_HARDWARE] = dict(cell.record.data["hardware"])
    if request.config.pluginmanager.hasplugin("benchmark"):
        _keep(request, cell)
    return cell


def _keep(request: pytest.FixtureRequest, cell: MeasuredCell) -> None:
    """Hand the measured times to pytest-benchmark, through its own options for markers."""
    replay = _Replay((cell.times("adaptation_s") + cell.times("prediction_s")).tolist())
    own = request.node.get_closest_marker("benchmark")
    options = {"group": str(cell.record.cell["target"]), **(own.kwargs if own else {})}
    request.node.add_marker(pytest.mark.benchmark(**options | {"timer": replay}), append=False)
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info.update(cell.extra_info())
    benchmark.pedantic(_nothing, rounds=len(replay.seconds), warmup_rounds=0)


class _Replay:
    """A clock that ticks as the measurements did: start and end of one after the other."""

    __name__ = "medbench_replay"

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds
        self._calls = 0

    def __call__(self) -> float:
        number, end = divmod(self._calls, 2)
        self._calls += 1
        return self.seconds[number % len(self.seconds)] if end else 0.0


def _nothing() -> None:
    pass


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add the machine as records tell it, so that --benchmark-compare warns of another one."""
    if _HARDWARE in config.stash:
        machine_info["medbench"] = config.stash[_HARDWARE]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """Add the version of what measured."""
    from medbench import __version__

    commit_info["medbench"] = __version__


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Judge what the session measured; a worker leaves that to its controller."""
    config = session.config
    gate, update = config.getoption("--medbench-gate"), config.getoption("--medbench-update")
    if not (gate or update) or hasattr(config, "workerinput"):
        return
    from medbench.errors import MedbenchError

    try:
        outcome = _judge(config, gate, update)
    except MedbenchError as error:
        config.stash[_OUTCOME] = f"medbench: {error}"
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        return
    config.stash[_OUTCOME] = outcome
    if not isinstance(outcome, str) and outcome.exit_code:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _judge(config: pytest.Config, gate: str | None, update: str | None) -> Outcome | str:
    from medbench.gate.baseline import commit_here, write_baseline
    from medbench.gate.judge import judge
    from medbench.gate.reading import read_side
    from medbench.gate.thresholds import load_thresholds
    from medbench.pytest_cells import collect

    named = config.getoption("--medbench-thresholds")
    rules = load_thresholds(Path(named) if named else None)
    after = collect(_out(config), rules.accuracy.metric)
    told = ""
    if update:
        write_baseline(Path(update), after, commit_here())
        n = len(after.cells)
        told = f"{update}: {n} {'cell' if n == 1 else 'cells'}"
    if gate is None:
        return told
    return judge(read_side(Path(gate), rules.accuracy.metric), after, rules)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the verdict."""
    outcome = config.stash.get(_OUTCOME, None)
    if outcome is None:
        return
    from medbench.gate.reports.table import terminal

    terminalreporter.section("medbench gate")
    terminalreporter.write_line(outcome if isinstance(outcome, str) else terminal(outcome))


def _out(config: pytest.Config) -> Path:
    if _OUT not in config.stash:
        config.stash[_OUT] = Path(tempfile.mkdtemp(prefix="medbench-"))
    folder = config.stash[_OUT]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _name(nodeid: str) -> str:
    """A folder's name for a test, unique and readable."""
    digest = hashlib.blake2b(nodeid.encode(), digest_size=4).hexdigest()
    words = re.sub(r"[^A-Za-z0-9]+", "-", nodeid.rpartition("::")[2]).strip("-")[:60]
    return f"{words or 'test'}-{digest}"
