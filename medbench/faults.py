"""Exceptions as a record tells them: a status, and one line."""

from __future__ import annotations

import torch

from medbench.errors import (
    ContractError,
    DataError,
    MedbenchError,
    NonFinite,
    PluginError,
    Unavailable,
    UsageError,
)


def status_of(error: BaseException) -> str:
    """The record's status for an exception."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    ):
        return "oom"
    if isinstance(error, NonFinite):
        return "non_finite"
    if isinstance(error, ContractError):
        return "contract"
    if isinstance(error, Unavailable | DataError | UsageError | PluginError):
        return "unavailable"
    return "crash"


def describe(error: BaseException) -> str:
    """One line about an exception."""
    if isinstance(error, MedbenchError):
        return str(error)
    return f"{type(error).__name__}: {error}"
