"""The reference, generated from the code: hooks, specs, commands, suite keys, records, checks.

``python docs/reference_pages.py`` writes the pages below ``docs/reference``; so does every build.
What a person has to write (what a key means) stands here in tables, and a key without words is an
error: whoever adds one documents it.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from medbench import api, hookspecs, network
from medbench.cli import cli
from medbench.config import AlgorithmRef, BackboneRef, BudgetRef, ProtocolRef, Suite
from medbench.conformance.suite import SHELVES
from medbench.plugins import KINDS, load
from medbench.records import STATUSES

# --- words that the code does not hold -----------------------------------------------------------

SUITE_KEYS: dict[type[Any], dict[str, str]] = {
    Suite: {
        "name": "of letters, digits, `.`, `_` and `-`; the output folder is `runs/NAME`",
        "summary": "one line for `medbench list suites`",
        "protocols": "a list of names, or of mappings as below",
        "backbones": "a list of names, or of mappings as below",
        "algorithms": "a list of names, or of mappings as below",
        "seeds": "a list of whole numbers from 0; every combination runs once for each",
        "budget": "how much any meta-training may look at; without it the protocol's",
        "non_commercial": "`true` lets data in whose licence forbids commercial use",
        "cell_timeout_s": "seconds after which a cell is stopped and recorded as `timeout`",
        "training_timeout_s": "the same for a meta-training; its checkpoint stays",
    },
    ProtocolRef: {
        "name": "a registered protocol",
        "episodes": "fewer episodes than the protocol's (a prefix of the same list)",
        "cost_episodes": "fewer episodes of the cost lane",
        "shots": "some of the protocol's shots",
        "targets": "some of its targets: data sets, or sites; `NAME[INPUTS]` for one of several "
        "inputs",
    },
    BackboneRef: {
        "name": "a registered backbone, or `FAMILY:MEMBER`",
        "label": "the name tables print; needed when one backbone stands there twice",
        "params": "parameters of its spec",
        "weights": "`random`, `pretrained`, or the path of a `.safetensors` or `.pth` file",
    },
    AlgorithmRef: {
        "name": "a registered algorithm",
        "label": "the name tables print; needed when one algorithm stands there twice",
        "params": "parameters of its spec; those not named keep their defaults",
        "budget": "a budget of its own",
    },
    BudgetRef: {
        "episodes": "in episodes of the protocol's training shape",
        "images": "in images, each counted every time it is seen",
    },
}
_SUITE_TITLES = {
    Suite: "A suite",
    ProtocolRef: "An entry of `protocols`",
    BackboneRef: "An entry of `backbones`",
    AlgorithmRef: "An entry of `algorithms`",
    BudgetRef: "A budget: one of the two",
}

RECORD_KEYS: dict[str, str] = {
    "schema": "version of this layout; every version up to the newest can be read",
    "key": "content key: a hash over `ingredients`",
    "status": "`ok`, or why the cell was not measured",
    "created": "when it was written, in UTC",
    "cell": "which cell it is: protocol and version, target, data set, site, way, shot, backbone, "
    "algorithm, their labels, weights, seed, sources and budget; `inputs` where a protocol has "
    "several",
    "request": "what the worker was asked for, enough to run the cell again",
    "ingredients": "everything the result depends on: plugin versions and source digests, "
    "parameters, digests of data, episodes and weights, seed, device",
    "training_key": "content key of the meta-training it used, or null",
    "scores_file": "the Parquet file beside it: a column for each metric, a row for each episode",
    "scores_digest": "BLAKE2b of that file",
    "picture": "where answers are masks or boxes: `file` and `digest` of a WebP file with a few "
    "query images, what is true in them and what was predicted; the file may be left behind when "
    "records are passed on",
    "groups": "where answers are classes or labels: `file` and `digest` of a second Parquet file, "
    "with the `answers` to the queries of every `group` and how many are `right`, and its `kind`: "
    "`patient` where the data tell patients (here numbers of no meaning), else `image`",
    "n_episodes": "episodes of the accuracy lane",
    "summary": "mean of each metric over episodes; null where no episode has it",
    "costs": "what the cost lane measured: see below",
    "training": "seconds, steps, images, validation accuracy and curve of the meta-training, or "
    "null",
    "traits": "what the algorithm claims of itself, with these parameters",
    "overlap": "what the model may have seen of the target's domain before, in words",
    "licences": "of the target and of every source",
    "inputs": "where images have several modalities: those shown, and the share of support and "
    "query images that lacked each (`missing_of_support`, `missing_of_query`)",
    "backbone": "parameters, bytes, features, input size and origin of the network",
    "hardware": "class, processor, device and threads of the machine",
    "versions": "of medbench, Python, torch and other libraries",
    "earlier_tries": "tries that a kill or a lack of memory ended, before this one",
    "stage": "of a cell that failed: where",
    "error": "of a cell that failed: what was said",
    "log_tail": "of a cell that failed: the last lines it printed",
}

COST_KEYS: dict[str, str] = {
    "n_episodes": "timed episodes, after the warm-up",
    "warm_up_episodes": "episodes run before, and not timed",
    "times": "seconds of each stage, and of adaptation (`adaptation_s`) and prediction "
    "(`prediction_s`) as a whole: `median`, `p95`, `iqr`, `mean`, `min`",
    "episodes": "seconds of each stage in every timed episode, and where the system tells it the "
    "waiting for a core in them; what two runs are compared by",
    "calibration": "what a fixed piece of work took on this machine meanwhile",
    "memory": "peaks in bytes, of the host, the device and of tensors; null where not measured",
    "energy": "joules of one episode on a GPU (`episode_j`; needs the extra `energy`), over how "
    "many episodes and seconds, by which counter; or null, and `not_measured_because`",
    "parameters_adapted": "how many numbers adaptation sets",
    "network": "the form in which the backbone ran",
    "load_average": "of the machine, over a minute",
    "exclusive": "whether the run's other jobs on the device paused meanwhile",
    "not_exclusive_because": "what kept them from it, or null",
    "lanes_agree": "share of equal predictions of the two lanes",
    "lanes_agree_on_same_features": "the same, given the same features, where it had to be asked",
}

_PARTS = {
    "Algorithms": (api.Algorithm, api.Predictor, api.Support),
    "Meta-training": (api.Source, api.Task, api.TrainingRun, api.Budget),
    "Backbones": (network.Backbone, api.InputSpec),
    "Data sets": (
        api.Dataset,
        api.DatasetInfo,
        api.ClassSplit,
        api.Modality,
        api.Place,
        api.Boxes,
        api.Detections,
    ),
}
_SPECS = (
    api.AlgorithmSpec,
    api.Traits,
    api.BackboneSpec,
    api.DatasetSpec,
    api.ProtocolSpec,
    api.Parameter,
    api.Citation,
    api.Conformance,
    api.Excuse,
)


# --- pages ---------------------------------------------------------------------------------------


def hooks_page() -> str:
    """Every hook with its exact signature, and all that a plugin imports."""
    lines = [
        "# Hooks and the plugin interface",
        "",
        "Generated from `medbench/hookspecs.py` and `medbench/api/`. "
        "[Writing a plugin](../plugins.md) tells how the pieces go together.",
        "",
        "## Hooks",
        "",
        _text(hookspecs),
    ]
    for name, hook in hooks().items():
        lines += ["", f"### `{name}`", "", _code(signature(name, hook)), "", _text(hook)]
    lines += ["", "## Specs", "", "What hooks return: frozen descriptions, cheap to import."]
    for spec in _SPECS:
        lines += ["", f"### `{spec.__name__}`", "", _text(spec), "", *_fields(spec)]
    for title, parts in _PARTS.items():
        lines += ["", f"## {title}"]
        for part in parts:
            lines += ["", f"### `{part.__name__}`", "", _text(part), *_methods(part)]
    lines += ["", "## Errors", ""]
    errors = [v for n, v in sorted(vars(api).items()) if n in api.__all__ and _is_error(v)]
    lines += _table(("error", "meaning"), [(f"`{e.__name__}`", _first(e)) for e in errors])
    return "\n".join(lines) + "\n"


def hooks() -> dict[str, Any]:
    """The hooks of this version, by name."""
    return {n: v for n, v in vars(hookspecs).items() if n.startswith("medbench_")}


def signature(name: str, function: Any) -> str:
    """``def name(...) -> ...:`` as the code has it."""
    return f"def {name}{_short(str(inspect.signature(function)))}: ..."


def commands_page() -> str:
    """Every command with its help, as the terminal shows it."""
    lines = ["# Commands", "", "Generated from the commands' own `--help`.", ""]
    for path, command in commands():
        with click.Context(command, info_name=path, max_content_width=96) as context:
            context.help_option_names = ["-h", "--help"]
            lines += [f"## `{path}`", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and the words that call it, groups before their members."""
    yield "medbench", cli
    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            yield f"medbench {name}", command
            if isinstance(command, click.Group):
                for inner, member in command.commands.items():
                    yield f"medbench {name} {inner}", member


def suites_page() -> str:
    """Every key of a suite file."""
    lines = [
        "# Suite files",
        "",
        "YAML, read safely (no tags, no code). An unknown key, a wrong type or an unknown name is "
        "an error that names file and line. `--set KEY=VALUE` of `medbench run` changes any key: "
        "`--set seeds=[0,1]`, `--set algorithms.maml.params.inner_lr=0.1`.",
        "",
        "[Protocol files](../protocols.md) have keys of their own.",
    ]
    for model, words in SUITE_KEYS.items():
        rows = []
        for key, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{_plain(field.default)}`"
            rows.append((f"`{key}`", default, words[key]))
        lines += [
            "",
            f"## {_SUITE_TITLES[model]}",
            "",
            *_table(("key", "default", "meaning"), rows),
        ]
    return "\n".join(lines) + "\n"


def records_page() -> str:
    """The layout of a record."""
    rows = [(f"`{key}`", text) for key, text in RECORD_KEYS.items()]
    costs = [(f"`{key}`", text) for key, text in COST_KEYS.items()]
    return "\n".join(
        [
            "# Records",
            "",
            "A cell leaves one JSON file in `records/`, and a Parquet file of its scores if it was "
            "measured. `medbench explain FILE` says in words what one holds. Reading them needs "
            "neither torch nor a plugin.",
            "",
            *_table(("key", "holds"), rows),
            "",
            f"Statuses: {', '.join(f'`{s}`' for s in STATUSES)}.",
            "",
            "## Costs",
            "",
            "[Measurement](../measurement.md) tells how each is measured.",
            "",
            *_table(("key", "holds"), costs),
            "",
        ]
    )


def checks_page() -> str:
    """Every check of `medbench check`."""
    lines = [
        "# Checks of plugins",
        "",
        "What `medbench check` asks, from `medbench check --list`. [Check a plugin]"
        "(../howto/check-a-plugin.md) tells how to use them.",
    ]
    for kind, shelf in SHELVES.items():
        rows = [(f"`{c.id}`", c.reason, c.hint) for c in shelf]
        lines += ["", f"## {kind.capitalize()}", "", *_table(("check", "why", "usual mend"), rows)]
    return "\n".join(lines) + "\n"


def catalogue_page() -> str:
    """The bundled data sets, backbones and protocols, from their specs."""
    found = _bundled()
    lines = [
        "# Data sets, backbones and protocols",
        "",
        "Those that come with medbench; [Methods](../methods.md) has the algorithms. `medbench "
        "list` shows yours too.",
        "",
        "## Data sets",
        "",
    ]
    rows = []
    for spec in found["datasets"]:
        name = f"{spec.name}:{spec.takes_argument}" if spec.takes_argument else spec.name
        kind = spec.task_kind + (", ordered" if spec.ordinal else "")
        licence = spec.licence + (" (non-commercial)" if spec.non_commercial else "")
        rows.append((f"`{name}`", spec.summary, spec.modality, kind, licence, _paper(spec)))
    lines += _table(("data set", "what it is", "modality", "task", "licence", "source"), rows)
    lines += ["", "## Backbones", ""]
    rows = [
        (
            f"`{s.name}:{s.takes_argument}`" if s.takes_argument else f"`{s.name}`",
            s.summary,
            s.pretrained_on or "none",
            _paper(s),
        )
        for s in found["backbones"]
    ]
    lines += _table(("backbone", "what it is", "pretrained on", "source"), rows)
    lines += ["", "## Protocols", ""]
    rows = [(f"`{s.name}`", str(s.version), s.summary) for s in found["protocols"]]
    lines += _table(("protocol", "version", "rule"), rows)
    return "\n".join(lines) + "\n"


PAGES = {
    "hooks": hooks_page,
    "commands": commands_page,
    "suites": suites_page,
    "records": records_page,
    "checks": checks_page,
    "catalogue": catalogue_page,
}


def write(folder: Path) -> None:
    """Write every page below `folder`; a page that is as it was keeps its time of change."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        path, text = folder / f"{name}.md", page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# --- from code to Markdown -----------------------------------------------------------------------


def _bundled() -> Mapping[str, list[Any]]:
    from importlib.metadata import entry_points

    found = load(entry_points(group="medbench"), only="")
    return {kind: [e.spec for e in found.entries[kind].values()] for kind in KINDS}


def _fields(spec: type[Any]) -> list[str]:
    hints = {f.name: f.type for f in dataclasses.fields(spec)}
    rows = []
    for field in dataclasses.fields(spec):
        missing = dataclasses.MISSING
        if field.default is not missing:
            default = f"`{_plain(field.default)}`"
        else:
            default = "required" if field.default_factory is missing else "empty"
        rows.append((f"`{field.name}`", f"`{_short(str(hints[field.name]))}`", default))
    return _table(("field", "type", "default"), rows)


def _methods(part: type[Any]) -> list[str]:
    lines: list[str] = []
    if dataclasses.is_dataclass(part):
        lines += ["", *_fields(part)]
    for name, value in vars(part).items():
        function = value.fget if isinstance(value, property) else value
        own = inspect.isfunction(function) and function.__module__.startswith("medbench")
        if not own or (name.startswith("_") and name != "__len__"):
            continue
        if name in ("__init__", "__len__"):
            continue
        shown = _short(str(inspect.signature(function)))
        mark = "@property\n" if isinstance(value, property) else ""
        lines += ["", f"#### `{part.__name__}.{name}`", "", _code(f"{mark}def {name}{shown}: ...")]
        lines += ["", _text(function)]
    return lines


def _short(text: str) -> str:
    text = text.replace("'", "").replace("collections.abc.", "").replace("typing.", "")
    text = re.sub(r"\b(medbench\.api(?:\.\w+)?|medbench\.network|pathlib|torch\.utils)\.", "", text)
    return text.replace("ForwardRef", "")


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value) if value != "" else '""'


def _text(thing: Any) -> str:
    # Docstrings write code in double backticks or single ones; both are code in Markdown.
    return inspect.cleandoc(inspect.getdoc(thing) or "")


def _first(thing: Any) -> str:
    return _text(thing).split("\n\n")[0].replace("\n", " ")


def _code(text: str) -> str:
    return "```python\n" + "\n".join(textwrap.wrap(text, 96, subsequent_indent="    ")) + "\n```"


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _paper(spec: Any) -> str:
    c = spec.citation
    words = f"{c.authors.split(',')[0].split(' ')[-1]}, {c.venue} {c.year}"
    return f"[{words}]({c.url})" if c.url else words


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"

    return [line(head), line(("---",) * len(head)), *map(line, rows)]


if __name__ == "__main__":
    os.environ.setdefault("MEDBENCH_PLUGINS", "")
    write(Path(__file__).parent / "reference")
    sys.stdout.write(f"{len(PAGES)} pages\n")
