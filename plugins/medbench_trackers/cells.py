"""What a tracker is told of a cell: a name, parameters, numbers, and its training's curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PARAMETERS = (
    "protocol", "protocol_version", "target", "way", "shot", "backbone", "algorithm", "weights",
    "seed", "budget_images",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """``curve``: points of ``(images, {name: value})``, in order. ``group``: the suite's name."""

    key: str
    group: str
    name: str
    status: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    curve: tuple[tuple[int, Mapping[str, float]], ...]


def cell_of(record: Mapping[str, Any]) -> Cell:
    """The parts of a record that trackers show; seconds and bytes as in the record."""
    own = record.get("cell", {})
    words = [
        own.get("target"),
        own.get("backbone_label") or own.get("backbone"),
        own.get("algorithm_label") or own.get("algorithm"),
        f"seed{own.get('seed')}",
    ]
    training = record.get("training") or {}
    curve = tuple(
        (int(point.get("images", i)), dict(_numbers("", {k: point.get(k) for k in _CURVE})))
        for i, point in enumerate(training.get("curve") or ())
    )
    return Cell(
        str(record.get("key", "")),
        str(own.get("suite") or own.get("protocol") or "medbench"),
        " / ".join(map(str, words)),
        str(record.get("status", "")),
        {k: str(own[k]) for k in _PARAMETERS if own.get(k) is not None},
        dict(_metrics(record, training)),
        tuple(p for p in curve if p[1]),
    )


_CURVE = ("loss", "val_accuracy")


def _metrics(record: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from _numbers("", record.get("summary") or {})
    costs = record.get("costs") or {}
    for name, spent in (costs.get("times") or {}).items():
        yield from _numbers(f"costs/{name}_", {k: spent.get(k) for k in ("median", "p95")})
    yield from _numbers("costs/", costs.get("memory") or {})
    yield from _numbers("training/", {k: training.get(k) for k in ("train_s", "images_seen")})


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield prefix + name, float(value)
