"""What a page tells of each record: provenance, learning curve, how a cell failed; each once."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from medbench.briefs import Brief
from medbench.records import slug

# A curve is thinned to so many points, and a page holds so many of them.
_POINTS = 32
_CURVES = 600
# Characters of the logs' tails of all failed cells together, and of one alone.
_LOGS, _LOG = 300_000, 4_000
_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


class _Facts(msgspec.Struct):
    """The parts of a record's document that a page tells; whatever they are."""

    ingredients: dict[str, Any] = {}
    training: dict[str, Any] | None = None
    hardware: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    licences: dict[str, str] = {}
    request: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    stage: Any = ""
    error: Any = ""
    log_tail: Any = ()


@dataclass
class Pool:
    """Values that many rows share: each is held once and named by its number."""

    values: list[Any] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def __call__(self, value: Any) -> int:
        """The number of `value`, which is JSON."""
        name = json.dumps(value, sort_keys=True)
        if name not in self._places:
            self._places[name] = len(self.values)
            self.values.append(value)
        return self._places[name]


@dataclass
class Facts:
    """Collects what is told of records; ``parts``, ``curves`` and ``failures`` go into the page.

    ``folder``: that of the records as a command run beside the page names it, with its slash.
    """

    parts: Pool = field(default_factory=Pool)
    licences: Pool = field(default_factory=Pool)
    curves: list[Any] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    n_curves: int = 0
    folder: str = ""
    _trainings: dict[str, int] = field(default_factory=dict)
    _logged: int = 0

    def of(self, briefs: Sequence[Brief]) -> dict[str, Any]:
        """Columns about the records of one table, in order; also notes what failed."""
        told = [self._one(b) for b in briefs]
        names = ("seed", "key", "ok", "algorithm", "backbone", "target", "machine", "created",
                 "curve")  # fmt: skip
        return {n: [t[i] for t in told] for i, n in enumerate(names)}

    def licence(self, briefs: Iterable[Brief]) -> int:
        """The number of the set of licences of all data that some records used."""
        return self.licences(sorted({text for b in briefs for _, text in b.setting.licences}))

    def _one(self, brief: Brief) -> tuple[Any, ...]:
        found = _read(brief)
        parts = found.ingredients
        budget = {k: found.request.get(k) for k in ("budget_images", "suite", "device")}
        extra = {k: v for k, v in found.backbone.items() if k in ("parameters", "weights_digest")}
        machine = {"hardware": found.hardware, "versions": found.versions}
        row = (
            self.parts(parts.get("algorithm", {})),
            self.parts({**_mapping(parts.get("backbone")), **extra}),
            self.parts({**_mapping(parts.get("target")), **budget}),
            self.parts(machine) if brief.ok else -1,
        )
        if not brief.ok:
            self.failures.append(self._failure(brief, found))
        own = brief.own
        curve = self._curve(found.training)
        return (own.seed, self._name(brief), int(brief.ok), *row, _seconds(own.created), curve)

    def _name(self, brief: Brief) -> str:
        """The record's key, where the rest of its file's name follows from the row; else all."""
        own, key = brief.own, brief.own.key[:12]
        names = (own.backbone_label or own.backbone, own.algorithm_label or own.algorithm)
        backbone, algorithm = (slug(n, limit=None) for n in names)
        derived = stem_of(place_slug(brief), backbone, algorithm, own.seed)
        return f"-{key}" if brief.stem == f"{derived}-{key}" else self._file(brief)

    def _file(self, brief: Brief) -> str:
        return shell_word(f"{self.folder}{brief.own.name}")

    def _curve(self, training: dict[str, Any] | None) -> int:
        if not training or not isinstance(training.get("curve"), list):
            return -1
        points = [p for p in training["curve"] if isinstance(p, dict)]
        key = str(training.get("key"))
        if not points:
            return -1
        if key not in self._trainings:
            self.n_curves += 1
            self._trainings[key] = -1
            # Trainings come in the order of the tables' rows, best first.
            if len(self.curves) < _CURVES:
                self._trainings[key] = len(self.curves)
                self.curves.append(_thinned(points))
        return self._trainings[key]

    def _failure(self, brief: Brief, found: _Facts) -> dict[str, Any]:
        s, own = brief.setting, brief.own
        lines = found.log_tail if isinstance(found.log_tail, list | tuple) else [found.log_tail]
        log = "\n".join(map(str, lines))[-_LOG:]
        if self._logged + len(log) > _LOGS:
            log = ""
        self._logged += len(log)
        return {
            "protocol": f"{s.protocol} v{s.protocol_version}",
            "target": s.target,
            # As the table that the cell belongs to is called in the filters.
            "table": s.target.rpartition(":")[0],
            "shot": s.shot,
            "algorithm": str(own.algorithm_label or own.algorithm),
            "backbone": str(own.backbone_label or own.backbone),
            "seed": own.seed,
            "status": own.status,
            "stage": str(found.stage),
            "error": str(found.error)[:_LOG],
            "log": log,
            "record": self._file(brief),
        }


def _read(brief: Brief) -> _Facts:
    try:
        return _decode(brief.path.read_bytes())
    except (OSError, msgspec.DecodeError):
        # What a brief was made of has changed since, or is of a type that only a page minds.
        return _Facts(error=brief.own.error)


_decode = msgspec.json.Decoder(_Facts).decode


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def stem_of(place: str, backbone: str, algorithm: str, seed: int) -> str:
    """The name that a run gives a record's file, before its key, of words that are slugs."""
    return "_".join(w for w in (place, backbone, algorithm, f"seed{seed}") if w)


def place_slug(brief: Brief) -> str:
    """The part of its file's name that a record shares with its table."""
    return slug(brief.setting.protocol, brief.setting.target, limit=None)


def shell_word(text: str) -> str:
    """`text` as one word of a shell, with nothing in it that could hide or act.

    >>> shell_word("a b")
    "'a b'"
    """
    if _PLAIN.fullmatch(text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    escaped = "".join(c if c.isprintable() and c not in "'\\" else f"\\U{ord(c):08x}" for c in text)
    return f"$'{escaped}'"


def _seconds(created: str) -> int | None:
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return None
    known = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int((known - _EPOCH).total_seconds())


def _thinned(points: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """A curve of at most so many points: losses, and apart from them validations."""
    found: dict[str, list[Any]] = {}
    for name in ("loss", "val_accuracy"):
        known = [
            (p.get("images"), p[name])
            for p in points
            if _number(p.get("images")) and _number(p.get(name))
        ]
        step = max(1, -(-len(known) // _POINTS))
        # From the end, which is what training came to.
        some = known[::-1][::step][::-1]
        found[f"{name}_at"] = [x for x, _ in some]
        found[name] = [float(f"{y:.3g}") for _, y in some]
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
