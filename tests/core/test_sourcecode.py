"""What counts as a plugin's source: its module, and what that imports from its own package."""

from __future__ import annotations

import sys

import pytest

from medbench import sourcecode


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Write a package `acme_code` from {file: text}, and give the digest of one of its modules."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(files: dict[str, str], module: str = "acme_code.one") -> str:
        for name, text in {"__init__.py": "", **files}.items():
            path = tmp_path / "acme_code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        sourcecode.source_digest.cache_clear()
        return sourcecode.source_digest(module)

    yield make
    for name in [m for m in sys.modules if m.startswith("acme_code")]:
        del sys.modules[name]


FILES = {
    "one.py": "from acme_code.deep import near\nfrom .level import *\nimport torch\n",
    "deep/__init__.py": "",
    "deep/near.py": "def f():\n    from acme_code import far\n",
    "level.py": "",
    "far.py": "",
    "other.py": "import acme_code.one\n",
}


def test_the_same_files_give_the_same_digest(digest):
    assert digest(FILES) == digest(FILES)


@pytest.mark.parametrize("name", ["one.py", "deep/near.py", "level.py", "far.py"])
def test_an_edit_of_the_module_or_of_what_it_imports_counts(digest, name):
    before = digest(FILES)
    assert digest({**FILES, name: FILES[name] + "# edited\n"}) != before


def test_an_edit_elsewhere_in_the_package_does_not_count(digest):
    before = digest(FILES)
    assert digest({**FILES, "other.py": "x = 1\n", "new.py": "y = 2\n"}) == before


@pytest.mark.parametrize("line", ["import importlib", "from pkgutil import walk_packages"])
def test_a_module_that_loads_code_by_name_takes_the_whole_package(digest, line):
    files = {**FILES, "far.py": line + "\n"}
    before = digest(files)
    assert digest({**files, "other.py": "x = 1\n"}) != before


def test_calling_eval_takes_the_whole_package_and_a_method_of_that_name_does_not(digest):
    for text, whole in (("eval('1')\n", True), ("model.eval()\n", False)):
        files = {**FILES, "far.py": text}
        before = digest(files)
        assert (digest({**files, "other.py": f"x = {whole}\n"}) != before) == whole


def test_what_cannot_be_parsed_takes_the_whole_package(digest):
    files = {**FILES, "far.py": "def (:\n"}
    before = digest(files)
    assert digest({**files, "other.py": "x = 1\n"}) != before


def test_the_name_of_a_file_counts_as_well_as_its_text(digest):
    before = digest({"one.py": "from . import a\n", "a.py": "x = 1\n"})
    assert digest({"one.py": "from . import a\n", "a.py": "", "b.py": "x = 1\n"}) != before
