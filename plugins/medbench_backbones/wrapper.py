"""What wrappers of one network have in common."""

from __future__ import annotations

from torch import Tensor

from medbench.api import Backbone, MedbenchError


class Wrapper(Backbone):
    """A network around another one whose features, maps and input it has until it changes them.

    Base of `Int8`, `Pruned`, `Distilled` and `Stacked`; each is final.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner
        self.n_features, self.input = inner.n_features, inner.input
        self.origin = inner.origin

    def feature_map(self, images: Tensor) -> Tensor:
        """As the inner network's."""
        return self.inner.feature_map(images)

    def forward(self, images: Tensor) -> Tensor:
        """As the inner network's."""
        out: Tensor = self.inner(images)
        return out


def refuse_replaced(name: str, inner: Backbone, instead: str) -> None:
    """Raise `MedbenchError` where a part of `inner` is tested with other weights than are trained.

    `name` is the wrapper's, `instead` what to do, a sentence.
    """
    for part in inner.modules():
        if isinstance(part, Backbone) and not part.adaptable:
            raise MedbenchError(
                f"{name}: {type(part).__name__} is tested with other weights than it is trained "
                f"with, and {name} works on those that are trained. {instead}"
            )
