"""What checks give to a plugin: tiny images of separable classes, tasks and trainings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.api import (
    Backbone,
    Budget,
    Citation,
    Dataset,
    DatasetInfo,
    DatasetSpec,
    Support,
    derive_seed,
)
from medbench.embed import forward, to_input
from medbench.opened import Opened
from medbench.plugins import Entry, Plugin
from medbench.pools import all_classes, source_set
from medbench.protocols import DatasetRef, Protocol, TrainShape
from medbench.source import TaskSource
from medbench.training import Run

N_CLASSES = 8
_PER_CLASS = 40
_SIZE = 16
_NOISE = 0.1
Ints = NDArray[np.int64]
_CPU = torch.device("cpu")


@final
class Stripes(Dataset):
    """Striped images ``(16, 16, 1)``: a class is a frequency and an angle, its phase varies."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.repeat(np.arange(N_CLASSES), _PER_CLASS).astype(np.int64)
        self.info = DatasetInfo(
            name="stripes",
            label_names=tuple(f"stripes {i}" for i in range(N_CLASSES)),
            image_shape=(_SIZE, _SIZE, 1),
            domain="stripes",
            modality="made up",
            licence="CC0-1.0",
        )
        frequency = 1.0 + self.labels // 4
        angle = (self.labels % 4) * np.pi / 4
        phase = rng.uniform(0.0, 0.4, len(self.labels))
        at = np.arange(_SIZE) / _SIZE
        wave = (
            at[None, :, None] * np.cos(angle)[:, None, None]
            + at[None, None, :] * np.sin(angle)[:, None, None]
        )
        images = 0.5 + 0.35 * np.sin(
            2 * np.pi * (frequency[:, None, None] * wave + phase[:, None, None])
        )
        images += 0.35 * _NOISE * rng.standard_normal(images.shape)
        self._pixels = (255 * images.clip(0, 1)).astype(np.uint8)[..., None]

    @property
    def digest(self) -> str:
        """Of the pixels."""
        return hashlib.blake2b(self._pixels.tobytes(), digest_size=16).hexdigest()

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(n, 16, 16, 1)``."""
        return self._pixels[indices]


@cache
def stripes() -> Stripes:
    """The data set of this process."""
    return Stripes()


@dataclass(frozen=True)
class Episode:
    """One task as raw images: what a check shows to a plugin in the form it works on."""

    support: NDArray[np.uint8]
    labels: Tensor
    query: NDArray[np.uint8]
    asked: Tensor
    n_way: int
    seed: int
    classes: Tensor
    """Which of the data set's classes each of its own is."""


def episode(
    number: int = 0, shots: Sequence[int] = (3, 3, 3), n_query: int = 9, *, noise: bool = False
) -> Episode:
    """Task `number` of a shape: a function of its arguments alone.

    Support images are sorted by class, with `shots` images each; queries come in random order.
    With `noise` images are random pixels, of which no label can be told.
    """
    rng = np.random.default_rng(derive_seed("episode", number, tuple(shots), n_query, noise))
    drawn = draw(rng, shots, n_query, N_CLASSES, np.arange(_PER_CLASS), _PER_CLASS)
    images = stripes().read(drawn.rows)
    if noise:
        images = rng.integers(0, 256, images.shape, dtype=np.uint8)
    n = len(drawn.labels)
    return Episode(
        images[:n],
        torch.from_numpy(drawn.labels),
        images[n:],
        torch.from_numpy(drawn.asked),
        len(shots),
        derive_seed("adapt", number),
        torch.from_numpy(drawn.classes),
    )


@dataclass(frozen=True)
class Drawn:
    """Which images a task is made of; classes by their number in the data set."""

    classes: Ints
    labels: Ints
    asked: Ints
    rows: Ints
    """Of the support images, then of the queries."""


def draw(
    rng: np.random.Generator,
    shots: Sequence[int],
    n_query: int,
    n_classes: int,
    usable: Ints,
    per_class: int,
) -> Drawn:
    """A task of images that lie class by class, `per_class` each, of which some are `usable`."""
    way = len(shots)
    classes = rng.permutation(n_classes)[:way].astype(np.int64)
    labels = np.repeat(np.arange(way, dtype=np.int64), shots)
    asked = rng.permutation(np.arange(n_query, dtype=np.int64) % way)
    order = rng.permuted(np.tile(usable, (way, 1)), axis=1)
    taken = np.zeros(way, np.int64)
    rows = np.empty(len(labels) + n_query, np.int64)
    for place, c in enumerate([*labels, *asked]):
        rows[place] = classes[c] * per_class + order[c, taken[c]]
        taken[c] += 1
    return Drawn(classes, labels, asked, rows)


def seen(
    images: NDArray[np.uint8], backbone: Backbone, works_on: str, device: torch.device = _CPU
) -> Tensor:
    """Raw images as an algorithm sees them: network inputs, features or maps."""
    x = to_input(images, backbone.input, device)
    if works_on == "images":
        return x
    with torch.no_grad():
        return forward(backbone, x, "maps" if works_on == "maps" else "features")


def together(pairs: Sequence[tuple[Support, Tensor]]) -> tuple[Support, Tensor]:
    """Episodes of one shape as a batch."""
    supports = [support for support, _ in pairs]
    masks = [s.masks for s in supports if s.masks is not None]
    known = [s.classes for s in supports if s.classes is not None]
    batch = Support(
        torch.stack([s.inputs for s in supports]),
        torch.stack([s.labels for s in supports]),
        supports[0].n_way,
        tuple(s.seeds[0] for s in supports),
        size=supports[0].size,
        masks=torch.stack(masks) if masks else None,
        classes=torch.stack(known) if known else None,
    )
    return batch, torch.stack([query for _, query in pairs])


# --- meta-training -------------------------------------------------------------------------------

_RULES = Protocol(
    name="conformance",
    version=1,
    summary="Stripes, for checks of plugins",
    setting="leave_one_site_out",
    datasets=(DatasetRef(name="stripes"),),
    image_size=_SIZE,
    channels=1,
    train=TrainShape(way=3, shot=2, query=4, episodes=6),
    validation_episodes=2,
)


def _opened(dataset: Dataset) -> Opened:
    info = dataset.info
    spec = DatasetSpec(
        name=info.name,
        version="1",
        factory="medbench.conformance.material:stripes",
        summary="Made up, for checks of plugins",
        modality=info.modality,
        domain=info.domain,
        licence=info.licence,
        citation=Citation(title="Stripes", authors="medbench", venue="none", year=2026),
        task_kind=info.task_kind,
    )
    plugin = Plugin("medbench", "0", "conformance", __name__, (), 0.0)
    return Opened(DatasetRef(name=info.name), Entry("datasets", spec, plugin), {}, dataset)


def source(
    dataset: Dataset, backbone: Backbone, params: dict[str, Any], seed: int = 0
) -> TaskSource:
    """Source tasks: three ways, two shots, four queries where `params` say nothing."""
    opened = _opened(dataset)
    everything = np.arange(len(opened.dataset.labels))
    one = source_set(_RULES, opened, None, everything, all_classes(opened), None)
    assert one is not None
    shape = {k: params.get(f"train_{k}") for k in ("way", "shot", "query")}
    return TaskSource([one], backbone.input, _CPU, seed, shape)


def training(tasks: TaskSource, n_tasks: int, seed: int = 0) -> Run:
    """A meta-training with a budget of `n_tasks` tasks, without checkpoints."""
    images = n_tasks * tasks.images_per_task
    return Run(
        budget=Budget(images=images, episodes=n_tasks),
        seed=seed,
        device=_CPU,
        source=tasks,
        validation_episodes=_RULES.validation_episodes,
    )


def another_order(one: Episode, seed: int = 1) -> NDArray[np.int64]:
    """The numbers of a task's support images, shuffled."""
    return np.random.default_rng(seed).permutation(len(one.labels))
