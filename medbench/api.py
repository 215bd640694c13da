"""Everything a plugin author imports, and the only module of medbench that a plugin may import.

A plugin is a distribution with an entry point in group ``medbench``. Its module implements hooks
(see ``medbench.hookspecs``) that return *specs*: frozen descriptions, cheap to import, whose
``factory`` names the code that is loaded only when it is used. Importing this module imports
neither torch nor numpy, so that ``medbench list`` stays instant with a hundred plugins.

Shapes are written as in ``torch.linalg``: the last dimensions are the episode, any leading ``...``
dimensions are a batch of episodes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from medbench.errors import (
    ContractError,
    DataError,
    DataMissing,
    MedbenchError,
    NonFinite,
    Unavailable,
    did_you_mean,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from medbench.folding import fold_batchnorm
    from medbench.network import Backbone

__all__ = [
    "Algorithm",
    "AlgorithmSpec",
    "Backbone",
    "BackboneSpec",
    "Boxes",
    "Budget",
    "Citation",
    "ClassSplit",
    "Conformance",
    "ContractError",
    "DataError",
    "DataMissing",
    "Dataset",
    "DatasetInfo",
    "DatasetSpec",
    "Detections",
    "Detector",
    "Excuse",
    "InputSpec",
    "MedbenchError",
    "Modality",
    "NonFinite",
    "Parameter",
    "Place",
    "Predictor",
    "ProtocolSpec",
    "Source",
    "Stage",
    "Support",
    "Task",
    "TaskKind",
    "TrainingRun",
    "Traits",
    "Unavailable",
    "derive_seed",
    "did_you_mean",
    "fold_batchnorm",
    "hookimpl",
]

hookimpl = pluggy.HookimplMarker("medbench")

TaskKind = Literal["classification", "multilabel", "segmentation", "detection"]
Stage = Literal["train", "adapt", "both"]


def __getattr__(name: str) -> Any:
    # Backbone derives from torch.nn.Module; loading it late keeps torch out of `medbench list`.
    if name == "Backbone":
        from medbench.network import Backbone

        return Backbone
    if name == "fold_batchnorm":
        from medbench.folding import fold_batchnorm

        return fold_batchnorm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (BLAKE2b of their JSON).

    >>> derive_seed("a", 1) == derive_seed("a", 1) != derive_seed("a", 2)
    True
    """
    text = json.dumps([str(p) for p in parts], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


# --- specs: what a hook returns ------------------------------------------------------------------


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


# --- datasets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a dataset may look and write.

    ``data`` is the folder of the user's data (``MEDBENCH_DATA``), None when it is not set;
    ``cache`` is a folder for what is derived from it.
    """

    data: Path | None
    cache: Path

    def find(self, *candidates: str, hint: str) -> Path:
        """The first of `candidates` (absolute, or below the data folder) that exists.

        Raises `DataMissing` naming every place looked at, followed by `hint`.
        """
        looked: list[str] = []
        for candidate in candidates:
            path = Path(candidate).expanduser()
            if not path.is_absolute():
                if self.data is None:
                    continue
                path = self.data / path
            if path.exists():
                return path
            looked.append(str(path))
        if self.data is None and not looked:
            names = " or ".join(candidates)
            raise DataMissing(
                f"{names} was not looked for: MEDBENCH_DATA is not set. Set it to the folder that "
                f"holds your data. {hint}".strip()
            )
        raise DataMissing(f"Not found: {', '.join(looked)}. {hint}".strip())


@dataclass(frozen=True)
class ClassSplit:
    """Class indices for meta-training, meta-validation and meta-test; disjoint."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Modality:
    """One of several aligned inputs that make up an image: its name, and its channels, 1 or 3.

    Names are letters, digits, ``_``, ``-`` and ``.``; they stand in tables.
    """

    name: str
    channels: int = 1


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of one opened dataset; what a spec says in general, this says in particular."""

    name: str
    label_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    """``(H, W, C)`` or ``(D, H, W, C)``; C is 1 or 3, or the sum over `modalities`."""
    domain: str
    modality: str
    licence: str
    task_kind: TaskKind = "classification"
    ordinal: bool = False
    non_commercial: bool = False
    site_names: tuple[str, ...] = ()
    class_splits: Mapping[str, ClassSplit] = field(default_factory=dict)
    modalities: tuple[Modality, ...] = ()
    """Which channels of an image are which modality, in order; empty where there is one alone."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """True boxes of one image.

    ``xyxy``: ``(k, 4)`` float64, left, top, right and bottom edges in pixels of the image as `read`
    gives it, from its top left corner (a box around the first pixel alone is 0, 0, 1, 1);
    ``labels``: ``(k,)`` int64; ``ignored``: ``(k,)`` bool, regions in which detections count
    neither as found nor as false (COCO's crowds, VOC's difficult objects).
    """

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Detections:
    """Predicted boxes of one query image: as `Boxes`, each with a score, higher for surer."""

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


class Dataset(ABC):
    """Labelled images with random access; nothing is decoded before `read` asks for it.

    Attributes (numpy arrays over the ``n`` images):
        labels: ``(n,)`` int64 class indices, or ``(n, n_labels)`` uint8 for multilabel data. Where
            the targets are masks or boxes: ``(n, n_labels)`` uint8, which classes occur in an
            image.
        splits: ``(n,)`` uint8, 0 train, 1 val, 2 test; None when the data come without.
        sites: ``(n,)`` int64 indices into ``info.site_names``; None when not known.
        patients: ``(n,)`` int64 identities; None when not known.
        spacings: ``(n, 2)`` or ``(n, 3)`` float64, mm between neighbouring pixels along each axis
            of the images as `read` gives them; None when not known.
        times: ``(n,)`` float64, when an image was taken, compared within a patient alone (days
            since the first one, say), NaN where it is not known; None when no time is.
    """

    info: DatasetInfo
    labels: NDArray[Any]
    splits: NDArray[np.uint8] | None = None
    sites: NDArray[np.int64] | None = None
    patients: NDArray[np.int64] | None = None
    spacings: NDArray[np.float64] | None = None
    times: NDArray[np.float64] | None = None

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal BLAKE2b over everything that determines pixels, labels and splits."""

    @abstractmethod
    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), *info.image_shape)`` uint8, in the order asked for.

        Raises `DataError` that names the file when an image cannot be decoded.
        """

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(len(indices), n_labels, H, W)`` or ``(..., D, H, W)``.

        As large as the images of `read`; classes may overlap. Needed with the task kind
        ``segmentation``; raises `DataError` that names the file when one cannot be decoded.
        """
        raise ContractError(
            f"{self.info.name} has no masks: {type(self).__name__} does not define read_masks."
        )

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """True boxes of each image, in its pixels. Needed with the task kind ``detection``."""
        raise ContractError(
            f"{self.info.name} has no boxes: {type(self).__name__} does not define read_boxes."
        )

    def __len__(self) -> int:
        return len(self.labels)


# --- backbones -----------------------------------------------------------------------------------


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


# --- algorithms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Support:
    """The labelled side of an episode, all that adaptation may see.

    ``inputs``: features ``(..., n_support, d)``, maps ``(..., n_support, c, h, w)`` or images
    ``(n_support, C, H, W)``, volumes ``(n_support, C, D, H, W)``;
    ``labels``: ``(..., n_support)`` int64 in ``0 ... n_way - 1``; where images have several labels,
    masks or boxes, ``(..., n_support, n_way)`` int64, 1 where an image shows the class; ``seeds``:
    one integer for each episode of the batch, the only source of randomness, so that a batch of
    episodes draws what the same episodes draw one by one.

    ``size``: height and width of the images as the network sees them, in whose pixels masks and
    boxes are given; ``masks`` (task kind ``segmentation``): bool ``(..., n_support, n_way, H, W)``,
    classes may overlap; ``boxes`` (``detection``): those of each support image of the one episode,
    with labels in ``0 ... n_way - 1``.

    ``classes``: ``(..., n_way)`` int64, which of the source's classes labels ``0 ... n_way - 1``
    stand for, numbered as `Source.batch` numbers them. Source tasks have it; of test episodes only
    those of a method with the trait ``knows_classes``.
    """

    inputs: Tensor
    labels: Tensor
    n_way: int
    seeds: tuple[int, ...]
    size: tuple[int, int] | None = None
    masks: Tensor | None = None
    boxes: tuple[Boxes, ...] | None = None
    classes: Tensor | None = None

    def generator(self, episode: int = 0) -> torch.Generator:
        """A fresh CPU generator for one episode of the batch (0 when there is but one)."""
        import torch

        return torch.Generator().manual_seed(self.seeds[episode])


class Predictor(ABC):
    """What adaptation returns: a classifier for one task, or for a batch of tasks."""

    n_adapted: int = 0
    """How many parameters adaptation set or changed, for one episode."""

    @abstractmethod
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` for query inputs shaped like the support's.

        Scores are logits: their softmax over the last dimension is read as probabilities.
        For the task kind ``segmentation`` they are ``(..., n_query, n_way, H, W)``, as large as the
        support's masks: a pixel belongs to every class whose score there is above zero.
        Inductive methods must give each query the scores it would get alone.
        """


class Detector(ABC):
    """What adaptation returns for the task kind ``detection``: it finds objects in one task."""

    n_adapted: int = 0
    """How many parameters adaptation set or changed."""

    @abstractmethod
    def predict(self, query: Tensor) -> list[Detections]:
        """What is found in each of ``n_query`` inputs, in pixels of images of the support's size.

        Labels are ``0 ... n_way - 1``. Inductive methods must find in each query what they would
        find in it alone.
        """


@dataclass(frozen=True)
class Task:
    """One source task for meta-training, the truth of its queries included.

    ``query_labels``: ``(n_query,)`` as the support's, or ``(n_query, n_way)`` where targets are
    masks or boxes; ``query_masks``: bool ``(n_query, n_way, H, W)`` and ``query_boxes``, as the
    support's.
    """

    support: Support
    query: Tensor
    query_labels: Tensor
    query_masks: Tensor | None = None
    query_boxes: tuple[Boxes, ...] | None = None


class Source(Protocol):
    """The meta-training side of a protocol; every draw is a pure function of its arguments.

    Images come as float32 ``(b, C, H, W)`` (volumes ``(b, C, D, H, W)``) on the training device, in
    the backbone's normalisation.
    """

    n_classes: int
    """Classes over all source datasets together."""
    ways: tuple[int, ...]
    """The numbers of classes that tasks of the protocol's training shape have, ascending."""

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        """`count` tasks of the training shape for outer-loop step `step`.

        With `only`, those of them with these numbers (0 to ``count - 1``); no others are read.
        """

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images ``(size, C, H, W)`` and labels ``(size,)`` in ``0 ... n_classes - 1``.

        Datasets are drawn uniformly, then their classes, then images. Where images have masks or
        boxes, the class is the one that tasks draw an image by, of those it shows.
        """

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Every meta-training image once, in batches: for statistics of the source data.

        Images ``(b, C, H, W)`` and labels ``(b,)`` as `batch` gives them; the order is fixed.
        """

    images_per_task: int
    """Images in one task of the training shape (the largest, where tasks differ)."""


@dataclass(frozen=True)
class Budget:
    """How much meta-training may look at.

    ``images`` counts every image each time it is seen; ``episodes`` is how many tasks of the
    training shape that makes.
    """

    images: int
    episodes: int


class TrainingRun(Protocol):
    """The core's side of a meta-training: steps, validation, checkpoints, progress.

    Several processes, each with a GPU say, may share the tasks of every step, with the result of
    one process to rounding. A trainer whose spec claims ``parallel`` does so with three calls:

        for step in run.steps(state, images_per_step=n * source.images_per_task):
            optimiser.zero_grad()
            total, mine = 0.0, run.share(n)
            for number, task in zip(mine, source.tasks(step, n, mine)):
                run.reseed(number)
                loss = self.loss(task) / n
                loss.backward()
                total += loss.item()
            run.log(run.together(parameters, total))
            optimiser.step()

    All else is the same in all processes, and in one.
    """

    budget: Budget
    seed: int
    device: torch.device

    def steps(
        self,
        state: Mapping[str, Any],
        *,
        images_per_step: int,
        validate: Callable[[Support, Tensor], Tensor | list[Detections]] | None = None,
    ) -> Iterator[int]:
        """Yield outer-loop steps until the budget of images is used up.

        `state` names everything that training changes: modules, optimisers, parameters. It is
        restored from a checkpoint if there is one, so the first step may be greater than zero.
        Between steps the run writes checkpoints, reports progress, and every so often scores
        validation episodes with `validate(support, query_images) -> scores` (by accuracy; masks by
        Dice, and boxes, for which it returns detections, by AP50); the best state is
        kept. Torch's global random state is seeded anew for every step, so that a resumed
        training equals an undisturbed one.
        """

    def log(self, loss: float) -> None:
        """The loss of the current step. Raises `NonFinite`, naming the step, when it is not."""

    def share(self, count: int) -> range:
        """Which of the `count` tasks of a step this process learns from; all if it is alone.

        There may be none.
        """

    def reseed(self, number: int) -> None:
        """Seed torch's global random state for task `number` of the current step.

        What the task draws then does not depend on the tasks before it, nor on the process.
        """

    def together(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Add up, over processes, gradients of `parameters` in place, and `loss`; returns its sum.

        Once a step, before the optimiser's. Running statistics of BatchNorm layers in the state are
        merged too, as if one process had seen all tasks in order. Alone it changes nothing.
        """

    def best(self) -> dict[str, Tensor]:
        """The state of the best validation (the last one without), as tensors on the CPU.

        The names are ``"<name in state>.<tensor>"``; optimisers are left out. The modules and
        parameters in `state` are set to these values too.
        """


class Algorithm(ABC):
    """A few-shot learner. Instances hold their parameters and what `prepare` gave them, no more."""

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Learn across source tasks; returns what was learned, as named tensors.

        Tensors named ``backbone.*`` are loaded into the backbone before `prepare`; the others are
        given to `prepare` as they are. Needed only with the trait ``meta_trains``.
        """
        raise ContractError(
            f"{type(self).__name__} declares the trait meta_trains but has no meta_train method: "
            "write one, name a trainer in the spec, or set meta_trains to False."
        )

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Called once, before any episode, with the network in eval mode and what was learned.

        Methods that work on features may ignore the backbone.
        """
        return

    @abstractmethod
    def adapt(self, support: Support) -> Predictor | Detector:
        """Learn one task from its support set; must change nothing it was given.

        Returns a `Detector` for the task kind ``detection``, a `Predictor` for all others.
        """
