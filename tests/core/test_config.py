"""Suites and protocols: what is wrong, in which line, and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.config import Suite, bundled_suites, load_suite, open_suite
from medbench.errors import ConfigError, PluginError, UsageError
from medbench.plugins import registry
from medbench.protocols import Protocol, load_protocol
from medbench.yamlfile import Document

GOOD = """\
name: mine
protocols: [synthetic-classes]
backbones: [conv4]
algorithms:
  - protonet
  - name: maml
    params: {inner_lr: 1e-3}
"""


def write(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_suite_loads(tmp_path):
    suite, values = load_suite(write(tmp_path, GOOD), registry())
    assert suite.algorithms[1].params == {"inner_lr": 0.001}
    assert values["name"] == "mine"


def test_yaml_is_read_as_people_mean_it():
    text = "a: 1e-3\nb: no\nc: 10:30\nd: 010\ne:\nf: 2001-01-01\ng: .5\nh: true\ni: -3\nj: 1.5e3"
    assert Document(text, "f").value == {
        "a": 0.001, "b": "no", "c": "10:30", "d": 10, "e": None, "f": "2001-01-01", "g": 0.5,
        "h": True, "i": -3, "j": 1500.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("protocols:", "protcols:"), 2, "unknown key 'protcols'. Did you mean 'protocols'"),
        (("protocols: [synthetic-classes]\n", ""), 1, "lacks the key 'protocols'"),
        (("protonet", "protnet"), 5, "no algorithm called 'protnet'. Did you mean 'protonet'"),
        (("conv4", "conv5"), 3, "Did you mean 'conv4'"),
        (("synthetic-classes", "synthetic-clases"), 2, "Did you mean 'synthetic-classes'"),
        (("inner_lr: 1e-3", "inner_lr: '1e-3'"), 7, "'1e-3' is str, and float is needed"),
        (("inner_lr", "iner_lr"), 7, "Did you mean 'inner_lr'"),
        (("params:", "parms:"), 7, "unknown key 'parms' in algorithms.1. Did you mean 'params'"),
        (("name: mine", "name: mine\nname: yours"), 2, "'name' is given twice (first on line 1)"),
        (("name: mine", "name: mine\nseeds: ['0']"), 2, "remove the quotes"),
        (("name: mine", "name: mine\nseeds: 3"), 2, "seeds is 3 (number)"),
        (("name: mine", "name: mine\nseeds: [1, 1]"), 1, "names one twice"),
        (("name: mine", "name: [1"), 2, "not valid YAML"),
        (("  - protonet", "  - protonet\n  - protonet"), 1, "'protonet' is given twice"),
        (("name: mine", "1: mine"), 1, "the key 1 is a number"),
        (("[conv4]", "[]"), 3, "at least one"),
    ],
)
def test_a_wrong_suite_names_line_and_remedy(tmp_path, change, line, words):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_suite(path, registry())
    matching = [m for m in str(caught.value).splitlines() if words in m]
    assert matching, str(caught.value)
    assert any(f"suite.yaml:{line}:" in m for m in matching), matching


def test_files_that_are_no_suites(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'quickstart'"):
        load_suite("quickstrat", registry())
    with pytest.raises(UsageError, match="no file"):
        load_suite(str(tmp_path / "none.yaml"), registry())
    with pytest.raises(UsageError, match="is a folder"):
        load_suite(str(tmp_path), registry())
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load_suite(write(tmp_path, "- a\n- b\n"), registry())
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_suite(str(tmp_path / "binary.yaml"), registry())


def test_yaml_bombs_and_loops_are_refused():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for i, name in enumerate("bcdefg"):
        bomb += f"{name}: &{name} [{', '.join(['*' + 'abcdefg'[i]] * 10)}]\n"
    with pytest.raises(ConfigError, match="too large"):
        Document(bomb, "f")
    with pytest.raises(ConfigError):
        Document("a: &a [*a]", "f")


def test_settings_change_the_suite(tmp_path):
    suite, _ = load_suite(
        write(tmp_path, GOOD),
        registry(),
        ["seeds=[0, 1]", "algorithms.maml.params.inner_steps=2", "algorithms.0.label=PN",
         "budget.episodes=9"],
    )  # fmt: skip
    assert suite.seeds == (0, 1)
    assert suite.algorithms[1].params["inner_steps"] == 2
    assert suite.algorithms[0].shown == "PN"
    assert suite.budget is not None
    assert suite.budget.episodes == 9


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seeds", "write key=value"),
        ("algorithms.mamal.params.inner_steps=2", "Did you mean 'maml'"),
        ("sedes=[1]", "Did you mean 'seeds'"),
        ("name.x.y=1", "has no"),
        ("seeds=[1", "not valid YAML"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, setting, words):
    with pytest.raises(ConfigError, match=words):
        load_suite(write(tmp_path, GOOD), registry(), [setting])


def test_every_bundled_suite_and_protocol_is_valid():
    assert {"quickstart", "medmnist-cross", "sites", "omniglot"} <= set(bundled_suites())
    for name in bundled_suites():
        suite, _ = load_suite(name, registry())
        assert suite.name == name
        assert suite.summary
    for name in registry().entries["protocols"]:
        protocol, entry = load_protocol(registry(), name)
        assert protocol.summary
        assert entry.spec.summary


PROTOCOL = """\
name: p
version: 1
summary: s
setting: cross_domain
datasets: [a, b]
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("datasets: [a, b]", "datasets: [a]"), "at least two datasets"),
        (("cross_domain", "within_dataset"), "needs class_split"),
        (("summary: s", "summary: s\nclass_split: x"), "class_split is for within_dataset"),
        (("summary: s", "summary: s\ntargets: [c]"), "target 'c' is not among"),
        (("summary: s", "summary: s\nshots: [0]"), "greater than 0"),
        (("summary: s", "summary: s\nshots: [1, 1]"), "names one twice"),
        (("summary: s", "summary: s\nepisodes: 5"), "cost_episodes is 20"),
        (("cross_domain", "cross-domain"), "setting is 'cross-domain'"),
        (("version: 1", "version: '1'"), "remove the quotes"),
        (("summary: s", "summary: s\nshts: [1]"), "Did you mean 'shots'"),
    ],
)
def test_a_wrong_protocol_is_explained(change, words):
    with pytest.raises(ConfigError, match=words):
        Document(PROTOCOL.replace(*change), "p.yaml").validate(Protocol)


def test_a_plugin_with_a_broken_protocol_file_is_named(distribute):
    distribute(
        "acme",
        "from medbench.api import ProtocolSpec, hookimpl\n"
        "@hookimpl\n"
        "def medbench_protocols():\n"
        "    return [ProtocolSpec(name='acme/p', version=1, summary='s',\n"
        "                         resource='acme_medbench:nowhere.yaml')]\n",
    )
    with pytest.raises(PluginError, match=r"acme/p.*acme 1\.0 cannot be used"):
        load_protocol(registry(), "acme/p")


def test_a_suite_is_frozen():
    suite = Document(GOOD, "f").validate(Suite)
    with pytest.raises(ValueError, match="frozen"):
        suite.name = "other"


def test_a_file_that_is_not_there_is_told_with_the_nearest_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scanners.yaml").touch()
    with pytest.raises(UsageError, match=r"no file scanner\.yaml\. Did you mean scanners\.yaml\?"):
        open_suite("scanner.yaml")
    with pytest.raises(UsageError, match="Did you mean quickstart"):
        open_suite("quickstrat.yaml")
    with pytest.raises(UsageError, match=r"no file far/away\.yaml\. 'medbench list suites'"):
        open_suite("far/away.yaml")
