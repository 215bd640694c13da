"""Backbones inside backbones: what a reference such as ``slices:timm:resnet18`` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medbench.errors import UsageError, did_you_mean
from medbench.plugins import Entry, Registry, resolve_params

_TAKEN = {2: "images", 3: "volumes"}


@dataclass(frozen=True)
class Layer:
    """One backbone of a reference: its spec, its own reference and its own parameters."""

    entry: Entry
    name: str
    params: dict[str, Any]
    n_dims: int


def layers(registry: Registry, name: str, params: Mapping[str, Any]) -> tuple[Layer, ...]:
    """A backbone and what it wraps, from the outside in; most are one layer alone.

    A parameter belongs to the outermost layer that has one of its name; defaults are filled in.
    Raises `UsageError` for unknown names and parameters, wrong values, and a network that its
    wrapper cannot take.
    """
    found: list[tuple[Entry, str]] = []
    at = name
    while True:
        entry = registry.get("backbones", at)
        found.append((entry, at))
        if not entry.spec.wraps:
            break
        at = at.partition(":")[2]
    own = _shared_out([entry for entry, _ in found], name, params)
    made: list[Layer] = []
    for (entry, at), given in zip(reversed(found), reversed(own), strict=True):
        if made and made[-1].n_dims not in entry.spec.wraps:
            wanted = " or ".join(_TAKEN[n] for n in entry.spec.wraps)
            raise UsageError(
                f"backbone {name!r}: {entry.name} wraps backbones that take {wanted}, and "
                f"{made[-1].name!r} takes {_TAKEN[made[-1].n_dims]}. Name another one after "
                f"'{entry.name}:'."
            )
        dims = entry.spec.n_dims or made[-1].n_dims
        made.append(Layer(entry, at, resolve_params(entry, given), dims))
    return tuple(reversed(made))


def mismatch(registry: Registry, name: str, params: Mapping[str, Any], n_dims: int) -> str | None:
    """Why a backbone cannot see a protocol's images of `n_dims` dimensions; None when it can."""
    takes = layers(registry, name, params)[0].n_dims
    if takes == n_dims:
        return None
    advice = "slices:BACKBONE makes one of it" if takes == 2 else "choose one for images"
    return (
        f"backbone {name} takes {_TAKEN[takes]}, and the protocol has {_TAKEN[n_dims]}; {advice}, "
        "and 'medbench list backbones' shows all."
    )


def _shared_out(entries: list[Entry], name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which of the given parameters belong to which layer."""
    own: list[dict[str, Any]] = [{} for _ in entries]
    if len(entries) == 1:
        return [dict(params)]
    known = [{p.name for p in entry.spec.parameters} for entry in entries]
    for key, value in params.items():
        owner = next((i for i, names in enumerate(known) if key in names), None)
        if owner is None:
            every = sorted(set().union(*known))
            raise UsageError(f"{name} has no parameter {key!r}.{did_you_mean(key, every)}")
        own[owner][key] = value
    return own
