"""The documentation says all there is, and nothing that is not."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.shell_completion import get_completion_class

import medbench
from medbench.cli import cli
from medbench.config import Suite
from medbench.conformance.suite import SHELVES
from medbench.explain import explain
from medbench.model import Model
from medbench.protocols import Protocol
from medbench.pytest_cells import run_cell
from medbench.yamlfile import Document

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import reference_pages  # noqa: E402

PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "reference"} & set(p.parts))
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- all there is --------------------------------------------------------------------------------


def hook_definitions() -> list[ast.FunctionDef]:
    tree = ast.parse((ROOT / "medbench" / "hookspecs.py").read_text())
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("hook", hook_definitions(), ids=lambda h: h.name)
def test_every_hook_is_documented_with_its_exact_signature(hook):
    page = reference_pages.hooks_page()
    said = re.search(rf"```python\ndef {hook.name}\((.*?)\) -> (.*?): \.\.\.\n```", page, re.DOTALL)
    assert said, hook.name
    assert said[1] == ast.unparse(hook.args)
    assert said[2] == ast.unparse(hook.returns)
    assert ast.get_docstring(hook).split("\n")[0] in page
    written = (DOCS / "plugins.md").read_text()
    assert f"`{hook.name}({', '.join(a.arg for a in hook.args.args)})`" in written


def test_every_name_a_plugin_may_import_is_documented():
    page = reference_pages.hooks_page()
    # Words for types that hold no promise of their own, and functions that explain themselves.
    plain = {"Stage", "TaskKind", "hookimpl", "derive_seed", "did_you_mean", "fold_batchnorm"}
    for name in set(medbench.api.__all__) - plain:
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("path", [p for p, _ in reference_pages.commands()])
def test_every_command_is_documented_with_its_options_and_an_example(path):
    page = reference_pages.commands_page()
    command = dict(reference_pages.commands())[path]
    section = page.split(f"## `{path}`\n")[1].split("\n## `")[0]
    for parameter in command.params:
        for word in [*parameter.opts, *parameter.secondary_opts]:
            if word.startswith("-"):
                assert word in section, f"{path} {word}"
    assert command.help, path
    takes = [p for p in command.params if isinstance(p, click.Argument) and p.required]
    if takes and path not in ("medbench status",):
        assert "Examples:" in section, f"{path} takes an argument, and its --help has no example"


def models(model: type[Model]) -> dict[str, type[Model]]:
    """A model and those it holds, by name."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for name in re.findall(r"\w+", str(field.annotation)):
            inner = vars(sys.modules[model.__module__]).get(name)
            if isinstance(inner, type) and issubclass(inner, Model) and inner is not Model:
                found |= models(inner)
    return found


@pytest.mark.parametrize("name", models(Suite))
def test_every_suite_key_is_documented(name):
    model, page = models(Suite)[name], reference_pages.suites_page()
    assert set(reference_pages.SUITE_KEYS[model]) == set(model.model_fields)
    for key, words in reference_pages.SUITE_KEYS[model].items():
        assert len(words) > 10
        assert f"| `{key}` |" in page


def test_every_protocol_key_is_documented():
    page = (DOCS / "protocols.md").read_text()
    for key in Protocol.model_fields:
        assert re.search(rf"^\| .*`{key}`.*\|", page, re.MULTILINE), key


def test_every_key_of_a_record_is_documented(tmp_path):
    # Of today's records; those of leaderboards may be older.
    words = {"algorithm": "nearest-centroid", "protocol": "synthetic-classes", "shot": 1}
    counts = {"episodes": 2, "cost_episodes": 1, "backbone_params": {"width": 4}}
    record = run_cell({**words, **counts}, tmp_path, "cell").record
    assert record.ok, record.data["error"]
    known, costs = set(reference_pages.RECORD_KEYS), set(reference_pages.COST_KEYS)
    # What only a failed record has, one of several modalities, of masks or boxes, or one whose
    # lanes had to be asked again.
    assert known - set(record.data) == {"stage", "error", "log_tail", "inputs", "picture"}
    assert costs - set(record.data["costs"]) == {"lanes_agree_on_same_features"}
    assert set(record.data) <= known
    assert set(record.data["costs"]) <= costs
    for folder in sorted((ROOT / "leaderboards").iterdir()):
        for path in sorted(folder.glob("records/*.json"))[:3]:
            assert set(json.loads(path.read_text())) <= known
    page = reference_pages.records_page()
    assert all(f"| `{key}` |" in page for key in [*known, *costs])
    assert record.key in explain(record)


@pytest.mark.parametrize("kind", SHELVES)
def test_every_check_is_documented_with_its_reason_and_mend(kind):
    page = reference_pages.checks_page()
    for check in SHELVES[kind]:
        assert f"| `{check.id}` | {check.reason}" in page


def test_every_bundled_dataset_backbone_and_protocol_is_in_the_catalogue():
    page = reference_pages.catalogue_page()
    for specs in list(reference_pages._bundled().values())[:1]:
        assert all(f"`{s.name}" in page for s in specs)
    for kind in ("backbones", "protocols"):
        assert all(f"`{s.name}" in page for s in reference_pages._bundled()[kind])


# --- nothing that is not -------------------------------------------------------------------------


def blocks(path: Path, *languages: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands_in(path: Path) -> list[str]:
    found = []
    for body in [*blocks(path, "sh", "yaml"), *re.findall(r"`(medbench [^`]+)`", path.read_text())]:
        joined = re.sub(r">\n\s+|\\\n\s*", "", body)
        for line in joined.replace("\n    --", " --").splitlines():
            line = re.sub(r"^\s*(- run:|\$)?\s*", "", line)
            if line.startswith("medbench "):
                found.append(re.split(r"\s(#|\||>>?|&&)\s", f"{line} ")[0].strip())
    return found


ALL_COMMANDS = [(p, c) for p in WRITTEN for c in commands_in(p)]


@pytest.mark.parametrize(
    ("path", "line"), ALL_COMMANDS, ids=[f"{by_name(p)}:{c[:50]}" for p, c in ALL_COMMANDS]
)
def test_commands_that_pages_show_exist_with_their_options(path, line):
    words = shlex.split(line)[1:]
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        with click.Context(command) as context:
            command = command.get_command(context, words[0])
        assert command is not None, f"{by_name(path)}: {line}"
        words = words[1:]
    assert command is not None
    options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help", "-h"}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in options, f"{by_name(path)}: {line}"


@pytest.mark.parametrize("path", WRITTEN, ids=by_name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "#")) or "reference/" in target:
            continue
        assert (path.parent / target.partition("#")[0]).exists(), f"{by_name(path)}: {target}"


@pytest.mark.parametrize("path", WRITTEN, ids=by_name)
def test_code_that_pages_show_can_be_read(path):
    for body in blocks(path, "python"):
        compile(body.replace("...,\n", "name='x',\n"), by_name(path), "exec")
    for body in blocks(path, "yaml"):
        value = yaml.safe_load(body)
        if isinstance(value, dict) and "setting" in value:
            Document(body, by_name(path)).validate(Protocol)
        elif isinstance(value, dict) and "name" in value:
            Document(body, by_name(path)).validate(Suite)


def test_the_reference_is_generated_from_words_for_every_page(tmp_path):
    reference_pages.write(tmp_path)
    index = (DOCS / "index.md").read_text()
    for page in tmp_path.glob("*.md"):
        assert f"reference/{page.stem}" in index, page.stem
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.md")}
    reference_pages.write(tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.md")}


def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "reference" / "hooks.html").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_for_a_shell_that_the_page_shows_make_a_script(shell):
    assert f"_MEDBENCH_COMPLETE={shell}_source medbench" in (
        DOCS / "howto" / "shell-completion.md"
    ).read_text(encoding="utf-8")
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "medbench", "_MEDBENCH_COMPLETE")
    # Checking the version of bash would start one.
    assert "_MEDBENCH_COMPLETE" in script.source_template % script.source_vars()
