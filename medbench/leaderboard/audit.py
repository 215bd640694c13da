"""What is wrong with a record that somebody wants to publish: every fault, in words.

It holds the record against itself, against the suite of the board, and against the records that
are there. A record that is consistent may still be invented: ``medbench verify`` runs it again.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medbench.errors import DataError
from medbench.files import content_key
from medbench.leaderboard.audit_files import TOLERANCE, file_faults
from medbench.records import Record, read_record

_MACHINE = re.compile(r"(?:^|[\s\"'(=:])(?:/home/|/root/|/Users/|/tmp/|[A-Z]:\\)")


@dataclass(frozen=True)
class ProtocolRule:
    """What the suite of a board asks of the records of one protocol; None where it does not say."""

    version: int | None
    episodes: int | None = None
    shots: tuple[int, ...] | None = None
    targets: tuple[str, ...] | None = None


@dataclass
class Auditor:
    """Audits records one after the other, and remembers what those to come must agree with."""

    protocols: Mapping[str, ProtocolRule]
    non_commercial: bool = False
    _episodes: dict[tuple[Any, ...], tuple[str, str]] = field(default_factory=dict)
    _data: dict[str, tuple[str, str]] = field(default_factory=dict)
    _versions: dict[str, tuple[int, str]] = field(default_factory=dict)

    def faults(self, path: Path) -> list[str]:
        """All that is wrong with the record in a file, each fault a sentence; empty when fine."""
        try:
            record = _strict(path)
        except DataError as error:
            return [str(error).removeprefix(f"{path}: ")]
        try:
            own = [*_identity(record), *self._suite(record), *_origin(record)]
            own += [*_measured(record)] if record.ok else [*_failed(record)]
            return own or [*self._others(record)]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            return [f"a part of it is missing or of another type than a record's ({what})."]

    def _suite(self, record: Record) -> Iterator[str]:
        cell = record.cell
        name, version = cell["protocol"], cell["protocol_version"]
        rule = self.protocols.get(name)
        if rule is None:
            known = ", ".join(self.protocols)
            yield f"its protocol is {name!r}, and the suite of this board has {known}."
            return
        if rule.version is not None and version != rule.version:
            yield (
                f"it is of version {version} of protocol {name}, and this board is of version "
                f"{rule.version}: scores of different versions do not compare. Run it again."
            )
        if rule.shots is not None and cell["shot"] not in rule.shots:
            yield f"its shot is {cell['shot']}, and the suite has {list(rule.shots)}."
        target = str(record.data["request"]["target_dataset"])
        names = {target, target.rpartition("@")[2], target.partition("@")[0]}
        names |= {f"{name}[{record.data['request'].get('inputs', 'all')}]" for name in names}
        if rule.targets is not None and not names & set(rule.targets):
            yield f"its target is {target}, and the suite has {', '.join(rule.targets)}."
        n = record.data["ingredients"]["target"]["n_episodes"]
        if rule.episodes is not None and n != rule.episodes:
            yield f"it has {n} episodes, and this board asks for {rule.episodes} of {name}."
        if record.data["request"].get("non_commercial") and not self.non_commercial:
            yield (
                "it used data whose licence allows no commercial use, and the suite of this board "
                "does not ('non_commercial: true')."
            )

    def _others(self, record: Record) -> Iterator[str]:
        """Faults between records; the first of several that disagree is taken as right."""
        cell, target = record.cell, record.data["ingredients"]["target"]
        data = str(target["dataset"]["digest"])
        version, name = int(cell["protocol_version"]), str(cell["protocol"])
        known, other = self._versions.setdefault(name, (version, record.stem))
        if known != version:
            yield f"it is of version {version} of protocol {name}, and {other} of {known}."
        seen, other = self._data.setdefault(str(target["dataset"]["name"]), (data, record.stem))
        if seen != data:
            yield (
                f"it was tested on other data than {other}: the digest of "
                f"{target['dataset']['name']} is {data[:12]}, and there {seen[:12]}."
            )
            return
        place = (name, version, target["id"], target["n_episodes"])
        drawn, other = self._episodes.setdefault(place, (target["episodes"], record.stem))
        if drawn != target["episodes"]:
            yield f"its episodes of {target['id']} are not those of {other}."


def _strict(path: Path) -> Record:
    """The record in a file, without the numbers that JSON does not have."""

    def refuse(text: str) -> Any:
        raise DataError(f"{path}: it holds {text}, which is no number of JSON.")

    # What else is wrong with it is told by what reads it next.
    with contextlib.suppress(OSError, ValueError):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return read_record(path)


def _identity(record: Record) -> Iterator[str]:
    data, cell, parts = record.data, record.cell, record.data["ingredients"]
    if content_key(parts) != record.key:
        yield "its key is not the hash of its ingredients: one of them was changed."
    if not record.stem.endswith(f"-{record.key[:12]}"):
        yield f"its file name does not end with its key ({record.key[:12]})."
    target = parts["target"]
    pairs = {
        "target": (cell["target"], target["id"]),
        "protocol": (f"{cell['protocol']}-v{cell['protocol_version']}", target["protocol"]),
        "dataset": (data["request"]["target_dataset"].partition("@")[0], target["dataset"]["name"]),
        "algorithm": (cell["algorithm"], parts["algorithm"]["name"]),
        "backbone": (cell["backbone"], parts["backbone"]["name"]),
        "seed": (cell["seed"], parts["seed"]),
        "shot": (cell["shot"], data["request"]["shot"]),
        "way and shot": (f"{cell['way']}w{cell['shot']}s", target["id"].rpartition(":")[2]),
        "training": (data.get("training_key"), parts["training"]),
    }
    for what, (shown, hashed) in pairs.items():
        if shown != hashed:
            yield f"its cell says {what} {shown!r}, and its ingredients {hashed!r}."


def _origin(record: Record) -> Iterator[str]:
    data = record.data
    if not str(data.get("created", "")):
        yield "it does not tell when it was created."
    told = [text for text in _texts(data) if _MACHINE.search(text)]
    if told:
        yield f"it names a path of a machine: {told[0][:80]!r}."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _failed(record: Record) -> Iterator[str]:
    for name in ("error", "stage"):
        if not record.data.get(name):
            yield f"its status is {record.data['status']}, and it tells no {name}."


def _measured(record: Record) -> Iterator[str]:
    data = record.data
    hardware = data.get("hardware") or {}
    if not record.hardware:
        yield "it does not tell the class of its hardware."
    for name in ("cpu", "device", "threads"):
        if hardware.get(name) in (None, ""):
            yield f"its hardware lacks {name!r}."
    for name in ("medbench", "python", "torch"):
        if not (data.get("versions") or {}).get(name):
            yield f"its versions lack {name!r}."
    licences = data.get("licences") or {}
    sources = {str(s).partition("@")[0] for s in record.cell.get("sources") or []}
    names = [str(data["request"]["target_dataset"]).partition("@")[0]]
    # What was not meta-trained needs no licence of its sources.
    names += sorted(sources) if data.get("training_key") else []
    for name in names:
        if not str(licences.get(name) or "").strip():
            yield f"it tells no licence of {name}."
    yield from _costs(data["costs"])
    yield from file_faults(record)


def _costs(costs: Mapping[str, Any]) -> Iterator[str]:
    for name in ("adaptation_s", "prediction_s"):
        found = costs["times"][name]
        median, p95 = float(found["median"]), float(found["p95"])
        if not (0 < median <= p95 * (1 + TOLERANCE) and math.isfinite(p95)):
            yield f"its {name} has median {median} and 95th percentile {p95}."
    for name, value in (costs.get("memory") or {}).items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"its {name} is {value}."
