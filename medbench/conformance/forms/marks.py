"""What tasks with masks and tasks with boxes have in common: the images, and who is asked."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor

from medbench.conformance import marked
from medbench.conformance.forms.base import Answer, Form
from medbench.conformance.marked import Marked, MarkedEpisode
from medbench.conformance.material import Episode


class MarkForm(Form[Answer], ABC):
    """Tasks on striped discs; a class is a shade, and the angle of stripes."""

    n_classes: ClassVar[int] = marked.N_CLASSES
    image_size: ClassVar[int] = marked.SIDE
    n_episodes: ClassVar[int] = 12
    task_kind: ClassVar[Literal["segmentation", "detection"]]

    def dataset(self) -> Marked:
        """See `Form`."""
        return marked.marked(self.task_kind)

    def episode(
        self,
        number: int = 0,
        shots: Sequence[int] = (3, 3, 3),
        n_query: int = 9,
        *,
        noise: bool = False,
    ) -> MarkedEpisode:
        """See `Form`."""
        return marked.marked_episode(self.dataset(), number, shots, n_query, noise=noise)

    def uninformed(self, number: int, way: int) -> MarkedEpisode:
        """Every class is shown on one disc of each true class."""
        return marked.uninformed(self.dataset(), number, way)

    def renamed(self, one: Episode, names: Tensor) -> MarkedEpisode:
        """See `Form`."""
        return marked.renamed(with_marks(one), names)

    def reordered(self, one: Episode) -> MarkedEpisode:
        """See `Form`."""
        return marked.reordered(with_marks(one))


def with_marks(one: Episode) -> MarkedEpisode:
    """An episode that a `MarkForm` made."""
    return cast(MarkedEpisode, one)
