"""What the tabulator key offers where a command takes a name."""

from __future__ import annotations

from collections.abc import Iterable

from click import Context, Parameter
from click.shell_completion import CompletionItem


def plugin_names(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Registered plugins of every kind; of a family its own name, as members are endless."""
    from medbench.plugins import registry

    tables = registry().entries.values()
    return _offered((name for table in tables for name in table), begun)


def suites(context: Context, parameter: Parameter, begun: str) -> list[CompletionItem]:
    """Bundled suites, and files."""
    from medbench.bundled import bundled_suites

    return [*_offered(bundled_suites(), begun), CompletionItem(begun, type="file")]


def plugin_names_and_suites(
    context: Context, parameter: Parameter, begun: str
) -> list[CompletionItem]:
    """All that ``medbench info`` knows."""
    return [*plugin_names(context, parameter, begun), *suites(context, parameter, begun)[:-1]]


def _offered(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(begun)]
