"""Protocols: the fixed, versioned rules of a comparison, read from YAML and validated."""

from __future__ import annotations

import importlib.resources
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from medbench.api import TaskKind
from medbench.errors import ConfigError, PluginError
from medbench.model import Model
from medbench.plugins import Entry, Registry
from medbench.yamlfile import Document

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Scalar = StrictBool | StrictInt | float | StrictStr | None

# The task kinds whose targets are masks or boxes.
TARGETED = ("segmentation", "detection")
# By what the rows of a board are ranked unless told; one board has one metric.
MAIN_METRIC = {
    "classification": "accuracy",
    "multilabel": "accuracy",
    "segmentation": "dice",
    "detection": "ap50",
}
# The label of inputs of which nothing is held back; no modality may be called so.
EVERYTHING = "all"
# As LUNA16 reads them; `medbench.metrics` has the same ones.
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def _as_reference(value: Any) -> Any:
    # A bare name is the common case of an entry without settings.
    return {"name": value} if isinstance(value, str) else value


class DatasetRef(Model):
    """A dataset by name, with parameters; `optional` ones are used where they are found."""

    name: StrictStr
    params: dict[str, Scalar] = {}
    optional: StrictBool = False


class Fractions(Model):
    """Numbers of classes for meta-training, validation and test, in a seeded random order."""

    train: PositiveInt
    val: Annotated[int, Field(ge=0, strict=True)]
    test: PositiveInt
    seed: StrictInt = 0


class TrainShape(Model):
    """The shape of source tasks and the budget of meta-training, where an algorithm sets none."""

    way: PositiveInt = 5
    shot: PositiveInt = 5
    query: PositiveInt = 15
    episodes: PositiveInt = 1000


class Inputs(Model):
    """Which of several aligned modalities are shown, and which are missing from test images.

    ``modalities``: those shown at all, in training and tests; None shows every one. ``missing``
    and ``missing_support``: the share of queries, and of support images, of tests that lack one.
    """

    modalities: Annotated[tuple[StrictStr, ...], Field(min_length=1)] | None = None
    missing: dict[StrictStr, Share] = {}
    missing_support: dict[StrictStr, Share] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Inputs:
        chosen = self.modalities
        if chosen is not None and len(set(chosen)) < len(chosen):
            raise ValueError(f"modalities {list(chosen)} names one twice.")
        for key, shares in (("missing", self.missing), ("missing_support", self.missing_support)):
            strange = [name for name in shares if chosen is not None and name not in chosen]
            if strange:
                raise ValueError(
                    f"{key} names {strange[0]!r}, which is not among the modalities shown "
                    f"({', '.join(chosen or ())})."
                )
        return self

    @property
    def label(self) -> str:
        """What stands in a target's name, ``50% without mri``; ``all`` for everything."""
        parts = ["+".join(self.modalities)] if self.modalities else []
        parts += [f"{100 * share:g}% without {name}" for name, share in self.missing.items()]
        parts += [
            f"support {100 * share:g}% without {name}"
            for name, share in self.missing_support.items()
        ]
        return ", ".join(parts) or EVERYTHING


Reference = Annotated[DatasetRef, BeforeValidator(_as_reference)]


class Protocol(Model):
    """The rules: what is meta-trained on, what is tested, with which episodes."""

    name: StrictStr
    version: PositiveInt
    summary: StrictStr
    setting: Literal[
        "within_dataset", "cross_domain", "leave_one_site_out", "support_only", "personalised"
    ]
    task_kind: TaskKind = "classification"
    datasets: Annotated[tuple[Reference, ...], Field(min_length=1)]
    targets: tuple[StrictStr, ...] | None = None
    class_split: StrictStr | Fractions | None = None
    image_size: PositiveInt = 28
    n_dims: Literal[2, 3] = 2
    """2 for images, 3 for volumes, of which `image_size` is every edge."""
    channels: Literal[1, 3] = 3
    """Of an image, or of each of its modalities."""
    inputs: Annotated[tuple[Inputs, ...], Field(min_length=1)] = (Inputs(),)
    """Every dataset (or site) is a target once for each of these, with the same episodes."""
    way: PositiveInt | Literal["all"] = "all"
    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)
    queries: PositiveInt = 15
    episodes: PositiveInt = 600
    cost_episodes: PositiveInt = 20
    validation_episodes: PositiveInt = 50
    train: TrainShape = TrainShape()
    without_sources: StrictBool = False
    """With `cross_domain`: a target of which no source is here is tested all the same."""
    sites_apart: StrictBool = False
    """With `support_only`: every site is a target of its own, for support and query."""
    support_from: Literal["same", "others"] = "same"
    """With `personalised`: support of the patient who is asked about, or of all others."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Of the normalised surface distance: mm, or pixels where the data state no spacing."""
    false_positives: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = FALSE_POSITIVES
    """False positives an image at which a detector's sensitivity is read."""
    min_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The overlap from which on a box counts as found, in that sensitivity."""

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.setting == "within_dataset" and self.class_split is None:
            raise ValueError(
                "setting within_dataset needs class_split: the name of a split of the dataset, or "
                "numbers of classes {train: 12, val: 4, test: 8}."
            )
        if self.setting != "within_dataset" and self.class_split is not None:
            raise ValueError(f"class_split is for within_dataset, and setting is {self.setting}.")
        if self.setting == "cross_domain" and len(self.datasets) < 2:
            raise ValueError("setting cross_domain needs at least two datasets.")
        if self.without_sources and self.setting != "cross_domain":
            raise ValueError(f"without_sources is for cross_domain, and setting is {self.setting}.")
        if self.n_dims == 3 and self.task_kind == "detection":
            raise ValueError(
                "task_kind detection is for images (n_dims: 2), whose boxes have four edges; read "
                "volumes slice by slice."
            )
        if self.task_kind == "multilabel" and self.setting != "cross_domain":
            raise ValueError(
                "task_kind multilabel needs setting cross_domain: the multilabel datasets are "
                "tested on, and those of one label an image are meta-trained on."
            )
        if self.task_kind == "multilabel" and self.way != "all":
            raise ValueError(
                f"task_kind multilabel asks for every label: way: all, not {self.way}."
            )
        if self.setting == "support_only" and self.task_kind not in TARGETED:
            raise ValueError(
                f"task_kind {self.task_kind} and setting support_only do not go together: it is "
                f"for {' and '.join(TARGETED)}; the other kinds name what is meta-trained on."
            )
        if self.support_from != "same" and self.setting != "personalised":
            raise ValueError(f"support_from is for personalised, and setting is {self.setting}.")
        if self.setting == "personalised" and self.task_kind in TARGETED and self.way != 1:
            raise ValueError(
                f"setting personalised with task_kind {self.task_kind} asks about one class a "
                f"task: way: 1, not {self.way}."
            )
        if self.sites_apart and self.setting != "support_only":
            raise ValueError(f"sites_apart is for support_only, and setting is {self.setting}.")
        names = [d.name for d in self.datasets]
        for name in names:
            if names.count(name) > 1 and len({str(d.params) for d in self.datasets}) == 1:
                raise ValueError(f"dataset {name!r} is given twice.")
        for target in self.targets or ():
            # Where the targets are sites, only the data know them.
            by_site = self.sites_apart or self.setting == "leave_one_site_out"
            known = target in names or target.partition("[")[0] in names
            if not known and not by_site:
                raise ValueError(f"target {target!r} is not among the datasets {', '.join(names)}.")
        labels = [inputs.label for inputs in self.inputs]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"inputs: {label!r} is given twice.")
        if len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots {list(self.shots)} names one twice.")
        if self.cost_episodes > self.episodes:
            raise ValueError(
                f"cost_episodes is {self.cost_episodes}, and there are {self.episodes} episodes."
            )
        return self

    @property
    def tests_source_classes(self) -> bool:
        """Whether the classes of a target are those of its sources."""
        return self.setting in ("leave_one_site_out", "personalised")

    @property
    def id(self) -> str:
        """Name and version, ``NAME-vVERSION``."""
        return f"{self.name}-v{self.version}"

    @property
    def holds_back(self) -> bool:
        """Whether some of its targets show less of an image than there is."""
        return any(inputs.label != EVERYTHING for inputs in self.inputs)


def load_protocol(registry: Registry, name: str) -> tuple[Protocol, Entry]:
    """The protocol called `name`, from the plugin that brings it.

    Raises `UsageError` for an unknown name, `PluginError` when the plugin's file is not usable.
    """
    entry = registry.get("protocols", name)
    return _load(entry), entry


def _load(entry: Entry) -> Protocol:
    package, _, inside = entry.spec.resource.partition(":")
    try:
        text = importlib.resources.files(package).joinpath(inside).read_text(encoding="utf-8")
        protocol = Document(text, f"{package}/{inside}").validate(Protocol)
    except (OSError, ImportError, TypeError, ConfigError) as error:
        raise PluginError(
            f"protocol {entry.name!r} of {entry.origin()} cannot be used: {error}"
        ) from error
    if (protocol.name, protocol.version) != (entry.spec.name, entry.spec.version):
        raise PluginError(
            f"protocol {entry.name!r} of {entry.origin()}: the spec says {entry.spec.name} version "
            f"{entry.spec.version}, and its file {protocol.name} version {protocol.version}."
        )
    return protocol
