"""The hooks. Each is called once when medbench starts, but for ``medbench_on_record``.

An implementation is a module-level function of the same name, decorated with
``medbench.api.hookimpl``. It must be quick and import nothing heavy: return specs, and let their
factories be loaded later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from medbench.api import AlgorithmSpec, BackboneSpec, DatasetSpec, ProtocolSpec

hookspec = pluggy.HookspecMarker("medbench")


@hookspec
def medbench_datasets() -> Sequence[DatasetSpec]:  # type: ignore[empty-body]
    """The datasets this plugin brings."""


@hookspec
def medbench_backbones() -> Sequence[BackboneSpec]:  # type: ignore[empty-body]
    """The backbones this plugin brings."""


@hookspec
def medbench_algorithms() -> Sequence[AlgorithmSpec]:  # type: ignore[empty-body]
    """The algorithms this plugin brings."""


@hookspec
def medbench_protocols() -> Sequence[ProtocolSpec]:  # type: ignore[empty-body]
    """The protocols this plugin brings, as YAML files inside its package."""


@hookspec
def medbench_on_record(record: Mapping[str, Any]) -> None:
    """Called in the coordinating process after a record is safely on disk, `ok` or not.

    `record` is the JSON document, read-only. What this raises is reported and changes nothing.
    """
