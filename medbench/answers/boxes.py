"""Answers that are boxes: where the objects of each class lie in each query, and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medbench.answers.base import Answers, Floats
from medbench.api import Boxes, Detections, Detector, Predictor
from medbench.bench import Bench
from medbench.draws import Ints
from medbench.episodes import Block
from medbench.errors import ContractError, NonFinite
from medbench.metrics import DETECTION_METRICS, detection, mean_of_classes
from medbench.metrics.boxes import iou
from medbench.pictures import box_strip
from medbench.truth import BoxStore, at_size

# Two lanes found the same object where their boxes of one class overlap so much.
_SAME_BOX = 0.9
# Of all boxes, so many must be the same alone as among others: rounding moves one across a limit.
_SAME_SHARE = 0.98

Found = list[Detections]
"""What was found in the queries of one episode."""


@dataclass(frozen=True)
class Scored:
    """Metrics ``(n,)`` of some episodes, and the boxes of the first of them."""

    metrics: dict[str, Floats]
    boxes: list[Found]


class BoxAnswers(Answers[Found, Scored]):
    """Boxes of each class for each query; episodes are asked one by one.

    Methods see support boxes in the pixels of the network's input, and answer in these. Answers are
    brought to the pixels of the dataset's images, and cut at their border, before they are scored.
    """

    def __init__(self, bench: Bench, block: Block) -> None:
        """As `Answers`. Raises `ContractError` for a method that asks for batches of episodes."""
        super().__init__(bench, block)
        if bench.entry.spec.traits.batched:
            raise ContractError(
                f"{self._name} declares the trait batched and the task kind detection, whose "
                "episodes are asked one by one. Set batched to False."
            )
        self._side = bench.backbone.input.size
        height, width = bench.target.opened.dataset.info.image_shape[:2]
        self._limits = np.array([width, height, width, height], np.float64)
        self._truth = BoxStore(bench.target.opened.dataset)

    def given(self, first: int, count: int | None) -> dict[str, Any]:
        """Labels, and the boxes of every support image at the network's size."""
        boxes = self._true(self._block.support[first], first)
        size = (self._side, self._side)
        return {
            **super().given(first, count),
            "size": size,
            "boxes": at_size(boxes, self._bench.target.opened.dataset, size),
        }

    def adapted(self, found: object) -> Predictor | Detector:
        """What adaptation returned. Raises `ContractError` when it cannot find boxes."""
        if not isinstance(found, Detector):
            raise ContractError(
                f"{self._name}: adapt returned {type(found).__name__}, and a "
                "medbench.api.Detector is needed."
            )
        return found

    def _true(self, rows: Ints, episode: int) -> list[Boxes]:
        """True boxes of the episode's classes, labelled by their number in it."""
        return self._truth.among(rows, self._block.classes[episode])

    def checked(self, found: Any, query: Tensor, first: int) -> Found:
        """Boxes of each query in the pixels of the dataset's images."""
        n = len(query)
        if not isinstance(found, list) or len(found) != n:
            seen = f"{len(found)} of them" if isinstance(found, list) else type(found).__name__
            raise ContractError(
                f"{self._name}: predict returned {seen}, and a list of {n} "
                "medbench.api.Detections is needed, one for each query."
            )
        return [self._one(one, i, first) for i, one in enumerate(found)]

    def _one(self, found: Any, query: int, episode: int) -> Detections:
        where = f"{self._name}: episode {episode}, query {query}"
        if not isinstance(found, Detections):
            raise ContractError(f"{where}: {type(found).__name__} is not medbench.api.Detections.")
        xyxy, labels, scores = (np.asarray(a) for a in (found.xyxy, found.labels, found.scores))
        n, n_way = len(labels), self._bench.target.n_way
        if xyxy.shape != (n, 4) or labels.shape != (n,) or scores.shape != (n,):
            raise ContractError(
                f"{where}: boxes {xyxy.shape}, labels {labels.shape}, scores {scores.shape}; "
                "expected (k, 4), (k,) and (k,)."
            )
        if not (np.isfinite(xyxy).all() and np.isfinite(scores).all()):
            raise NonFinite(f"{where}: boxes or scores are not finite.")
        whole = labels.dtype.kind in "iu"
        if n and not (whole and labels.min() >= 0 and labels.max() < n_way):
            raise ContractError(
                f"{where}: labels are {labels.dtype} {labels.min()}...{labels.max()}; expected "
                f"whole numbers 0...{n_way - 1}."
            )
        if (xyxy[:, 2:] < xyxy[:, :2]).any():
            raise ContractError(
                f"{where}: a box has its corners in the wrong order; expected x0, y0, x1, y1."
            )
        true = np.clip(xyxy.astype(np.float64) * (self._limits / self._side), 0.0, self._limits)
        return Detections(true, labels.astype(np.int64), scores.astype(np.float64))

    def reduced(self, first: int, answers: Found, *, batched: bool) -> Scored:
        """Metrics of one episode, and its boxes where they are kept."""
        protocol = self._bench.target.protocol
        values = detection(
            answers,
            self._true(self._block.query[first], first),
            self._bench.target.n_way,
            false_positives=protocol.false_positives,
            min_iou=protocol.min_iou,
        )
        scores = {name: np.array([mean_of_classes(v)]) for name, v in values.items()}
        return Scored(scores, [answers] if first < self.n_kept else [])

    def joined(self, parts: list[Scored]) -> Scored:
        """Metrics of all episodes, and the boxes of the first ones."""
        return Scored(
            {n: np.concatenate([p.metrics[n] for p in parts]) for n in DETECTION_METRICS},
            [boxes for p in parts for boxes in p.boxes],
        )

    def stacked(self, answers: list[Found]) -> list[Found]:
        """The boxes themselves."""
        return answers

    def concatenated(self, answers: list[Found]) -> list[Found]:
        """The boxes themselves."""
        return answers

    def gap(self, together: Any, alone: list[Any]) -> float:
        """The share of boxes that are not the same; 0 where rounding may have moved the rest."""
        pairs = [(self._one(together[i], i, 0), self._one(a[0], i, 0)) for i, a in enumerate(alone)]
        share = _shared(pairs)
        return 0.0 if share >= _SAME_SHARE else 1.0 - share

    def agreement(self, fast: Scored | list[Found], slow: list[Found]) -> float:
        """The share of boxes of either lane that the other has too; 1 where neither has any."""
        kept = (fast.boxes if isinstance(fast, Scored) else fast)[: len(slow)]
        return _shared(
            [pair for a, b in zip(kept, slow, strict=True) for pair in zip(a, b, strict=True)]
        )

    def pictured(self, answers: list[Found]) -> bytes:
        """True boxes of a few queries, and the surest of those predicted."""
        rows, images = self._to_show()
        return box_strip(images, self._true(rows, 0), answers[0][: len(rows)])

    def measured(self, found: Scored) -> dict[str, Floats]:
        """The three metrics of boxes: means over the classes that have boxes to find."""
        return found.metrics


def _shared(pairs: Sequence[tuple[Detections, Detections]]) -> float:
    """Of all boxes on both sides of `pairs`, the share with a partner on the other side."""
    same, total = 0, 0
    for a, b in pairs:
        total += len(a.labels) + len(b.labels)
        alike = (iou(a.xyxy, b.xyxy) >= _SAME_BOX) & (a.labels[:, None] == b.labels)
        same += _matched(alike) + _matched(alike.T)
    return same / total if total else 1.0


def _matched(alike: NDArray[np.bool_]) -> int:
    return int(alike.any(axis=1).sum())
