"""A board as one HTML file that needs nothing else: no network, no other file, no framework.

What stands in a record is strangers' text. It reaches the page in two ways: through Jinja2, which
escapes it, and as JSON in a block that is no script, in which ``<``, ``>`` and ``&`` are written
as escapes. The page's own script only ever sets the text of elements. Should all of that fail, the
page's security policy lets no script run but that one, known by its hash, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from medbench.leaderboard.model import Board
from medbench.leaderboard.page_rows import page_data
from medbench.shelf import find_briefs
from medbench.yamlfile import Document

# The suite in the folder of a run or a board.
SUITE = "suite.yaml"
_TEMPLATES = Path(__file__).with_name("templates")
STYLES = ("page.css",)
SCRIPTS = ("data.js", "make.js", "rows.js", "table.js", "plots.js", "critical.js",
           "budget.js", "compare.js", "details.js", "start.js")  # fmt: skip
# Only in a page that has something for it, so that others stay what they are.
_GAINS, _PICTURES, _AFTER = "gains.js", "pictures.js", "table.js"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028",
            "\u2029": "\\u2029"}  # fmt: skip


def page_text(board: Board, folders: Sequence[Path], *, pictures: bool = True) -> str:
    """The page of a board made of the records in `folders`: the same bytes from the same records.

    Commands that it shows are for a shell in the one folder, or where the records' files are.
    Without `pictures` it shows no query images.
    """
    briefs, shelves = find_briefs(folders)
    for shelf in shelves:
        shelf.save()
    own = folders[0] if len(folders) == 1 else None
    inside = own is not None and (own.name == "records" or (own / "records").is_dir())
    data = page_data(board, briefs, "records/" if inside else "", pictures=pictures)
    return render_page(data, *named(folders))


def named(folders: Sequence[Path]) -> tuple[str, str]:
    """What the suites of some folders are called, and what one alone says of itself.

    A run's folder and a board's hold their suite; where there is none, both are empty. It is the
    suite and not the folder that names a page, so that a copy of a board has the same bytes.
    Raises `ConfigError` for a suite that is no YAML.
    """
    found: dict[str, str] = {}
    for folder in folders:
        here = folder.resolve()
        path = (here.parent if here.name == "records" else here) / SUITE
        if path.is_file():
            values = Document.read(path).value
            found.setdefault(str(values.get("name") or ""), str(values.get("summary") or ""))
    found.pop("", None)
    return ", ".join(found), next(iter(found.values())) if len(found) == 1 else ""


def render_page(data: dict[str, Any], name: str = "", summary: str = "") -> str:
    """The page that shows what `medbench.leaderboard.page_rows.page_data` gave.

    `name` and `summary` are those of `named`.
    """
    style = "\n".join(_read(name) for name in STYLES)
    scripts = list(SCRIPTS)
    if "references" in data:
        scripts.insert(scripts.index(_AFTER) + 1, _GAINS)
    if "pictures" in data:
        scripts.insert(scripts.index(_AFTER) + 1, _PICTURES)
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read, scripts)) + "})();\n"
    protocols = list(dict.fromkeys(t["protocol"] for t in data["tables"]))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=f"{name or ', '.join(protocols)}: medbench leaderboard",
        name=name,
        summary=summary,
        protocols=protocols,
        n_records=data["n_records"],
        metric=data["metric"],
        pictures="pictures" in data,
        style=Markup(style),  # noqa: S704 (our own file)
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(_json(data)),  # noqa: S704 (escaped below)
    )


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the block it stands in; a table a line, for `diff`."""
    rest = {k: v for k, v in data.items() if k != "tables"}
    lines = [f"{_compact(k)}:{_compact(v)}" for k, v in rest.items()]
    tables = ",\n".join(_compact(t) for t in data["tables"])
    text = "{" + ",\n".join([*lines, f'"tables":[\n{tables}\n]']) + "}"
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _compact(value: Any) -> str:
    # What is not ASCII is escaped too: no character can hide in the file.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
