"""Several findings in one image: each label is a two-class task of its own (binary relevance)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, ContractError, Predictor, Support, derive_seed


@final
class BinaryRelevance(Algorithm):
    """Asks an algorithm for every label apart: images with the label against those without.

    Support labels are 0 or 1, ``(..., n_support, n_labels)``, and scores are the log-odds of each
    label, ``(..., n_query, n_labels)``. Whatever classifies two classes serves several labels that
    way (Tsoumakas and Katakis 2007, section 2.1.1, there PT4). Each label has a random seed of its
    own, so labels do not depend on one another.
    """

    def __init__(self, algorithm: Algorithm, *, batched: bool, image_dims: int) -> None:
        """`batched` algorithms get labels as one more dimension of a batch; others one by one.

        `image_dims` is how many dimensions one input has: 1 for features, 3 for maps and
        images, 4 for volumes.
        """
        self.algorithm = algorithm
        self.batched = batched
        self.image_dims = image_dims

    def adapt(self, support: Support) -> Predictor:
        """Learn each label from support labels ``(..., n_support, n_labels)``."""
        n_labels = support.labels.shape[-1]
        labels = support.labels.mT.contiguous()  # (..., n_labels, n_support)
        seeds = tuple(
            derive_seed("label", seed, i) for seed in support.seeds for i in range(n_labels)
        )
        if self.batched:
            inputs = _repeated(support.inputs, n_labels, self.image_dims)
            found = [self._asked(Support(inputs, labels, 2, seeds))]
        else:
            found = [
                self._asked(Support(support.inputs, labels[i], 2, (seeds[i],)))
                for i in range(n_labels)
            ]
        return _EachLabel(found, n_labels, self.image_dims, batched=self.batched)

    def _asked(self, support: Support) -> Predictor:
        found = self.algorithm.adapt(support)
        if not isinstance(found, Predictor):
            raise ContractError(
                f"{type(self.algorithm).__name__}: adapt returned {type(found).__name__}, and a "
                "medbench.api.Predictor is needed."
            )
        return found


@final
class _EachLabel(Predictor):
    def __init__(
        self, predictors: list[Predictor], n_labels: int, image_dims: int, *, batched: bool
    ) -> None:
        self.predictors = predictors
        self.n_labels = n_labels
        self.image_dims = image_dims
        self.batched = batched
        each = n_labels if batched else 1
        self.n_adapted = each * sum(p.n_adapted for p in predictors)

    def predict(self, query: Tensor) -> Tensor:
        """Log-odds ``(..., n_query, n_labels)``."""
        if self.batched:
            both = self.predictors[0].predict(_repeated(query, self.n_labels, self.image_dims))
        else:
            both = torch.stack([p.predict(query) for p in self.predictors])
        return (both[..., 1] - both[..., 0]).mT


def _repeated(inputs: Tensor, n_labels: int, image_dims: int) -> Tensor:
    """Inputs ``(..., n, *image)`` as ``(..., n_labels, n, *image)``, without a copy."""
    at = inputs.ndim - image_dims - 1
    shape = list(inputs.unsqueeze(at).shape)
    shape[at] = n_labels
    return inputs.unsqueeze(at).expand(shape)
