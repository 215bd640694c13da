"""The meta-training side of a target, as tensors: tasks, batches and sweeps of source images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbench.api import Dataset, InputSpec, Support, Task, derive_seed
from medbench.draws import Ints, uniforms
from medbench.embed import STORE_LIMIT_BYTES, ImageStore, to_input
from medbench.episodes import Pool, Shape
from medbench.errors import ProtocolError
from medbench.pools import SourceSet
from medbench.protocols import TARGETED
from medbench.truth import BoxStore, MaskStore, at_size


class TaskSource:
    """`medbench.api.Source` over source sets; every draw depends on seed and step alone."""

    def __init__(
        self,
        sets: Sequence[SourceSet],
        spec: InputSpec,
        device: torch.device,
        seed: int,
        shape: Mapping[str, int | None],
    ) -> None:
        """`shape` may override ``way``, ``shot`` and ``query`` of the protocol's training tasks.

        Raises `ProtocolError` when no source set can serve the shape.
        """
        self._spec, self._device, self._seed = spec, device, seed
        self._sets: list[tuple[SourceSet, Shape]] = []
        reasons: list[str] = []
        for one in sets:
            own = one.train_shape
            wanted = Shape(
                min(shape.get("way") or own.way, one.train.n_classes),
                shape.get("shot") or own.shot,
                shape.get("query") or own.query,
            )
            trouble = one.train.problem(wanted, one.opened.dataset.info.label_names)
            if trouble:
                reasons.append(f"{one.id}: {trouble}")
            else:
                self._sets.append((one, wanted))
        if not self._sets:
            raise ProtocolError(f"No source can serve the training tasks: {'; '.join(reasons)}.")
        self.ways = tuple(sorted({s.way for _, s in self._sets}))
        self.images_per_task = max(s.way * (s.shot + s.query) for _, s in self._sets)
        self._class_ids: dict[tuple[str, int], int] = {}
        for one, _ in self._sets:
            for c in one.train.classes:
                self._class_ids.setdefault((one.opened.name, int(c)), len(self._class_ids))
        self.n_classes = len(self._class_ids)
        self.classes = tuple(self._class_ids)
        """Data set and class number in it of classes ``0 ... n_classes - 1``."""
        self._stores = _stores([one.opened.dataset for one, _ in self._sets])
        self._truth = _truth([one.opened.dataset for one, _ in self._sets], spec.shape[1:])
        self._by_class = [
            [one.train.members(0, i) for i in range(one.train.n_classes)] for one, _ in self._sets
        ]

    def _read(self, one: SourceSet, indices: Any) -> Tensor:
        store = self._stores[id(one.opened.dataset)]
        return to_input(store.shown(indices), self._spec, self._device)

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        """`count` tasks for outer-loop step `step`, or some of them; sources are drawn uniformly.

        Each is a function of seed and number alone.
        """
        found = []
        for t in (step * count + i for i in (range(count) if only is None else only)):
            which = derive_seed("source", self._seed, t) % len(self._sets)
            one, shape = self._sets[which]
            found.append(self._task(one, one.train, shape, "train", t))
        return found

    def _task(self, one: SourceSet, pool: Pool, shape: Shape, part: str, t: int) -> Task:
        block = pool.draw(shape, f"{part}/{self._seed}/{one.id}", t, 1)
        rows = np.concatenate([block.support[0], block.query[0]])
        images = self._read(one, rows)
        n = block.support.shape[1]
        if one.opened.dataset.info.task_kind in TARGETED:
            seed = derive_seed("adapt", part, self._seed, t)
            return self._targeted(one, images, rows, block.classes[0], n, seed)
        labels = torch.from_numpy(block.support_labels).to(self._device)
        seed = derive_seed("adapt", part, self._seed, t)
        known = self._known(one, block.classes[0])
        return Task(
            Support(images[:n], labels, shape.way, (seed,), classes=known),
            images[n:],
            torch.from_numpy(block.query_labels[0]).to(self._device),
        )

    def _known(self, one: SourceSet, classes: Ints) -> Tensor | None:
        """The numbers of a task's classes; None where validation is on other classes."""
        found = [self._class_ids.get((one.opened.name, int(c))) for c in classes]
        kept = [number for number in found if number is not None]
        return torch.tensor(kept, device=self._device) if len(kept) == len(found) else None

    def _targeted(
        self, one: SourceSet, images: Tensor, rows: Ints, classes: Ints, n: int, seed: int
    ) -> Task:
        """A task with masks or boxes; the first `n` of its images are the support set."""
        dataset, size = one.opened.dataset, self._spec.shape[1:]
        shown = torch.from_numpy(dataset.labels[rows][:, classes].astype(np.int64))
        shown = shown.to(self._device)
        known = self._known(one, classes)
        support = Support(images[:n], shown[:n], len(classes), (seed,), size, classes=known)
        truth = self._truth[id(dataset)]
        if isinstance(truth, MaskStore):
            masks = truth.small(rows)[:, torch.from_numpy(classes)].to(self._device)
            support = replace(support, masks=masks[:n])
            return Task(support, images[n:], shown[n:], query_masks=masks[n:])
        boxes = at_size(truth.among(rows, classes), dataset, size)
        support = replace(support, boxes=boxes[:n])
        return Task(support, images[n:], shown[n:], query_boxes=boxes[n:])

    def validation(self, count: int) -> Iterator[Task]:
        """The same `count` validation tasks each time, the sources taking turns."""
        # Validation tasks have the shape of training tasks, as far as their images allow.
        having = [
            (one, one.val, one.val.fit(shape, least))
            for one, shape in self._sets
            for least in [1 if one.opened.dataset.info.task_kind in TARGETED else 2]
            if one.val is not None
        ]
        having = [h for h in having if h[2] is not None]
        for t in range(count if having else 0):
            one, pool, shape = having[t % len(having)]
            assert shape is not None
            yield self._task(one, pool, shape, "val", t)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images and labels over all source classes: uniform in dataset, then class, then image."""
        u = uniforms(f"batch/{self._seed}", step, 3 * size).reshape(3, size)
        which = (u[0] * len(self._sets)).astype(np.int64)
        images = torch.empty(size, *self._spec.shape, device=self._device)
        labels = torch.empty(size, dtype=torch.int64, device=self._device)
        for s in np.unique(which):
            one, rows = self._sets[s][0], np.flatnonzero(which == s)
            classes = (u[1, rows] * one.train.n_classes).astype(np.int64)
            indices = []
            for row, c in zip(rows, classes, strict=True):
                pool = self._by_class[s][c]
                indices.append(pool[int(u[2, row] * len(pool))])
                labels[row] = self._class_ids[one.opened.name, int(one.train.classes[c])]
            images[torch.from_numpy(rows)] = self._read(one, np.array(indices))
        return images, labels

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Every meta-training image and its label once, source after source."""
        for (one, _), by_class in zip(self._sets, self._by_class, strict=True):
            numbers = [self._class_ids[one.opened.name, int(c)] for c in one.train.classes]
            rows = np.concatenate(by_class)
            labels = np.repeat(numbers, [len(members) for members in by_class])
            for start in range(0, len(rows), size):
                some = slice(start, start + size)
                yield (
                    self._read(one, rows[some]),
                    torch.from_numpy(labels[some]).to(self._device),
                )


def _stores(datasets: Sequence[Dataset]) -> dict[int, ImageStore]:
    """A store for each dataset, by its `id`; all together keep `STORE_LIMIT_BYTES` of pixels."""
    found: dict[int, ImageStore] = {}
    room = STORE_LIMIT_BYTES
    # The smallest first: that way most datasets are kept.
    for dataset in sorted(datasets, key=_n_bytes):
        if id(dataset) not in found:
            found[id(dataset)] = ImageStore(dataset, room)
            if _n_bytes(dataset) <= room:
                room -= _n_bytes(dataset)
    return found


def _truth(datasets: Sequence[Dataset], size: tuple[int, ...]) -> dict[int, MaskStore | BoxStore]:
    """Where the masks or boxes of each dataset come from, by its `id`."""
    found: dict[int, MaskStore | BoxStore] = {}
    for dataset in datasets:
        if dataset.info.task_kind == "segmentation":
            limit = STORE_LIMIT_BYTES // len(datasets)
            found.setdefault(id(dataset), MaskStore(dataset, size, limit))
        elif dataset.info.task_kind == "detection":
            found.setdefault(id(dataset), BoxStore(dataset))
    return found


def _n_bytes(dataset: Dataset) -> int:
    return len(dataset.labels) * math.prod(dataset.info.image_shape)
