"""What transductive methods on frozen features share: all queries are solved for together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.common.geometry import class_masks
from medbench_algorithms.metric.simpleshot import Normalize

# Iterations read the features again and again: a few episodes at a time stay in the cache.
_NUMBERS_AT_ONCE_CPU = 2**20
SHORTEST = 1e-12
"""What features shorter than this are divided by, and count as null."""


@final
@dataclass(frozen=True)
class Points:
    """Features ``(e, s + q, d)`` of the support set, then the queries, before they are scaled.

    Dividing ``rows`` by ``lengths`` ``(e, s + q, 1)`` normalises them; None where nothing is to be
    divided. A method that reads features but a few times scales its products with them instead,
    and spares a pass over what is much larger.
    """

    rows: Tensor
    lengths: Tensor | None

    def scaled(self) -> Tensor:
        """The features as the method is to see them, written over ``rows``."""
        return self.rows if self.lengths is None else self.rows.div_(self.lengths)


class Joint(Algorithm, ABC):
    """A method that needs the support set and all queries at hand, and does its work then.

    ``normalize``: ``none``, ``l2`` (features of unit length) or ``cl2`` (the mean source feature is
    subtracted first, as in SimpleShot). The backbone comes from the shared `Supervised` trainer.
    """

    def __init__(self, *, normalize: Normalize) -> None:
        self.normalize: Normalize = normalize
        self.mean: Tensor | None = None

    @abstractmethod
    def solve(self, points: Points, targets: Tensor) -> Tensor:
        """Scores ``(e, q, k)`` of the queries, each episode by itself.

        `points` are the episodes' features; float32, or float64 when the inputs are, and the
        method's to change. `targets` ``(e, k, s)`` are 1 where a support image is of a class, else
        0.
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
        n = n_support + n_query
        at_once = episodes_at_once(q, n)
        # One piece of memory for all blocks: fresh pages cost more than what is written to them.
        dtype = torch.promote_types(q.dtype, torch.float32)
        memory = torch.empty(at_once, n, d, dtype=dtype, device=q.device)
        scores = []
        for first in range(0, len(q), at_once):
            some = slice(first, first + at_once)
            rows = memory[: len(q[some])]
            self._write(x[some], rows[:, :n_support])
            self._write(q[some], rows[:, n_support:])
            points = Points(rows, self._lengths(rows))
            targets = class_masks(labels[some], n_way).to(dtype)
            scores.append(self.method.solve(points, targets))
        return torch.cat(scores).to(query.dtype).reshape(*lead, n_query, n_way)

    def _write(self, features: Tensor, into: Tensor) -> None:
        """SimpleShot's `transform` but for the length: centred on the way, in one pass."""
        if self.mean is None:
            into.copy_(features)
        else:
            torch.sub(features, self.mean.to(into.dtype), out=into)

    def _lengths(self, rows: Tensor) -> Tensor | None:
        if self.method.normalize == "none":
            return None
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return lengths.clamp_min_(SHORTEST)


def episodes_at_once(query: Tensor, n: int) -> int:
    """How many episodes of `n` images to work on together, for queries ``(e, q, d)``."""
    if query.device.type != "cpu":
        return len(query)
    return min(len(query), max(1, _NUMBERS_AT_ONCE_CPU // (n * query.shape[-1])))


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
