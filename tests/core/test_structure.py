"""The house rules: imports point one way, and what must stay light does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medbench
from medbench.leaderboard.names import METRICS

ROOT = Path(medbench.__file__).parent
# From the ground up: a module may import those on lines above, and those on its own line.
LAYERS = [
    {"errors"},
    {"api"},
    {
        "network",
        "folding",
        "hookspecs",
        "files",
        "sourcecode",
        "multilabel",
        "pictures",
        "bundled",
        "model",
        "__init__",
    },
    {"quiet", "draws"},
    {"episodes", "plugins", "yamlfile", "metrics"},
    {"scaffold", "nesting", "patient_pool"},
    {"protocols", "records"},
    {"briefs", "explain"},
    {"shelf"},
    {
        "config",
        "jobs",
        "stats",
        "measure",
        "contention",
        "allocations",
        "energy",
        "opened",
        "modalities",
        "distributed",
    },
    {"crew", "calibration"},
    {"pools"},
    {"personalised"},
    {"settings"},
    {"tasks"},
    {"weights", "embed"},
    {"truth"},
    {"ingredients"},
    {"plan", "backbones", "source", "validation"},
    {"training", "bench", "faults"},
    {"answers", "source_classes"},
    {"lanes", "leaderboard", "training_job", "gate"},
    {"worker"},
    {"engine"},
    {"conformance", "rerun", "pytest_cells"},
    {"pytest_plugin"},
    {"cli"},
    {"__main__"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def modules():
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medbench"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("medbench.")}
    return {f for f in found if f in RANK}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    if room(path) == "api":
        # What plugins need and needs torch is handed on lazily.
        assert imports(path) <= {"api", "errors", "network", "folding"}
        return
    for other in imports(path):
        assert RANK[other] <= RANK[room(path)], f"{room(path)} imports {other}"


def test_every_module_has_a_room():
    assert {room(p) for p in modules()} == set(RANK)


def test_only_the_facade_knows_pluggy():
    users = {
        room(p)
        for p in modules()
        if re.search(r"^(import|from) pluggy", p.read_text(), re.MULTILINE)
    }
    # api and hookspecs hold pluggy's markers, which are what they are for.
    assert users == {"plugins", "api", "hookspecs"}


def test_what_comes_with_an_extra_is_imported_by_its_engine_alone():
    homes = {
        "ray": {"engine/ray.py"},
        "submitit": {"engine/queues.py", "engine/slurm.py"},
        "fsspec": {"engine/store.py"},
        "zeus": {"energy.py"},
    }
    for library, home in homes.items():
        pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
        users = {str(p.relative_to(ROOT)) for p in modules() if pattern.search(p.read_text())}
        assert users == home


def test_nothing_is_pickled_printed_or_run_from_text():
    for path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert "pickle" not in names
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "eval", "exec"), f"{path}:{node.lineno}"


def test_every_public_name_says_what_it_is_for():
    for path in modules():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                decorators = {ast.unparse(d) for d in node.decorator_list}
                assert ast.get_docstring(node) or "overload" in decorators, f"{path}: {node.name}"


_HEAVY = ("torch", "pandas", "scipy", "pydantic")
SITES = str(ROOT.parent / "leaderboards" / "sites")


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], [*_HEAVY, "numpy", "yaml", "pluggy", "importlib.metadata"]),
        (["run", "--help"], [*_HEAVY, "numpy", "yaml", "pluggy", "rich", "ray", "submitit"]),
        (["list"], [*_HEAVY, "numpy", "rich", "pyarrow"]),
        (["info", "maml"], [*_HEAVY, "numpy", "yaml", "pyarrow"]),
        (["leaderboard", "--help"], [*_HEAVY, "numpy", "pluggy", "pyarrow"]),
        (["explain", "--help"], [*_HEAVY, "numpy", "pluggy", "pyarrow"]),
        (["check", "--help"], [*_HEAVY, "numpy", "yaml", "pyarrow"]),
        (["new", "--help"], [*_HEAVY, "numpy", "yaml", "pyarrow"]),
        (["leaderboard", SITES], [*_HEAVY, "medbench.plugins", "yaml", "jinja2"]),
        (["leaderboard", SITES, "--format", "html"], [*_HEAVY, "medbench.plugins"]),
    ],
    ids=[
        "help",
        "run-help",
        "list",
        "info",
        "leaderboard-help",
        "explain-help",
        "check-help",
        "new-help",
        "leaderboard",
        "page",
    ],
)
def test_a_command_loads_no_more_than_it_needs(arguments, without):
    code = (
        "import sys\n"
        "from medbench.cli import main\n"
        "try: main(sys.argv[2:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "found = [m for m in sys.argv[1].split() if m in sys.modules]\n"
        "assert not found, found\n"
    )
    command = [sys.executable, "-c", code, " ".join(without), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MEDBENCH_PLUGINS": ""},
    )
    assert done.returncode == 0, done.stderr


def test_every_metric_has_a_name_in_tables():
    from medbench.metrics import ALL_METRICS

    assert tuple(METRICS) == ALL_METRICS


def test_scores_need_neither_torch_nor_a_library_of_boxes_before_boxes_are_scored():
    code = (
        "import sys, medbench.metrics;"
        "print([m for m in ('torch', 'monai', 'pycocotools') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cell_of_classification_loads_nothing_that_only_other_work_needs(tmp_path):
    """Each would cost every run between half a second and two."""
    code = (
        "import sys, numpy as np, medbench.engine.preload\n"
        "from pathlib import Path\n"
        "from medbench.metrics import classification\n"
        "from medbench.records import write_record\n"
        "found = classification(np.eye(3)[None], np.array([[0, 1, 2]]))\n"
        "write_record(Path(sys.argv[1]), {}, found)\n"
        "print([m for m in ('pandas', 'scipy', 'sklearn', 'timm', 'monai') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
