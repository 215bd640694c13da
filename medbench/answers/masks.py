"""Answers that are masks: where in each query every class of the episode is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.answers.base import Answers, Floats
from medbench.bench import Bench
from medbench.embed import resized
from medbench.episodes import Block
from medbench.metrics import SEGMENTATION_METRICS, class_means, mean_of_classes, segmentation
from medbench.pictures import mask_strip, most_shown
from medbench.truth import MaskStore

Masks = NDArray[np.bool_]
_IMAGES = 16


@dataclass(frozen=True)
class Scored:
    """Metrics ``(n,)`` of some episodes, and the masks of the first of them."""

    metrics: dict[str, Floats]
    masks: Masks


class MaskAnswers(Answers[Tensor, Scored]):
    """A mask of each class for each query.

    Methods see support masks in the pixels of the network's input, and answer in these. Answers are
    brought to the true size before they are scored: scores are interpolated, then cut at zero.
    Masks are scored as they come, as those of all episodes would not fit in memory.
    """

    def __init__(self, bench: Bench, block: Block) -> None:
        """As `Answers`."""
        super().__init__(bench, block)
        self._size = bench.backbone.input.shape[1:]
        self._truth = MaskStore(bench.target.opened.dataset, self._size)
        self._space = bench.target.opened.dataset.info.image_shape[:-1]

    @property
    def numbers_per_image(self) -> int:
        """As many as scores of all classes have, at the network's size and at the true one."""
        pixels = int(np.prod(self._size)) + int(np.prod(self._space))
        return self._bench.target.n_way * pixels

    def given(self, first: int, count: int | None) -> dict[str, Any]:
        """Labels, and masks ``(..., n_support, n_way, *size)`` at the network's size."""
        masks = [self._given(i) for i in range(first, first + (count or 1))]
        together = masks[0] if count is None else torch.stack(masks)
        return {
            **super().given(first, count),
            "size": self._size,
            "masks": together.to(self._bench.device),
        }

    def _given(self, episode: int) -> Tensor:
        small = self._truth.small(self._block.support[episode])
        return small[:, torch.from_numpy(self._block.classes[episode])]

    def checked(self, found: Any, query: Tensor, first: int) -> Tensor:
        """Masks ``(..., n_query, n_way, *space)`` at the true size."""
        scores = self._tensor(found, query, first, *self._size)
        if self._size == self._space:
            return (scores > 0).cpu()
        n_dims = len(self._size)
        lead, images = scores.shape[:-n_dims], scores.flatten(0, -2 - n_dims)
        # In pieces: at the true size the scores of a block may be many times larger.
        pieces = [
            (resized(images[i : i + _IMAGES].float(), self._space) > 0).cpu()
            for i in range(0, len(images), _IMAGES)
        ]
        return torch.cat(pieces).reshape(*lead, *self._space)

    def reduced(self, first: int, answers: Tensor, *, batched: bool) -> Scored:
        """Metrics of a block, and masks of those of its episodes that are kept."""
        masks: Masks = (answers if batched else answers[None]).numpy()
        rows = [self._score(first + i, one) for i, one in enumerate(masks)]
        scores = {name: np.array([row[name] for row in rows]) for name in SEGMENTATION_METRICS}
        return Scored(scores, masks[: max(0, self.n_kept - first)].copy())

    def _score(self, episode: int, masks: Masks) -> dict[str, float]:
        rows, classes = self._block.query[episode], self._block.classes[episode]
        target = self._bench.target
        spacings = target.opened.dataset.spacings
        found = segmentation(
            masks,
            np.ascontiguousarray(self._truth.true(rows)[:, classes]),
            spacing=None if spacings is None else spacings[rows],
            tolerance=target.protocol.tolerance,
        )
        return {name: mean_of_classes(class_means(values)) for name, values in found.items()}

    def joined(self, parts: list[Scored]) -> Scored:
        """Metrics of all episodes, and the masks of the first ones."""
        return Scored(
            {n: np.concatenate([p.metrics[n] for p in parts]) for n in SEGMENTATION_METRICS},
            np.concatenate([p.masks for p in parts]),
        )

    def stacked(self, answers: list[Tensor]) -> Masks:
        """Masks ``(n, n_query, n_way, *space)``."""
        found: Masks = torch.stack(answers).numpy()
        return found

    def concatenated(self, answers: list[Tensor]) -> Masks:
        """Masks ``(n, n_query, n_way, *space)``."""
        found: Masks = torch.cat(answers).numpy()
        return found

    def agreement(self, fast: Scored | Masks, slow: Masks) -> float:
        """Of the pixels that either lane gives to a class, the share that both do; 1 for none.

        Pixels that both call background say little: most are.
        """
        masks = (fast.masks if isinstance(fast, Scored) else fast)[: len(slow)]
        either = int((masks | slow).sum())
        return int((masks & slow).sum()) / either if either else 1.0

    def pictured(self, answers: Masks) -> bytes:
        """True and predicted masks of a few queries; of a volume in the slice with most of them."""
        rows, images = self._to_show()
        true = self._truth.true(rows)[:, self._block.classes[0]]
        found = answers[0][: len(rows)]
        if len(self._space) == 3:
            images, true, found = most_shown(images, true, found)
        return mask_strip(images, true, found)

    def measured(self, found: Scored) -> dict[str, Floats]:
        """The four metrics of masks: means over queries, then over classes."""
        return found.metrics
