"""SimpleShot (Wang, Chao, Weinberger and van der Maaten, arXiv 1911.04623, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

from torch import Tensor
from torch.nn import functional as F

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.common.geometry import class_means, squared_distances

Normalize = Literal["none", "l2", "cl2"]


@final
class CentroidPredictor(Predictor):
    """Classifies by the nearest centroid among transformed features."""

    def __init__(self, centroids: Tensor, mean: Tensor | None, normalize: Normalize) -> None:
        self.centroids = centroids
        self.mean = mean
        self.normalize: Normalize = normalize

    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)``: minus the squared distances to the centroids (Eq. 2).

        The paper needs only their order; as logits they are rather even after normalisation.
        """
        return -squared_distances(transform(query, self.mean, self.normalize), self.centroids)


def transform(features: Tensor, mean: Tensor | None, normalize: Normalize) -> Tensor:
    """Centre and scale features ``(..., n, d)`` to unit length (section 3, UN, L2N and CL2N)."""
    if normalize == "none":
        return features
    if normalize == "cl2":
        assert mean is not None
        features = features - mean
    return F.normalize(features, dim=-1)


@final
class SimpleShot(Algorithm):
    """Nearest centroid on features that are centred by the source mean and scaled to length one.

    ``normalize``: ``none``, ``l2`` (unit length) or ``cl2`` (the mean over all source images is
    subtracted first). The backbone comes from the shared `Supervised` trainer.
    """

    def __init__(
        self,
        *,
        normalize: Normalize = "cl2",
    ) -> None:
        self.normalize: Normalize = normalize
        self.mean: Tensor | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the mean source feature ``mean (d,)``. Raises `ContractError` when it is missing."""
        if self.normalize != "cl2":
            return
        if "mean" not in learned:
            raise ContractError(
                "simpleshot with normalize: cl2 needs the mean feature of the source images, and "
                f"training gave {', '.join(sorted(learned)) or 'nothing'}. Meta-train it, or use "
                "normalize: l2."
            )
        self.mean = learned["mean"]

    def adapt(self, support: Support) -> CentroidPredictor:
        """The class means of the transformed support features ``(..., n_support, d)``."""
        # The device is known only now.
        mean = None if self.mean is None else self.mean.to(support.inputs)
        features = transform(support.inputs, mean, self.normalize)
        centroids = class_means(features, support.labels, support.n_way)
        return CentroidPredictor(centroids, mean, self.normalize)
