"""What transductive methods on frozen features share: all queries are solved for together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.metric.simpleshot import Normalize

# Iterations read the features again and again: a few episodes at a time stay in the cache.
_NUMBERS_AT_ONCE_CPU = 2**19


class Joint(Algorithm, ABC):
    """A method that needs the support set and all queries at hand, and does its work then.

    ``normalize``: ``none``, ``l2`` (features of unit length) or ``cl2`` (the mean source feature is
    subtracted first, as in SimpleShot). The backbone comes from the shared `Supervised` trainer.
    """

    def __init__(self, *, normalize: Normalize) -> None:
        self.normalize: Normalize = normalize
        self.mean: Tensor | None = None

    @abstractmethod
    def solve(self, features: Tensor, targets: Tensor) -> Tensor:
        """Scores ``(e, q, k)`` of the queries, each episode by itself.

        `features` ``(e, s + q, d)`` are the support set's, then the queries', normalised; float32,
        or float64 when the inputs are, and the method's to change. `targets` ``(e, k, s)`` are 1
        where a support image is of a class, else 0.
        """

    def count_adapted(self, n_way: int, d: int) -> int:
        """How many parameters are fitted to one episode of `n_way` classes in `d` dimensions."""
        return 0

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the mean source feature ``mean (d,)``. Raises `ContractError` when it is missing."""
        if self.normalize != "cl2":
            return
        if "mean" not in learned:
            raise ContractError(
                f"{type(self).__name__} with normalize: cl2 needs the mean feature of the source "
                f"images, and training gave {', '.join(sorted(learned)) or 'nothing'}. Meta-train "
                "it, or use normalize: l2."
            )
        self.mean = learned["mean"]

    def adapt(self, support: Support) -> JointPredictor:
        """Keep the support features ``(..., n_support, d)`` until the queries come."""
        return JointPredictor(self, support)


@final
class JointPredictor(Predictor):
    """Remembers the support set and solves for all queries together."""

    def __init__(self, method: Joint, support: Support) -> None:
        self.method = method
        self.support = support
        # Another device, or another mean, may be known by the time the queries come.
        self.mean = None if method.mean is None else method.mean.to(support.inputs)
        self.n_adapted = method.count_adapted(support.n_way, support.inputs.shape[-1])

    @torch.no_grad()
    def predict(self, query: Tensor) -> Tensor:
        """Scores ``(..., n_query, n_way)`` of features ``(..., n_query, d)``."""
        lead, (n_query, d) = query.shape[:-2], query.shape[-2:]
        n_way, n_support = self.support.n_way, self.support.labels.shape[-1]
        x = self.support.inputs.reshape(-1, n_support, d)
        q = query.reshape(-1, n_query, d)
        labels = self.support.labels.reshape(-1, n_support)
        n, at_once = n_support + n_query, len(q)
        if q.device.type == "cpu":
            at_once = min(at_once, max(1, _NUMBERS_AT_ONCE_CPU // (d * n)))
        # One piece of memory for all blocks: fresh pages cost more than what is written to them.
        dtype = torch.promote_types(q.dtype, torch.float32)
        memory = torch.empty(at_once, n, d, dtype=dtype, device=q.device)
        scores = []
        for first in range(0, len(q), at_once):
            some = slice(first, first + at_once)
            features = memory[: len(q[some])]
            features[:, :n_support] = x[some]
            features[:, n_support:] = q[some]
            self._normalise(features)
            targets = class_masks(labels[some], n_way).to(dtype)
            scores.append(self.method.solve(features, targets))
        return torch.cat(scores).to(query.dtype).reshape(*lead, n_query, n_way)

    def _normalise(self, features: Tensor) -> None:
        """SimpleShot's `transform`, in place."""
        if self.method.normalize == "none":
            return
        if self.mean is not None:
            features -= self.mean
        features /= torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min_(1e-12)


def means_of(features: Tensor, targets: Tensor) -> Tensor:
    """Class means ``(e, k, d)`` of features ``(e, s, d)`` under `targets` ``(e, k, s)``."""
    return (targets / targets.sum(-1, keepdim=True)) @ features


def split(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Support features ``(e, s, d)`` and query features ``(e, q, d)``, as views."""
    n_support = targets.shape[-1]
    return features[..., :n_support, :], features[..., n_support:, :]


def compact(points: Tensor) -> Tensor:
    """The points ``(e, n, d)`` in ``min(n, d)`` dimensions, in float64.

    Their inner products are kept, to some twelve digits. A method that only turns on distances
    and linear combinations of features costs less there.
    """
    points = points.double()
    n, d = points.shape[-2:]
    if d <= n:
        return points
    gram = points @ points.mT
    # Points may depend on one another, or be null: a Cholesky factor wants more than that.
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(1e-12 * diagonal.mean(-1, keepdim=True) + 1e-200)
    factor: Tensor = torch.linalg.cholesky(gram)
    return factor
