"""``medbench list``, ``info`` and ``plugins``: what there is, from the specs alone."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import Any

import click

from medbench.cli.catalogue import FAMILIES, catalogue
from medbench.cli.complete import plugin_names_and_suites
from medbench.errors import UsageError, did_you_mean
from medbench.plugins import KINDS, Entry, registry

_KINDS = (*KINDS, "suites")


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the page of methods (KIND algorithms only).")
def list_command(kind: str | None, as_json: bool, markdown: bool) -> None:
    """List what is registered, of one KIND or of every kind."""
    if markdown:
        if kind != "algorithms":
            raise UsageError("--markdown prints the page of methods: medbench list algorithms.")
        entries = registry().entries["algorithms"].values()
        click.echo(catalogue(e.spec for e in entries), nl=False)
        return
    found = {k: _rows(k) for k in ([kind] if kind else _KINDS)}
    if as_json:
        click.echo(json.dumps(found[kind] if kind else found, indent=1, default=str))
        return
    for k, rows in found.items():
        if not kind:
            click.echo(f"{k}:")
        width = max((len(_shown_name(r)) for r in rows), default=0)
        families = [f for f in FAMILIES if any(r.get("family") == f for r in rows)]
        rows.sort(key=lambda r: families.index(r["family"]) if "family" in r else 0)
        shown = None
        for row in rows:
            if row.get("family") != shown:
                shown = row["family"]
                click.echo(f"  {FAMILIES[shown]}:")
            extra = f"  [{', '.join(row['marks'])}]" if row.get("marks") else ""
            indent = "    " if shown else "  "
            click.echo(f"{indent}{_shown_name(row):<{width}}  {row['summary']}{extra}")
        if not kind:
            click.echo()
    faults = registry().faults
    if faults:
        click.echo(f"{len(faults)} plugin(s) left out: see 'medbench plugins'.", err=True)


def _shown_name(row: dict[str, Any]) -> str:
    argument = row.get("takes_argument")
    return f"{row['name']}:{argument}" if argument else str(row["name"])


def _rows(kind: str) -> list[dict[str, Any]]:
    if kind == "suites":
        return _suites()
    return [_row(entry) for entry in registry().entries[kind].values()]


def _suites() -> list[dict[str, Any]]:
    from medbench.bundled import bundled_suites
    from medbench.yamlfile import Document

    return [
        {"name": name, "summary": Document(text, name).value.get("summary", "")}
        for name, text in bundled_suites().items()
    ]


def _row(entry: Entry) -> dict[str, Any]:
    spec = entry.spec
    marks = []
    if entry.plugin.distribution != "medbench":
        marks.append(f"from {entry.plugin.distribution}")
    if getattr(spec, "non_commercial", False):
        marks.append("non-commercial")
    if entry.kind == "algorithms":
        if spec.traits.transductive is True:
            marks.append("transductive")
        elif spec.traits.transductive:
            (name, values), *_ = spec.traits.transductive.items()
            marks.append(f"transductive with {name}={'|'.join(map(str, values))}")
    return {
        "name": spec.name,
        "version": spec.version,
        "summary": spec.summary,
        "takes_argument": getattr(spec, "takes_argument", ""),
        "distribution": entry.plugin.distribution,
        "marks": marks,
        **({"family": spec.family} if entry.kind == "algorithms" else {}),
    }


@click.command("info")
@click.argument("name", shell_complete=plugin_names_and_suites)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(name: str, as_json: bool) -> None:
    """Show all about NAME: a dataset, backbone, algorithm, protocol or suite.

    \b
    Examples:
      medbench info protonet
      medbench info medmnist/retina
      medbench info timm:resnet18
    """
    from medbench.bundled import bundled_suites

    entries = registry().find(name)
    suites = bundled_suites()
    if not entries and name not in suites:
        known = [n for table in registry().entries.values() for n in table] + list(suites)
        hint = did_you_mean(name, known) + registry().left_out()
        raise UsageError(f"There is nothing called {name!r}.{hint}")
    if as_json:
        found = [_full(e) for e in entries]
        if name in suites:
            found.append({"kind": "suite", "name": name, "yaml": suites[name]})
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=1, default=str))
        return
    for entry in entries:
        click.echo(_describe(entry))
    if name in suites:
        click.echo(f"suite {name}\n\n{textwrap.indent(suites[name].strip(), '  ')}\n")
        click.echo(f"Run it with 'medbench run {name}'.")


def _full(entry: Entry) -> dict[str, Any]:
    data = {"kind": entry.kind[:-1], **dataclasses.asdict(entry.spec)}
    data["distribution"] = entry.plugin.distribution
    data["distribution_version"] = entry.plugin.version
    if entry.kind == "protocols":
        data["rules"] = _protocol_rules(entry)
    return data


def _protocol_rules(entry: Entry) -> dict[str, Any]:
    from medbench.protocols import load_protocol

    return load_protocol(registry(), entry.name)[0].model_dump(mode="json")


def _describe(entry: Entry) -> str:
    spec = entry.spec
    lines = [f"{entry.kind[:-1]} {spec.name}, version {spec.version} ({entry.origin()})", ""]
    lines += [f"  {spec.summary}", ""]
    if entry.kind == "protocols":
        import yaml

        rules = {k: v for k, v in _protocol_rules(entry).items() if v is not None}
        text = yaml.safe_dump(rules, sort_keys=False, width=90)
        return "\n".join([*lines, textwrap.indent(text, "  ")])
    facts: dict[str, Any] = {}
    for key in (
        "family",
        "modality",
        "domain",
        "task_kind",
        "n_classes",
        "n_dims",
        "pretrained_on",
    ):
        value = getattr(spec, key, None)
        if value not in (None, ""):
            facts[key.replace("_", " ")] = value
    if getattr(spec, "takes_argument", ""):
        facts["written as"] = f"{spec.name}:{spec.takes_argument}"
    if entry.kind == "algorithms":
        traits = spec.traits
        facts["works on"] = traits.works_on
        facts["task kinds"] = ", ".join(traits.task_kinds)
        if len(traits.n_dims) == 1:
            facts["task kinds"] += f", of {'images' if 2 in traits.n_dims else 'volumes'} only"
        facts["adapts"] = traits.adapts
        facts["meta-trains"] = "yes" if traits.meta_trains else "no"
        if traits.parallel:
            facts["meta-trains"] += ", and processes can share it (run --training-processes)"
        facts["transductive"] = (
            " or ".join(
                f"when {k} is {' or '.join(map(str, v))}" for k, v in traits.transductive.items()
            )
            if not isinstance(traits.transductive, bool)
            else ("yes" if traits.transductive else "no, each query is predicted alone")
        )
    facts["licence"] = spec.licence
    c = spec.citation
    facts["citation"] = f"{c.authors}. {c.title}. {c.venue} {c.year}.{' ' + c.url if c.url else ''}"
    width = max(len(k) for k in facts)
    for key, value in facts.items():
        wrapped = textwrap.wrap(str(value), 96 - width) or [""]
        lines.append(f"  {key:<{width}}  {wrapped[0]}")
        lines += [" " * (width + 4) + w for w in wrapped[1:]]
    if spec.parameters:
        lines += ["", "  parameters:"]
        wide = max(len(p.name) for p in spec.parameters)
        for p in spec.parameters:
            default = (
                "null"
                if p.default is None
                else str(p.default).lower()
                if isinstance(p.default, bool)
                else p.default
            )
            head = f"    {p.name:<{wide}}  {p.type} = {default}"
            if p.choices:
                head += f" ({' | '.join(map(str, p.choices))})"
            lines.append(head)
            lines += [" " * (wide + 6) + w for w in textwrap.wrap(p.help, 92 - wide)]
    return "\n".join([*lines, ""])


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with tracebacks of faults.")
def plugins_command(as_json: bool) -> None:
    """List plugin distributions, their hooks and load times, and why one was left out.

    MEDBENCH_PLUGINS chooses which distributions load: names with commas between, or an empty text
    for the bundled plugins alone.
    """
    found = registry()
    if as_json:
        data = {
            "plugins": [dataclasses.asdict(p) for p in found.plugins],
            "faults": [dataclasses.asdict(f) for f in found.faults],
        }
        click.echo(json.dumps(data, indent=1))
        return
    for plugin in found.plugins:
        click.echo(
            f"{plugin.distribution} {plugin.version}: {plugin.entry_point} "
            f"({1000 * plugin.load_s:.0f} ms): {', '.join(plugin.hooks)}"
        )
    for fault in found.faults:
        click.secho(f"LEFT OUT  {fault}", fg="red")
    if found.faults:
        click.echo("'medbench plugins --json' shows the tracebacks.")
