"""Plugins are loaded one by one; a broken one is reported, left out whole, and harms no other."""

# ruff: noqa: E501
from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

from medbench import plugins
from medbench.errors import PluginError, UsageError

GOOD = """
from medbench.api import AlgorithmSpec, Citation, Parameter, Traits, hookimpl

def spec(name):
    return AlgorithmSpec(
        name=name, version="1", factory="acme_medbench:Nothing", summary="for tests",
        traits=Traits(works_on="features", adapts="nothing"),
        citation=Citation(title="t", authors="a", venue="v", year=2020), licence="MIT",
        parameters=(Parameter("k", 3, "how many", "int", minimum=1),),
    )

@hookimpl
def medbench_algorithms():
    return [spec("acme/one"), spec("acme/two")]
"""


def load(**kwargs) -> plugins.Registry:
    return plugins.load(importlib.metadata.entry_points(group="medbench"), **kwargs)


def fault_of(registry: plugins.Registry, distribution: str) -> plugins.Fault:
    return next(f for f in registry.faults if f.distribution == distribution)


def test_bundled_plugins_come_through_the_same_entry_points():
    registry = load()
    assert {p.distribution for p in registry.plugins} == {"medbench"}
    assert not registry.faults
    assert all(registry.entries[kind] for kind in plugins.KINDS)


def test_an_installed_plugin_is_found(distribute):
    distribute("acme", GOOD)
    registry = load()
    assert registry.get("algorithms", "acme/one").origin() == "acme 1.0"


BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "lacks a dependency": ("import not_there_at_all", "install 'not_there_at_all'"),
    "has no hook": ("x = 1", "implements no hook"),
    "misspells a hook": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_algorithm():\n    return []",
        "did you mean medbench_algorithms",
    ),
    "forgets the decorator": ("def medbench_datasets():\n    return []", "@medbench.api.hookimpl"),
    "has a wrong signature": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_datasets(folder):\n    return []",
        "does not fit",
    ),
    "returns nonsense": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_datasets():\n    return 7",
        "returned int",
    ),
    "returns another spec": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_datasets():\n    return ['x']",
        "the list holds a str",
    ),
    "raises in a hook": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_datasets():\n    raise KeyError('k')",
        "medbench_datasets raised KeyError",
    ),
    "exits in a hook": (
        "from medbench.api import hookimpl\n@hookimpl\ndef medbench_datasets():\n    raise SystemExit(1)",
        "medbench_datasets raised SystemExit",
    ),
    "has a default out of range": (
        GOOD.replace('"how many", "int", minimum=1', '"how many", "int", minimum=5'),
        "below the minimum",
    ),
    "has a space in a name": (GOOD.replace("acme/one", "acme one"), "has a space"),
    "has a syntax error": ("def (", "SyntaxError"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_plugin_that_is_broken_is_reported_and_left_out(distribute, what):
    source, words = BROKEN[what]
    distribute("bad", source, version="2.3")
    distribute("acme", GOOD)
    registry = load()
    fault = fault_of(registry, "bad")
    assert words in fault.cause
    assert fault.version == "2.3"
    assert "acme/two" in registry.entries["algorithms"]
    assert "protonet" in registry.entries["algorithms"]
    assert not any(p.distribution == "bad" for p in registry.plugins)


def test_a_plugin_whose_second_hook_fails_leaves_nothing_behind(distribute):
    source = GOOD + "\n@hookimpl\ndef medbench_protocols():\n    raise ValueError('late')\n"
    distribute("acme", source)
    registry = load()
    assert "late" in fault_of(registry, "acme").cause
    assert "acme/one" not in registry.entries["algorithms"]
    assert not [p for p in registry.manager.get_plugins() if "acme" in p.__name__]


def test_a_name_clash_names_both_distributions_and_the_second_is_left_out_whole(distribute):
    distribute("acme", GOOD)
    distribute("rival", GOOD.replace("acme/one", "rival/one"))
    registry = load()
    fault = fault_of(registry, "rival")
    assert "acme 1.0" in fault.cause
    assert "rival 1.0" in fault.cause
    assert "rival/one" not in registry.entries["algorithms"]


def test_a_stranger_cannot_take_a_bundled_name(distribute):
    distribute("aaa", GOOD.replace("acme/one", "protonet"))
    registry = load()
    assert registry.get("algorithms", "protonet").origin().startswith("medbench ")
    assert "already registered by medbench" in fault_of(registry, "aaa").cause


def test_the_environment_chooses_distributions(distribute):
    distribute("acme", GOOD)
    distribute("other-one", GOOD.replace("acme/", "other/"))
    assert "acme/one" not in load(only="").entries["algorithms"]
    assert "protonet" in load(only="").entries["algorithms"]
    chosen = load(only="Other_One")
    assert "other/one" in chosen.entries["algorithms"]
    assert "acme/one" not in chosen.entries["algorithms"]
    wrong = load(only="acne")
    assert "Did you mean 'acme'" in fault_of(wrong, "acne").cause


def test_tracing_prints_hook_calls(distribute, capsys):
    distribute("acme", GOOD)
    load(trace=True)
    assert "hook medbench_algorithms() -> acme:acme_medbench" in capsys.readouterr().err


def test_unknown_names_get_near_matches():
    registry = load()
    with pytest.raises(UsageError, match="Did you mean 'protonet'"):
        registry.get("algorithms", "protnet")
    with pytest.raises(UsageError, match="is a family: write timm:MODEL"):
        registry.get("backbones", "timm")
    with pytest.raises(UsageError, match="takes no argument"):
        registry.get("backbones", "conv4:x")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"inner_step": 3}, "Did you mean 'inner_steps'"),
        ({"inner_steps": -1}, "below the minimum"),
        ({"inner_steps": "5"}, "'5' is str, and int is needed"),
        ({"inner_steps": 2.5}, "int is needed"),
        ({"first_order": 1}, "bool is needed"),
        ({"inner_lr": float("nan")}, "not finite"),
        ({"inner_lr": True}, "float is needed"),
        ({"head": "other"}, "is not one of"),
    ],
)
def test_wrong_parameters_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        plugins.resolve_params(load().get("algorithms", "maml"), given)


def test_a_factory_that_cannot_be_imported_names_the_distribution(distribute):
    distribute("acme", GOOD)
    entry = load().get("algorithms", "acme/one")
    with pytest.raises(PluginError, match=r"acme/one.*of acme 1\.0 cannot be loaded.*Nothing"):
        plugins.load_factory(entry)


def test_on_record_faults_are_reported_and_do_no_harm(distribute, tmp_path):
    source = (
        GOOD + "\n@hookimpl\ndef medbench_on_record(record):\n    raise OSError(record['key'])\n"
    )
    distribute("acme", source)
    watcher = GOOD.replace("acme/", "w/") + (
        "\n@hookimpl\ndef medbench_on_record(record):\n"
        f"    import pathlib; pathlib.Path({str(tmp_path / 'seen')!r}).write_text(record['key'])\n"
    )
    distribute("watch", watcher)
    faults = load().announce({"key": "k1"})
    assert [f.distribution for f in faults] == ["acme"]
    assert (tmp_path / "seen").read_text() == "k1"


LIGHT = """
import json, sys
import medbench.cli
before = set(sys.modules)
try:
    medbench.cli.main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = [m for m in ("torch", "numpy", "pandas", "timm", "medmnist", "scipy") if m in sys.modules]
print(json.dumps(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list"], ["list", "algorithms", "--json"], ["plugins"], ["info", "protonet"]],
)
def test_looking_around_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_bundled_plugins_import_nothing_of_medbench_but_its_api():
    import ast
    from pathlib import Path

    import medbench_algorithms
    import medbench_backbones
    import medbench_datasets
    import medbench_protocols
    import medbench_trackers

    packages = (medbench_algorithms, medbench_backbones, medbench_datasets, medbench_protocols,
                medbench_trackers)  # fmt: skip
    for package in packages:
        for file in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                elif isinstance(node, ast.Import):
                    names = [a.name for a in node.names]
                for name in names:
                    if name.partition(".")[0] == "medbench":
                        assert name == "medbench.api", f"{file}: imports {name}"
