"""Frozen descriptions: the specs that hooks return, cheap to import, and what networks see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TaskKind = Literal["classification", "multilabel", "segmentation", "detection"]
Stage = Literal["train", "adapt", "both"]


@dataclass(frozen=True, kw_only=True)
class Citation:
    """Where a method, network or dataset was published."""

    title: str
    authors: str
    venue: str
    year: int
    url: str = ""


@dataclass(frozen=True)
class Parameter:
    """One setting of a plugin, with the default that its paper gives.

    ``type`` is one of ``int``, ``float``, ``bool``, ``str``; ``optional`` also admits null.
    ``minimum`` and ``maximum`` are inclusive; ``above`` is an exclusive lower bound. ``stage`` says
    what a change invalidates: a parameter of stage ``adapt`` does not change meta-training, so
    cells that differ in it alone share one training.
    """

    name: str
    default: int | float | bool | str | None
    help: str
    type: Literal["int", "float", "bool", "str"]
    choices: tuple[str | int | float, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    optional: bool = False
    stage: Stage = "both"


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an algorithm claims to be; the claims are tested, and shown in every table.

    ``works_on``: ``features`` (methods on frozen features; `adapt` sees ``(..., n_support, d)``),
    ``maps`` (on frozen feature maps, ``(..., n_support, c, h, w)``: methods that compare places) or
    ``images`` (`adapt` sees ``(n_support, C, H, W)``). ``transductive``: True, False, or a mapping
    from a parameter's name to the values with which the method is transductive. ``batched``: adapt
    and predict accept leading ``...`` dimensions; otherwise episodes are looped. ``meta_trains``:
    it learns from source tasks before any test episode. ``parallel``: its meta-training shares the
    tasks of a step between processes (see `TrainingRun.share`); otherwise one process trains.
    ``sources_optional``: from a parameter's name to the values with which it does without learned
    tensors, where a protocol has nothing to meta-train on.
    ``adapts``: what adaptation changes, in words (``nothing``, ``linear head``, ``all weights``).
    ``knows_classes``: it asks which classes of its source the classes of an episode are
    (`Support.classes`). Only protocols that test on classes of their sources tell it; in others its
    cells are ``unavailable``. ``uses_support`` False: it answers without a look at the support set.
    Its rows are references, over which tables show what other rows of the same backbone gain.
    ``n_dims``: what inputs it takes, images (2) or volumes (3); its cells on others are
    ``unavailable``.
    """

    works_on: Literal["features", "maps", "images"]
    adapts: str
    transductive: bool | Mapping[str, tuple[object, ...]] = False
    deterministic: bool = True
    batched: bool = False
    meta_trains: bool = False
    parallel: bool = False
    sources_optional: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    knows_classes: bool = False
    uses_support: bool = True
    task_kinds: tuple[TaskKind, ...] = ("classification",)
    n_dims: tuple[Literal[2, 3], ...] = (2, 3)

    def is_transductive(self, params: Mapping[str, object]) -> bool:
        """Whether the method looks at the whole query set under these resolved parameters."""
        if isinstance(self.transductive, bool):
            return self.transductive
        return any(params.get(name) in values for name, values in self.transductive.items())

    def does_without_sources(self, params: Mapping[str, object]) -> bool:
        """Whether, under these resolved parameters, it can be tested without meta-training."""
        return any(params.get(name) in values for name, values in self.sources_optional.items())


@dataclass(frozen=True)
class Excuse:
    """Why a plugin is let off one check of ``medbench check``.

    ``check`` is the check's id, ``reason`` what readers are told. ``when`` maps a parameter's name
    to the values for which the excuse holds; without it, it always holds. An excuse for a check
    that passes is an error: whoever improves the plugin then removes it.
    """

    check: str
    reason: str
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def holds(self, params: Mapping[str, object]) -> bool:
        """Whether it is meant for these resolved parameters."""
        return all(params.get(name) in values for name, values in self.when.items())


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """What ``medbench check`` has to know of a plugin, where the ordinary does not fit it.

    ``params`` replace defaults during checks, whose trainings are short and images tiny (fewer
    steps, a larger rate). ``backbone`` and ``backbone_params`` name the network that an algorithm
    is checked on, ``image_size`` its images in pixels (without it 16, and 32 where the targets are
    masks or boxes).
    """

    params: Mapping[str, int | float | bool | str | None] = field(default_factory=dict)
    backbone: str = "conv4"
    backbone_params: Mapping[str, int | float | bool | str | None] = field(
        default_factory=lambda: {"width": 8, "pools": 2}
    )
    image_size: int | None = None
    excuses: tuple[Excuse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AlgorithmSpec:
    """An algorithm, as data.

    ``factory`` is ``"package.module:Name"``, called as ``Name(**params)`` and returning an
    `Algorithm`. ``trainer``, if given, is a factory called with the parameters of stage ``train``
    or ``both`` whose result has `meta_train`; the algorithm's factory then gets those of stage
    ``adapt`` or ``both``. Algorithms that name the same trainer with the same parameters share one
    meta-training. Without it the algorithm's own `meta_train` is used.
    """

    name: str
    version: str
    factory: str
    summary: str
    traits: Traits
    citation: Citation
    licence: str
    parameters: tuple[Parameter, ...] = ()
    trainer: str | None = None
    family: Literal[
        "metric",
        "optimisation",
        "augmentation",
        "transductive",
        "fine-tuning",
        "segmentation",
        "detection",
        "reference",
        "other",
    ] = "other"
    conformance: Conformance = field(default_factory=Conformance)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A feature extractor, as data.

    ``factory`` is called as ``factory(image_size=..., channels=..., pretrained=..., **params)``
    and returns a `Backbone`; a family (``takes_argument``) is named ``NAME:ARGUMENT`` and gets
    ``argument=`` as well. ``image_size`` is the protocol's size in pixels, or the user's.
    The factory initialises from torch's global random state, which the caller has seeded.
    ``pretrained_on`` names the data behind ``weights: pretrained``; empty means there are none.
    ``n_dims`` says whether it takes images (2) or volumes (3).

    A family with ``wraps`` is a wrapper: its argument is another backbone's reference, whose inputs
    have one of these numbers of dimensions. Its factory gets that network, built with the weights
    asked for, as ``inner=`` instead of ``argument=`` and ``pretrained=``; parameters that the
    wrapper does not have are the inner network's. With ``n_dims`` None it takes what that takes.

    A wrapper that ``fuses`` joins aligned modalities: its ``inner=`` is a tuple of such networks,
    one for each modality in order (one alone where images have one), each built for the channels of
    a modality. It gets the pixels of a missing modality as its `InputSpec.missing` says.
    One with ``learns`` looks at source images after meta-training, or instead (`Backbone.learn`).
    """

    name: str
    version: str
    factory: str
    summary: str
    citation: Citation
    licence: str
    parameters: tuple[Parameter, ...] = ()
    takes_argument: str = ""
    wraps: tuple[Literal[2, 3], ...] = ()
    n_dims: Literal[2, 3] | None = 2
    fuses: bool = False
    learns: bool = False
    pretrained_on: str = ""
    conformance: Conformance = field(default_factory=Conformance)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset, as data.

    ``factory`` is called as ``factory(place, **params)`` (with ``argument=`` for a family, named
    ``NAME:ARGUMENT``) and returns a `Dataset`. ``fetch``, if given, is ``"module:function"``,
    called as ``fetch(place, **params)``: it downloads the data below ``place.data`` and returns the
    paths written. ``domain`` is imaging modality, anatomy and source in one word: datasets cut
    from the same scans share it and are never source and target of one another.
    """

    name: str
    version: str
    factory: str
    summary: str
    modality: str
    domain: str
    licence: str
    citation: Citation
    task_kind: TaskKind = "classification"
    ordinal: bool = False
    non_commercial: bool = False
    n_classes: int | None = None
    n_dims: Literal[2, 3] = 2
    parameters: tuple[Parameter, ...] = ()
    takes_argument: str = ""
    fetch: str | None = None
    conformance: Conformance = field(default_factory=Conformance)


@dataclass(frozen=True, kw_only=True)
class ProtocolSpec:
    """A protocol: the rules, in a YAML file that ships with the plugin.

    ``resource`` is ``"package:path/inside.yaml"``; its ``name`` and ``version`` must be these.
    """

    name: str
    version: int
    summary: str
    resource: str
    conformance: Conformance = field(default_factory=Conformance)


@dataclass(frozen=True)
class InputSpec:
    """What a backbone wants to see: ``(b, channels, size, size)`` float32, normalised.

    With ``n_dims`` 3 it wants volumes, ``(b, channels, size, size, size)``. ``mean`` and ``std``
    have one value a channel, for pixels in 0...1. Images are resized, never cropped: lesions lie at
    borders too.

    Of several aligned modalities, whose names the core sets in ``modalities``, the channels come
    one modality after the other, each with as many. ``missing`` is the pixel value (0 black, 1
    white, before normalisation) of a modality that an image lacks; with NaN, which no image holds,
    a network can tell that it is missing.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    n_dims: Literal[2, 3] = 2
    modalities: tuple[str, ...] = ()
    missing: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then the edge lengths of one image or volume."""
        return (self.channels, *(self.size,) * self.n_dims)
