"""Methods that answer with a score for each class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from medbench.api import Backbone, Dataset, Support
from medbench.conformance import material
from medbench.conformance.forms.base import CPU, above, check_scores
from medbench.conformance.forms.scores import ScoreForm
from medbench.conformance.material import Episode


@final
class ClassForm(ScoreForm):
    """Scores ``(n_query, n_way)`` of striped images: a class is a frequency and an angle."""

    n_classes: ClassVar[int] = material.N_CLASSES
    image_size: ClassVar[int] = 16
    n_episodes: ClassVar[int] = 24

    def dataset(self) -> Dataset:
        """See `Form`."""
        return material.stripes()

    def episode(
        self,
        number: int = 0,
        shots: Sequence[int] = (3, 3, 3),
        n_query: int = 9,
        *,
        noise: bool = False,
    ) -> Episode:
        """See `Form`."""
        return material.episode(number, shots, n_query, noise=noise)

    def uninformed(self, number: int, way: int) -> Episode:
        """Every class is given one support image of each true class."""
        one = material.episode(number, (way,) * way, 9)
        labels = torch.arange(way).repeat_interleave(way).reshape(way, way).T.reshape(-1)
        order = torch.argsort(one.asked, stable=True)
        return replace(one, labels=labels, query=one.query[order.numpy()], asked=one.asked[order])

    def renamed(self, one: Episode, names: Tensor) -> Episode:
        """See `Form`."""
        before = torch.argsort(names)
        return replace(
            one, labels=names[one.labels], asked=names[one.asked], classes=one.classes[before]
        )

    def reordered(self, one: Episode) -> Episode:
        """See `Form`."""
        order = material.another_order(one)
        return replace(one, support=one.support[order], labels=one.labels[torch.from_numpy(order)])

    def given(
        self, one: Episode, backbone: Backbone, works_on: str, device: torch.device = CPU
    ) -> tuple[Support, Tensor]:
        """See `Form`."""
        inputs = material.seen(one.support, backbone, works_on, device)
        support = Support(inputs, one.labels.to(device), one.n_way, (one.seed,))
        return support, material.seen(one.query, backbone, works_on, device)

    def check_shape(self, answer: Tensor, query: Tensor, support: Support, words: str) -> None:
        """See `Form`."""
        check_scores(answer, (len(query), support.n_way), query, words)

    def called(self, answer: Tensor, names: Tensor) -> Tensor:
        """See `Form`."""
        return answer[..., names]

    def right(self, answer: Tensor, one: Episode) -> Tensor:
        """Whether the class with the highest score is that of the query."""
        return (answer.argmax(-1).cpu() == one.asked).double()

    def score(self, answers: Sequence[Tensor], episodes: Sequence[Episode]) -> float:
        """Accuracy."""
        return self.share_right(answers, episodes)

    def enough(self, episodes: Sequence[Episode]) -> float:
        """What guessing does not reach."""
        return above(sum(len(one.asked) for one in episodes), 1 / episodes[0].n_way)

    def told(self, score: float, episodes: Sequence[Episode], after: str) -> str:
        """See `Form`."""
        n, way = sum(len(one.asked) for one in episodes), episodes[0].n_way
        return (
            f"{100 * score:.0f} % of {n} queries of separable {way}-way 5-shot tasks are right"
            f"{after}; chance is {100 / way:.0f} %, and more than "
            f"{100 * self.enough(episodes):.0f} % is needed."
        )
