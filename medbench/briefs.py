"""Records in brief: what tables and `medbench status` need of each, read fast and held small.

A record's document is ten kilobytes, its scores twenty. A brief is half a kilobyte, and holds no
scores. Those of a run are kept in its ``cache`` folder (see `medbench.shelf`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from medbench.errors import DataError
from medbench.records import SCHEMA, Record, check_document, checked_bytes, identity, read_record
from medbench.records import read_scores as _read_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Setting(msgspec.Struct, frozen=True, array_like=True):
    """What many records share; equal ones are one object."""

    protocol: str
    protocol_version: int
    target: str
    way: int
    shot: int
    sources: tuple[str, ...] | None
    hardware: str | None
    transductive: bool
    overlap: tuple[str, ...]
    licences: tuple[tuple[str, str], ...]
    data: str
    """The digest of the data that was tested on; empty where a record does not tell."""
    uses_support: bool
    """False of a method that adapts to nothing."""


class Own(msgspec.Struct, array_like=True):
    """What is a record's own; costs are None where they were not measured."""

    name: str
    key: str
    status: str
    created: str
    backbone: str
    algorithm: str
    backbone_label: str | None
    algorithm_label: str | None
    seed: int
    error: str
    scores_file: str
    scores_digest: str
    adaptation_s: float | None
    adaptation_p95_s: float | None
    adaptation_iqr_s: float | None
    prediction_s: float | None
    feature_s: float | None
    peak_host_bytes: float | None
    peak_host_added_bytes: float | None
    peak_device_bytes: float | None
    peak_device_reserved_bytes: float | None
    energy_j: float | None
    parameters_adapted: float | None
    model_bytes: float | None
    train_s: float | None
    train_images: float | None
    weights: str | None
    groups_kind: str
    """What its answers are counted by, ``patient`` or ``image``; empty where they are not."""
    groups_file: str
    groups_digest: str
    picture_file: str
    picture_digest: str


@dataclass(slots=True)
class Brief:
    """A record in brief, and the folder of its files."""

    folder: str
    setting: Setting
    own: Own
    verified: bool = False
    """Whether its scores are known to be those that were recorded."""

    @property
    def ok(self) -> bool:
        """Whether the cell was measured."""
        return self.own.status == "ok"

    @property
    def key(self) -> str:
        """The content key it was recorded under."""
        return self.own.key

    @property
    def created(self) -> str:
        """When it was written; texts sort as times do."""
        return self.own.created

    @property
    def stem(self) -> str:
        """The name of its file, without the ending."""
        return self.own.name.removesuffix(".json")

    @property
    def hardware(self) -> str | None:
        """The class of the machine that measured it; a failed record has none."""
        return self.setting.hardware

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two records the same row and seed of one table; hardware apart."""
        s, o = self.setting, self.own
        place = (s.protocol, s.protocol_version, s.target, s.way, s.shot)
        names = (o.backbone, o.algorithm, o.seed, o.backbone_label, o.algorithm_label)
        return (*place, *names, s.sources)

    @property
    def path(self) -> Path:
        """The record's file."""
        return Path(self.folder, self.own.name)

    def ingredients(self) -> Any:
        """What the record's key is the hash of, from its file; empty when that is gone."""
        try:
            return _decode_ingredients(self.path.read_bytes()).ingredients
        except (OSError, msgspec.DecodeError):
            return {}

    def verify(self) -> None:
        """Hold the scores file against the record's digest, once. Raises `DataError`."""
        if not self.verified:
            checked_bytes(Path(self.folder, self.own.scores_file), self.own.scores_digest)
            self.verified = True

    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics. Raises `DataError` when its scores are missing or changed."""
        path = Path(self.folder, self.own.scores_file)
        return tuple(_read_scores(path, self.own.scores_digest))

    def scores(self, metric: str) -> NDArray[np.float64]:
        """Values of one metric, ``(n_episodes,)``, in the order of the episodes.

        Raises `DataError` when they are missing, changed, or without `metric`.
        """
        path = Path(self.folder, self.own.scores_file)
        found = _read_scores(path, self.own.scores_digest, [metric])
        if metric not in found:
            known = ", ".join(_read_scores(path, self.own.scores_digest))
            raise DataError(f"{self.path}: no metric {metric!r}; it has {known}.")
        self.verified = True
        return found[metric]

    def groups(self) -> dict[str, NDArray[np.float64]]:
        """``group``, ``answers`` and ``right`` of each patient or image, ``(n_groups,)`` each.

        Raises `DataError` when they are missing or changed.
        """
        return _read_scores(Path(self.folder, self.own.groups_file), self.own.groups_digest)


class _Groups(msgspec.Struct, frozen=True):
    kind: str = ""
    file: str = ""
    digest: str = ""


class _Picture(msgspec.Struct, frozen=True):
    file: str = ""
    digest: str = ""


class _Data(msgspec.Struct, frozen=True):
    digest: str = ""


class _Target(msgspec.Struct, frozen=True):
    dataset: _Data = _Data()


class _Parts(msgspec.Struct, frozen=True):
    target: _Target = _Target()


class _Document(msgspec.Struct):
    """The parts of a record's document that a brief needs; the others are skipped, not built."""

    schema: Any
    key: Any
    status: Any
    cell: dict[str, Any]
    created: Any = None
    error: Any = ""
    hardware: dict[str, Any] = {}
    traits: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    training: _Training | None = None
    overlap: list[str] = []
    licences: dict[str, str] = {}
    backbone: dict[str, Any] = {}
    ingredients: _Parts = _Parts()
    scores_file: str = ""
    scores_digest: str = ""
    groups: _Groups = _Groups()
    picture: _Picture = _Picture()


class _Training(msgspec.Struct):
    train_s: Any = None
    images_seen: Any = None


class _Ingredients(msgspec.Struct):
    ingredients: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Document).decode
_decode_ingredients = msgspec.json.Decoder(_Ingredients).decode


def read_brief(path: Path) -> Brief:
    """The brief of the record in a file. Raises `DataError` as `read_record` does."""
    try:
        document = _decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        # Whatever is wrong with it is found, and told, in one place.
        return brief_of(read_record(path))
    check_document(msgspec.structs.asdict(document), path)
    return _brief(document, path)


def brief_of(record: Record) -> Brief:
    """The brief of a record in memory. Raises `DataError` for parts of a wrong type."""
    try:
        document = msgspec.convert(dict(record.data), _Document)
    except msgspec.ValidationError as error:
        raise DataError(f"{record.path}: not a record of schema {SCHEMA}: {error}.") from error
    return _brief(document, record.path)


def _brief(document: _Document, path: Path) -> Brief:
    cell, costs = document.cell, document.costs
    place = identity(cell)
    protocol, version, target, way, shot, backbone, algorithm, seed, label, other, sources = place
    training = document.training or _Training()
    features = [
        _number(costs, "times", f"{side}_feature_s", "median") for side in ("support", "query")
    ]
    own = Own(
        name=path.name,
        key=str(document.key),
        status=str(document.status),
        created=str(document.created),
        backbone=backbone,
        algorithm=algorithm,
        backbone_label=label,
        algorithm_label=other,
        seed=int(seed),
        error=str(document.error),
        scores_file=document.scores_file,
        scores_digest=document.scores_digest,
        adaptation_s=_number(costs, "times", "adaptation_s", "median"),
        adaptation_p95_s=_number(costs, "times", "adaptation_s", "p95"),
        adaptation_iqr_s=_number(costs, "times", "adaptation_s", "iqr"),
        prediction_s=_number(costs, "times", "prediction_s", "median"),
        feature_s=None if None in features else sum(f for f in features if f is not None),
        peak_host_bytes=_number(costs, "memory", "peak_host_bytes"),
        peak_host_added_bytes=_number(costs, "memory", "peak_host_added_bytes"),
        peak_device_bytes=_number(costs, "memory", "peak_device_bytes"),
        peak_device_reserved_bytes=_number(costs, "memory", "peak_device_reserved_bytes"),
        energy_j=_number(costs, "energy", "episode_j"),
        model_bytes=_number(document.backbone, "bytes"),
        parameters_adapted=_number(costs, "parameters_adapted"),
        train_s=_number(training.train_s),
        train_images=_number(training.images_seen),
        weights=None if cell.get("weights") is None else str(cell["weights"]),
        groups_kind=document.groups.kind,
        groups_file=document.groups.file,
        groups_digest=document.groups.digest,
        picture_file=document.picture.file,
        picture_digest=document.picture.digest,
    )
    hardware = document.hardware.get("class")
    setting = Setting(
        protocol=protocol,
        protocol_version=version,
        target=target,
        way=way,
        shot=shot,
        sources=sources,
        hardware=None if hardware is None else str(hardware),
        transductive=bool(document.traits.get("transductive")),
        overlap=tuple(document.overlap),
        licences=tuple(document.licences.items()),
        data=document.ingredients.target.dataset.digest,
        uses_support=bool(document.traits.get("uses_support", True)),
    )
    return Brief(str(path.parent), setting, own)


def _number(data: Any, *path: str) -> float | None:
    for step in path:
        if not isinstance(data, Mapping) or step not in data:
            return None
        data = data[step]
    return None if data is None else float(data)
