"""All checks, and the examination of a plugin by those of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Each of these modules puts its checks on a shelf.
from medbench.conformance import comparisons, effects, references, targets  # noqa: F401
from medbench.conformance.algorithms import ALGORITHMS
from medbench.conformance.backbones import BACKBONES, Built
from medbench.conformance.check import Check, Examination, Shelf
from medbench.conformance.common import COMMON
from medbench.conformance.datasets import DATASETS, Found
from medbench.conformance.protocols import PROTOCOLS, Rules
from medbench.conformance.subject import Subject
from medbench.conformance.trained import Bench

SHELVES: Mapping[str, Shelf] = {
    shelf.kind: shelf for shelf in (ALGORITHMS, BACKBONES, DATASETS, PROTOCOLS)
}
_ROOMS: Mapping[str, Any] = {
    "algorithms": Bench,
    "backbones": Built,
    "datasets": Found,
    "protocols": Rules,
}


def checks_of(kind: str) -> dict[str, Check]:
    """The checks of ``algorithms``, ``backbones``, ``datasets`` or ``protocols``, in order."""
    return SHELVES[kind].checks


def examine(subject: Subject) -> Examination:
    """The examination of a plugin; nothing is run before a result is asked for."""
    room = _ROOMS[subject.kind](subject)
    checks = {
        name: dataclasses.replace(check, run=_on(check, subject, room))
        for name, check in checks_of(subject.kind).items()
    }
    traits = getattr(subject.spec, "traits", None)
    return Examination(
        subject,
        checks,
        subject.spec.conformance.excuses,
        subject.params,
        deterministic=traits is None or traits.deterministic,
    )


def _on(check: Check, subject: Subject, room: Any) -> Any:
    # Common checks look at the subject, the others at what the checks of a kind share.
    shared = check.id in COMMON.checks
    return lambda _: check.run(subject if shared else room)
