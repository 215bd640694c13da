"""`medbench check` and the pytest decorator, with the words a person would use."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from medbench import conformance
from medbench.cli import main
from medbench.errors import UsageError

RIGHT = """
from medbench.api import *
C = Citation(title="t", authors="A", venue="V", year=2020)

def spec(name, factory, **more):
    return AlgorithmSpec(name=name, version="1", factory="odd_parts:" + factory, summary="s",
        traits=Traits(works_on="features", adapts="nothing"), citation=C, licence="MIT", **more)

RIGHT_ONE = spec("odd/right", "Mean")

@hookimpl
def medbench_algorithms():
    return [spec("odd/right", "Mean"), spec("odd/wrong", "Squeezes"),
            spec("odd/excused", "Squeezes",
                 conformance=Conformance(excuses=(Excuse("one-query", "asks for two"),))),
            spec("odd/unreasoned", "Mean",
                 conformance=Conformance(excuses=(Excuse("one-query", " "),))),
            spec("odd/typo", "Mean",
                 conformance=Conformance(excuses=(Excuse("one-qery", "typo"),)))]
"""
PARTS = """
import torch
from medbench.api import Algorithm, Predictor

class P(Predictor):
    def __init__(self, means, squeeze):
        self.means, self.squeeze = means, squeeze
    def predict(self, query):
        scores = -torch.cdist(query, self.means)
        return scores.squeeze() if self.squeeze else scores

class Mean(Algorithm):
    squeeze = False
    def adapt(self, support):
        one = torch.nn.functional.one_hot(support.labels, support.n_way).to(support.inputs.dtype)
        return P(one.T @ support.inputs / one.sum(0)[:, None], self.squeeze)

class Squeezes(Mean):
    squeeze = True
"""


@pytest.fixture
def call(capsys, distribute):
    distribute("odd", RIGHT, odd_parts=PARTS)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["check", *arguments])
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


def test_exit_codes_tell_fine_from_failed_from_wrong_usage(call):
    assert call("odd/right", "--only", "one-query")[0] == 0
    assert call("odd/wrong", "--only", "one-query")[0] == 1
    assert call("odd/rihgt")[0] == 2
    assert call()[0] == 2
    assert call("odd/right", "--all")[0] == 2


def test_a_failure_shows_what_was_seen_why_and_how_to_mend_it(call):
    _, out, _ = call("odd/wrong", "--only", "one-query")
    assert "predict returned (3,) for 1 queries" in out
    assert "why: A clinic asks about one image." in out
    assert "fix: Do not squeeze" in out
    assert "odd 1.0" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("odd/rihgt", "Did you mean 'odd/right'"),
        ("odd_parts:Meen", "module odd_parts has no 'Meen'"),
        ("odd_parts:P", "neither a spec nor the factory of one"),
        ("not_there:Mean", "Nor is there a module not_there"),
        ("timm", "write timm:MODEL"),
        ("odd/typo", "Did you mean 'one-query'"),
        ("odd/unreasoned", "gives no reason"),
    ],
)
def test_a_wrong_name_is_one_message_with_what_to_write(call, name, words):
    code, _, err = call(name, "--only", "spec")
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_an_unknown_check_or_parameter_is_refused_with_the_nearest(call):
    assert "Did you mean 'one-shot'" in call("odd/right", "--only", "one-shoot")[2]
    assert "takes no parameters" in call("odd/right", "--param", "p=2")[2]


@pytest.mark.parametrize("path", ["odd_parts:Mean", "odd_medbench:RIGHT_ONE"])
def test_code_is_named_by_its_factory_or_spec(call, path):
    code, out, _ = call(path, "--only", "spec", "--json")
    assert code == 0
    assert [found["name"] for found in json.loads(out)] == ["odd/right"]


def test_a_hook_stands_for_all_that_it_returns(call):
    code, _, err = call("odd_medbench:medbench_algorithms", "--only", "spec")
    assert code == 2  # one of them has an excuse without a reason
    assert "gives no reason" in err


def test_an_excuse_is_shown_with_its_reason_and_fails_nothing(call):
    code, out, _ = call("odd/excused", "--only", "one-query")
    assert code == 0
    assert "excused" in out
    assert "asks for two" in out


def test_json_has_every_check_with_status_reason_and_hint(call):
    code, out, _ = call("odd/wrong", "--json", "--only", "one-query", "--only", "one-shot")
    assert code == 1
    (found,) = json.loads(out)
    rows = {row["check"]: row for row in found["checks"]}
    assert set(rows) == {"one-query", "one-shot"}
    assert rows["one-query"]["status"] == "failed"
    assert rows["one-shot"]["status"] == "ok"
    assert all(row["reason"] and row["hint"] for row in rows.values())
    assert not found["ok"]


def test_checks_are_listed_without_running_any(call):
    code, out, _ = call("--list")
    assert code == 0
    assert "one-query" in out
    assert "patients" in out
    rows = json.loads(call("--list", "--json", "--kind", "datasets")[1])
    assert {row["kind"] for row in rows} == {"datasets"}


def test_code_in_the_working_folder_is_found(call, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "here_medbench.py").write_text(textwrap.dedent(RIGHT).replace("odd", "here"))
    (folder / "here_parts.py").write_text(PARTS)
    # As the installed command has it: the working folder is not on the path by itself.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    monkeypatch.chdir(folder)
    code, out, err = call("here_medbench:RIGHT_ONE", "--only", "factory", "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    assert found["name"] == "here/right"
    assert found["checks"][0]["status"] == "ok"


def test_the_decorator_makes_one_test_of_each_check(distribute, pytester_like):
    distribute("odd", RIGHT, odd_parts=PARTS)
    outcomes = pytester_like(
        """
        from medbench import conformance

        @conformance.parametrize("odd/excused", "odd/wrong", only=["one-query", "one-shot"])
        def test_conformance(check):
            check()
        """
    )
    assert outcomes == {
        "algorithm-odd/excused-one-query": "skipped",
        "algorithm-odd/excused-one-shot": "passed",
        "algorithm-odd/wrong-one-query": "failed",
        "algorithm-odd/wrong-one-shot": "passed",
    }


@pytest.fixture
def pytester_like(tmp_path):
    """Run a test file in a session of pytest of its own; outcomes by the parameter's id."""

    def run(source: str) -> dict[str, str]:
        path = tmp_path / "inner" / "test_inner.py"
        path.parent.mkdir()
        path.write_text(textwrap.dedent(source))
        watch = Outcomes()
        # In this process: another one would load torch again.
        options = ("-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "error")
        pytest.main([*options, f"--rootdir={path.parent}", str(path)], plugins=[watch])
        return watch.found

    return run


class Outcomes:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid.partition("[")[2].rstrip("]")] = report.outcome


def test_the_decorator_refuses_an_unknown_name():
    with pytest.raises(UsageError, match="Did you mean 'protonet'"):
        conformance.parametrize("protonett")


def test_importing_the_package_of_checks_imports_no_torch():
    code = "import sys, medbench.conformance; assert not {'torch', 'pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- plugins that are left out -------------------------------------------------------------------


FIRST = 'return [spec("odd/right", "Mean"'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (FIRST, FIRST + ", parameters=(Parameter('p', 1, 'x', 'flaot'),)", "type of parameter p"),
        (FIRST, FIRST + ", parameters=(Parameter('p', 1, 'x', 'int', stage='x'),)", "train, adapt"),
        (FIRST, FIRST + ", parameters=('p',)", "parameters must be a tuple of Parameter"),
        (FIRST, FIRST + ", parameters=Parameter('p', 1, 'x', 'int')", "a spec cannot be read"),
        ("works_on='features'", "works_on='feature'", "features, maps, images is needed"),
        ("works_on='features'", "works_on='maps', task_kinds=('boxes',)", "trait task_kinds is"),
        ("return [", "return (", "SyntaxError"),
        ("@hookimpl", "", "lacks the decorator"),
    ],
)
def test_whoever_asks_for_a_plugin_that_is_left_out_is_told_why(
    distribute, capsys, old, new, words
):
    source = RIGHT.replace('works_on="features"', "works_on='features'")
    assert old in source
    distribute("odd", source.replace(old, new), odd_parts=PARTS)
    for command in (["check", "odd/right"], ["info", "odd/right"], ["list", "algorithms"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        shown = capsys.readouterr()
        if command[0] == "list":  # the others are there
            assert not stop.value.code
            assert "protonet" in shown.out
        else:
            assert stop.value.code == 2
            assert "odd 1.0" in shown.err
            assert words in shown.err


def test_a_class_that_lacks_a_method_is_named_with_it(distribute, capsys):
    distribute("odd", RIGHT, odd_parts=PARTS.replace("def adapt", "def fit"))
    with pytest.raises(SystemExit) as stop:
        main(["check", "odd/right", "--only", "factory"])
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "odd_parts:Mean is not complete" in shown
    assert "abstract method" in shown
    assert "fix: Write the methods" in shown
