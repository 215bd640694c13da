"""The exception tree: one class for each thing a reader does differently about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FAILURES = ("crash", "oom", "timeout", "non_finite", "contract", "unavailable")
"""How a cell may fail: the statuses of records that are not ``ok``."""


class MedbenchError(Exception):
    """Any error medbench raises on purpose; its text is one complete message for a person."""

    exit_code = 2


class UsageError(MedbenchError):
    """A wrong name, option or value on the command line or in a call."""


class ConfigError(MedbenchError):
    """A suite or protocol file that cannot be used; the text names file and line."""


class DataError(MedbenchError):
    """Data that are there and wrong: truncated, altered, out of range, not an image."""


class DataMissing(DataError):
    """Data that are not there; the text says where they were looked for and how to get them."""


class ProtocolError(MedbenchError):
    """A protocol that the data cannot serve: too few classes, too few images, no such site."""


class ContractError(MedbenchError):
    """A plugin broke a promise of the interface: shapes, changed inputs, unequal lanes."""


class NonFinite(MedbenchError):
    """A loss or score that is NaN or infinite."""


class Unavailable(MedbenchError):
    """Something this machine lacks: a device, a network, an optional dependency."""


class PluginError(MedbenchError):
    """A plugin that cannot be loaded; the text names distribution, version and cause."""


class OutputError(MedbenchError):
    """An output folder that cannot be written, is locked by another run, or is full."""


def nearest(word: str, valid: Iterable[str], limit: int = 3) -> list[str]:
    """Valid words that look like `word`, best first; empty when nothing comes near.

    >>> nearest("protnet", ["protonet", "maml"])
    ['protonet']
    """
    pool = sorted(set(valid))
    near = difflib.get_close_matches(word.lower(), pool, n=limit, cutoff=0.6)
    if near:
        return near
    inside = [v for v in pool if word and (word.lower() in v.lower() or v.lower() in word.lower())]
    return inside[:limit]


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The tail of an error about an unknown `word`: near matches, or all valid words when few."""
    pool = sorted(set(valid))
    near = nearest(word, pool)
    if near:
        return f" Did you mean {' or '.join(repr(n) for n in near)}?"
    if not pool:
        return " There are none."
    if len(pool) <= 12:
        return f" Valid: {', '.join(pool)}."
    return f" There are {len(pool)} valid ones, such as {', '.join(pool[:5])}."
