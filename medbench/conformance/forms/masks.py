"""Methods that answer with a mask for each class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from medbench.api import Backbone, Support
from medbench.conformance import material
from medbench.conformance.forms.base import CPU, check_scores
from medbench.conformance.forms.marks import MarkForm, with_marks
from medbench.conformance.forms.scores import ScoreForm
from medbench.conformance.marked import MarkedEpisode, at_size
from medbench.conformance.material import Episode

# Dice of a mask that covers the whole of such an image is 0.2.
_ENOUGH = 0.3


@final
class MaskForm(ScoreForm, MarkForm[Tensor]):
    """Scores ``(n_query, n_way, H, W)`` in the pixels of the network's input."""

    task_kind: ClassVar[Literal["segmentation", "detection"]] = "segmentation"

    def easy(self, number: int) -> MarkedEpisode:
        """One class, as many methods are made for, among discs of others."""
        return self.episode(number, (5,), 5)

    def given(
        self, one: Episode, backbone: Backbone, works_on: str, device: torch.device = CPU
    ) -> tuple[Support, Tensor]:
        """See `Form`; masks come at the size of the network's input."""
        marks, size = with_marks(one), (backbone.input.size, backbone.input.size)
        support = Support(
            material.seen(one.support, backbone, works_on, device),
            torch.from_numpy(marks.masks.any(axis=(-2, -1))).long().to(device),
            one.n_way,
            (one.seed,),
            size=size,
            masks=at_size(marks.masks, size).to(device),
        )
        return support, material.seen(one.query, backbone, works_on, device)

    def check_shape(self, answer: Tensor, query: Tensor, support: Support, words: str) -> None:
        """See `Form`."""
        assert support.size is not None
        check_scores(answer, (len(query), support.n_way, *support.size), query, words)

    def called(self, answer: Tensor, names: Tensor) -> Tensor:
        """See `Form`."""
        return answer[..., names, :, :]

    def _truth(self, answer: Tensor, one: Episode) -> Tensor:
        return at_size(with_marks(one).query_masks, (answer.shape[-2], answer.shape[-1]))

    def right(self, answer: Tensor, one: Episode) -> Tensor:
        """Whether inside each mask its class has the highest mean score."""
        truth = self._truth(answer, one).to(answer.dtype)
        scores = answer.cpu()
        shown = truth.flatten(2).any(-1)
        inside = torch.einsum("qkhw,qjhw->qkj", truth, scores)  # of class j inside mask k
        best = inside.argmax(-1) == torch.arange(one.n_way)
        return best[shown].double()

    def score(self, answers: Sequence[Tensor], episodes: Sequence[Episode]) -> float:
        """Mean Dice of the masks that are there."""
        found = []
        for answer, one in zip(answers, episodes, strict=True):
            truth, ours = self._truth(answer, one), (answer > 0).cpu()
            both = (truth & ours).flatten(2).sum(-1)
            each = truth.flatten(2).sum(-1) + ours.flatten(2).sum(-1)
            shown = truth.flatten(2).any(-1)
            found.append((2 * both / each.clamp_min(1))[shown])
        return float(torch.cat(found).mean())

    def enough(self, episodes: Sequence[Episode]) -> float:
        """What no mask reaches that is the same for all images."""
        return _ENOUGH

    def told(self, score: float, episodes: Sequence[Episode], after: str) -> str:
        """See `Form`."""
        n = len(episodes) * len(episodes[0].asked)
        return (
            f"the mean Dice of masks in {n} queries of easy 1-way 5-shot tasks is {score:.2f}"
            f"{after}; that of the whole image is 0.2, and more than {_ENOUGH} is needed. A pixel "
            "belongs to a class where its score is above zero."
        )
