"""Methods that answer with boxes, each with a class and a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.api import Backbone, Boxes, Detections, Detector, Support
from medbench.conformance import material
from medbench.conformance.check import Broken
from medbench.conformance.forms.base import CPU
from medbench.conformance.forms.marks import MarkForm, with_marks
from medbench.conformance.marked import SIDE, boxes_of
from medbench.conformance.material import Episode
from medbench.metrics.boxes import iou

Found = list[Detections]
# A box counts as placed on a disc from here on, and as found where the surest one of its class is
# so good. Boxes of the right size at random places reach 3 %.
_ON, _FOUND, _ENOUGH = 0.3, 0.5, 0.3
# Two boxes are one where they overlap so much; rounding moves a few across a limit.
_SAME_BOX, _SAME_SHARE = 0.9, 0.98


@final
class BoxForm(MarkForm[Found]):
    """`medbench.api.Detections` of each query, in the pixels of the network's input."""

    task_kind: ClassVar[Literal["segmentation", "detection"]] = "detection"

    def given(
        self, one: Episode, backbone: Backbone, works_on: str, device: torch.device = CPU
    ) -> tuple[Support, Tensor]:
        """See `Form`; boxes come in the pixels of the network's input."""
        masks, side = with_marks(one).masks, backbone.input.size
        support = Support(
            material.seen(one.support, backbone, works_on, device),
            torch.from_numpy(masks.any(axis=(-2, -1))).long().to(device),
            one.n_way,
            (one.seed,),
            size=(side, side),
            boxes=tuple(
                Boxes(b.xyxy * (side / SIDE), b.labels, b.ignored) for b in boxes_of(masks)
            ),
        )
        return support, material.seen(one.query, backbone, works_on, device)

    def adapted(self, found: object) -> Detector:
        """See `Form`."""
        if not isinstance(found, Detector):
            raise Broken(
                f"adapt returned {type(found).__name__}, and a medbench.api.Detector is needed."
            )
        return found

    def answer(self, found: object, support: Support) -> Found:
        """See `Form`; boxes are brought to pixels of the images."""
        if not isinstance(found, list) or not all(isinstance(one, Detections) for one in found):
            seen = {type(one).__name__ for one in found} if isinstance(found, list) else set()
            shown = f"a list of {', '.join(sorted(seen))}" if seen else type(found).__name__
            raise Broken(
                f"predict returned {shown}, and a list of medbench.api.Detections is needed, one "
                "for each query."
            )
        assert support.size is not None
        scale = SIDE / support.size[0]
        return [
            Detections(
                np.asarray(one.xyxy, np.float64) * scale,
                np.asarray(one.labels),
                np.asarray(one.scores, np.float64),
            )
            for one in found
        ]

    def check_shape(self, answer: Found, query: Tensor, support: Support, words: str) -> None:
        """See `Form`."""
        if len(answer) != len(query):
            raise Broken(
                f"predict returned {len(answer)} Detections for {words}; one for each of "
                f"{len(query)} queries is needed."
            )
        for number, one in enumerate(answer):
            n = len(np.atleast_1d(one.labels))
            shapes = (one.xyxy.shape, one.labels.shape, one.scores.shape)
            if shapes != ((n, 4), (n,), (n,)):
                raise Broken(
                    f"query {number} has boxes xyxy {shapes[0]}, labels {shapes[1]} and scores "
                    f"{shapes[2]}; (k, 4), (k,) and (k,) are needed."
                )
            whole = one.labels.dtype.kind in "iu"
            if n and not (whole and one.labels.min() >= 0 and one.labels.max() < support.n_way):
                raise Broken(
                    f"query {number} has labels {one.labels.min()} to {one.labels.max()} "
                    f"({one.labels.dtype}) for {words}; whole numbers from 0 to "
                    f"{support.n_way - 1} are needed."
                )
            if (one.xyxy[:, 2:] < one.xyxy[:, :2]).any():
                raise Broken(
                    f"query {number} has a box whose right or lower edge comes first; x0, y0, x1, "
                    "y1 is needed."
                )

    def check_finite(self, answer: Found, where: str) -> None:
        """See `Form`."""
        for number, one in enumerate(answer):
            if not (np.isfinite(one.xyxy).all() and np.isfinite(one.scores).all()):
                raise Broken(
                    f"boxes or scores are NaN or infinite {where}; the first are those of query "
                    f"{number}."
                )

    def equal(self, first: Found, second: Found) -> bool:
        """See `Form`."""
        return len(first) == len(second) and all(
            np.array_equal(getattr(a, part.name), getattr(b, part.name))
            for a, b in zip(first, second, strict=True)
            for part in fields(a)
        )

    def gap(self, found: Found, expected: Found) -> float:
        """The share of boxes without a partner, or how far partners' scores are apart.

        The former where it is more than rounding may do to the choice among boxes that overlap.
        """
        if len(found) != len(expected):
            return 1.0
        pairs = list(zip(found, expected, strict=True))
        missing = [_without_partner(a, b) + _without_partner(b, a) for a, b in pairs]
        total = sum(len(a.labels) + len(b.labels) for a, b in pairs)
        if sum(missing) > (1 - _SAME_SHARE) * total:
            return sum(missing) / total
        scores = np.concatenate([one.scores for one in expected])
        scale = max(float(np.ptp(scores)), 1e-6) if len(scores) else 1.0
        return max((_apart(a, b) / scale for a, b in pairs), default=0.0)

    def called(self, answer: Found, names: Tensor) -> Found:
        """See `Form`."""
        before = torch.argsort(names).numpy()
        return [Detections(one.xyxy, before[one.labels], one.scores) for one in answer]

    def joined(self, answers: Sequence[Found]) -> Found:
        """See `Form`."""
        return [one for answer in answers for one in answer]

    def right(self, answer: Found, one: Episode) -> Tensor:
        """Whether of the boxes on each disc the surest is of its class; a guess where none is."""
        found = []
        for ours, truth in zip(answer, boxes_of(with_marks(one).query_masks), strict=True):
            on = iou(ours.xyxy, truth.xyxy) >= _ON
            for k, label in enumerate(truth.labels):
                here = np.flatnonzero(on[:, k])
                best = here[ours.scores[here].argmax()] if len(here) else None
                found.append(1 / one.n_way if best is None else float(ours.labels[best] == label))
        return torch.tensor(found, dtype=torch.float64)

    def score(self, answers: Sequence[Found], episodes: Sequence[Episode]) -> float:
        """The share of discs that the surest box of their class in the image overlaps by half."""
        hits = []
        for answer, one in zip(answers, episodes, strict=True):
            for ours, truth in zip(answer, boxes_of(with_marks(one).query_masks), strict=True):
                overlap = iou(ours.xyxy, truth.xyxy)
                for k, label in enumerate(truth.labels):
                    own = np.flatnonzero(ours.labels == label)
                    best = own[ours.scores[own].argmax()] if len(own) else None
                    hits.append(best is not None and overlap[best, k] >= _FOUND)
        return float(np.mean(hits))

    def enough(self, episodes: Sequence[Episode]) -> float:
        """What boxes at random places do not reach."""
        return _ENOUGH

    def told(self, score: float, episodes: Sequence[Episode], after: str) -> str:
        """See `Form`."""
        n = len(episodes) * len(episodes[0].asked)
        return (
            f"in {n} queries of easy 3-way 5-shot tasks the surest box of a class is on its disc "
            f"in {100 * score:.0f} %{after}; at random places it is 3 %, and more than "
            f"{100 * _ENOUGH:.0f} % is needed. Boxes are x0, y0, x1, y1 in pixels of support.size."
        )


def _alike(first: Detections, second: Detections) -> NDArray[np.bool_]:
    """Which boxes of one are those of the other, ``(n, m)``."""
    overlap = iou(first.xyxy, second.xyxy) >= _SAME_BOX
    alike: NDArray[np.bool_] = overlap & (first.labels[:, None] == second.labels)
    return alike


def _without_partner(ours: Detections, theirs: Detections) -> int:
    return int((~_alike(ours, theirs).any(axis=1)).sum())


def _apart(found: Detections, expected: Detections) -> float:
    """The largest difference between the score of a box and that of its nearest partner."""
    apart = np.where(
        _alike(found, expected), np.abs(found.scores[:, None] - expected.scores), np.inf
    )
    nearest = apart.min(axis=1, initial=np.inf)
    return float(nearest[np.isfinite(nearest)].max(initial=0.0))
