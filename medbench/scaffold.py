"""New plugin distributions, from the templates inside the package."""

from __future__ import annotations

import importlib.util
import keyword
import re
import string
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from medbench import __version__
from medbench.errors import OutputError, UsageError
from medbench.files import atomic
from medbench.plugins import Registry

Kind = Literal["algorithm", "backbone", "dataset", "protocol"]
KINDS: tuple[Kind, ...] = ("algorithm", "backbone", "dataset", "protocol")
# Other beginnings of a kind: files of the folder KIND-VARIANT take the place of those of KIND.
VARIANTS: dict[Kind, tuple[str, ...]] = {
    "algorithm": ("meta-train", "masks"),
    "dataset": ("masks",),
}
_WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 60
_SUMMARIES: dict[str, str] = {
    "algorithm": "A nearest-mean classifier",
    "algorithm-meta-train": "A nearest-mean classifier with a training of its own",
    "algorithm-masks": "Nearest-mean segmentation",
    "dataset-masks": "A data set of two hospitals with masks",
    "backbone": "A small convolutional network",
    "dataset": "A data set of two hospitals",
    "protocol": "A rule of comparison",
}
_NEXT: dict[Kind, str] = {
    "algorithm": "The spec is in `src/@@package/__init__.py`, the method in `algorithm.py`. Change "
    "both, then say in the spec what is yours: summary, citation, licence, traits.",
    "backbone": "The spec is in `src/@@package/__init__.py`, the network in `backbone.py`. Change "
    "both, then say in the spec what is yours: summary, citation, licence, pretrained_on.",
    "dataset": "The specs are in `src/@@package/__init__.py`, the images in `dataset.py`, the "
    "rules of comparison in `sites.yaml`. Change them, then say in the spec what is yours: "
    "summary, modality, domain, citation, licence.",
    "protocol": "The rules are in `src/@@package/rules.yaml`; the spec in `__init__.py` names "
    "them. medbench's documentation has all their keys (protocols) and the way from own images to "
    "a table (how-to: own data).",
}
_RUN: dict[str, str] = {
    "algorithm": "medbench run quickstart --set 'algorithms=[@@name, protonet]'",
    "algorithm-masks": "medbench run segmentation --set 'algorithms=[@@name, nearest-places]'",
    "dataset-masks": "medbench run segmentation --set 'protocols=[@@name-sites]'",
    "backbone": "medbench run quickstart --set 'backbones=[@@name]'",
    "dataset": "medbench run quickstart --set 'protocols=[@@name-sites]'",
    "protocol": "medbench run quickstart --set 'protocols=[@@name]'",
}


class _Template(string.Template):
    # A dollar sign means something in workflows and shells.
    delimiter = "@@"


def scaffold(
    kind: Kind,
    name: str,
    registry: Registry,
    folder: Path | None = None,
    variant: str | None = None,
) -> list[Path]:
    """Write the distribution of a new plugin called `name` and return its files.

    `name` is ``PREFIX/NAME``; the folder (default: ``PREFIX-NAME`` here) must not exist. `variant`
    is one of `VARIANTS`. Raises `UsageError` for a name that cannot be used, `OutputError` when
    nothing can be written.
    """
    template = _template(kind, variant)
    distribution = _distribution(kind, name, registry)
    folder = Path(distribution) if folder is None else folder
    if folder.exists() or folder.is_symlink():
        raise UsageError(
            f"{folder} is already there, and is left as it is. Name another folder with --out."
        )
    values = _values(kind, template, name, distribution)
    written = []
    for target, source in _files(kind, template, values["package"]).items():
        path = folder / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                text = _Template(source.read_text(encoding="utf-8")).substitute(values)
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}.") from error
        written.append(path)
    return written


def run_line(kind: Kind, name: str, variant: str | None = None) -> str:
    """The command that measures a new plugin in a suite that needs no data."""
    return _run_line(kind, _template(kind, variant), name)


def _run_line(kind: Kind, template: str, name: str) -> str:
    return _Template(_RUN.get(template, _RUN[kind])).substitute(name=name)


def _template(kind: Kind, variant: str | None) -> str:
    """The folder of templates with what is special. Raises `UsageError` where there is none."""
    if variant is None:
        return kind
    known = VARIANTS.get(kind, ())
    if variant not in known:
        there = f"--with {' or --with '.join(known)}" if known else "no --with"
        raise UsageError(f"'medbench new {kind}' takes {there}, and not --with {variant}.")
    return f"{kind}-{variant}"


def _values(kind: Kind, template: str, name: str, distribution: str) -> dict[str, str]:
    package = distribution.replace("-", "_")
    words = name.partition("/")[2].split("-")
    values = {
        "name": name,
        "distribution": distribution,
        "package": package,
        "class_name": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
        "summary": _SUMMARIES[template],
        "year": str(datetime.now(UTC).year),
        "medbench_version": __version__,
    }
    names = [name, f"{name}-sites"] if kind == "dataset" else [name]
    values["names_quoted"] = ", ".join(f'"{n}"' for n in names)
    values["run_short"] = f"medbench check {' '.join(names)}"
    values["run"] = _run_line(kind, template, name)
    values["suite"] = values["run"].split()[2]
    values["next"] = _Template(_NEXT[kind]).substitute(values)
    return values


def _files(kind: Kind, template: str, package: str) -> dict[Path, Path]:
    """Where each file goes below the new folder, and the template it is made from."""
    found = {}
    for part in dict.fromkeys(("common", kind, template)):
        root = Path(__file__).with_name("templates") / part
        for source in sorted(root.rglob("*.tmpl")):
            parts = [
                re.sub("^dot_", ".", p).replace("PACKAGE", package)
                for p in source.relative_to(root).parts
            ]
            found[Path(*parts).with_name(parts[-1].removesuffix(".tmpl"))] = source
    return found


def _distribution(kind: Kind, name: str, registry: Registry) -> str:
    """The distribution's name for a plugin's, when all names that follow can be used."""
    prefix, slash, rest = name.partition("/")
    if not slash:
        raise UsageError(
            f"NAME {name!r} has no prefix: write your group's or your own before a slash, such as "
            f"'acme/{_suggestion(name)}', so that no two plugins have one name."
        )
    for word in (prefix, rest):
        if not _WORD.fullmatch(word):
            suggested = f"{_suggestion(prefix)}/{_suggestion(rest)}"
            raise UsageError(
                f"NAME {name!r}: a name is of small letters, digits and single dashes, and begins "
                f"with a letter, such as {suggested!r}."
            )
    if len(name) > _LONGEST:
        raise UsageError(f"NAME {name!r} has {len(name)} characters; {_LONGEST} is the most.")
    if name in registry.entries[f"{kind}s"]:
        origin = registry.entries[f"{kind}s"][name].origin()
        raise UsageError(f"The name {name!r} is taken: by the {kind} of {origin}. Choose another.")
    distribution = f"{prefix}-{rest}"
    package = distribution.replace("-", "_")
    class_name = "".join(word.capitalize() for word in rest.split("-"))
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise UsageError(f"NAME {name!r} makes a package {package!r}, which Python has already.")
    if keyword.iskeyword(class_name) or class_name in _TAKEN:
        raise UsageError(
            f"NAME {name!r} makes a class {class_name!r}, which the code beside it imports; "
            "choose another name."
        )
    if importlib.util.find_spec(package) is not None:
        raise UsageError(
            f"NAME {name!r} makes a package {package!r}, and one of that name is installed."
        )
    return distribution


_TAKEN = ("Algorithm", "Predictor", "Means", "Backbone", "InputSpec", "Dataset", "DatasetInfo")


def _suggestion(word: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-0123456789") or "mine"
