"""What every task kind says of its answers, for the two lanes to ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.api import Detector, Predictor, Support, derive_seed
from medbench.bench import Bench
from medbench.draws import Ints
from medbench.episodes import Block
from medbench.errors import ContractError, NonFinite
from medbench.pictures import MOST

Floats = NDArray[np.float64]
Checked = TypeVar("Checked")
"""One episode's checked answers, or a block's: on the CPU, nothing of the plugin's left."""
Joined = TypeVar("Joined")
"""All that the accuracy lane keeps of the answers of every episode."""
ByGroup = tuple[str, dict[str, NDArray[Any]]]
"""What groups queries, ``patient`` or ``image``, and ``group``, ``answers``, ``right`` of each."""


class Answers(ABC, Generic[Checked, Joined]):
    """One task kind's side of a cell: what support sets hold, and what comes of predictions."""

    def __init__(self, bench: Bench, block: Block) -> None:
        """`bench` is the cell's, `block` its episodes."""
        self._bench, self._block = bench, block
        self._name = bench.entry.name
        self._labels = torch.from_numpy(
            np.ascontiguousarray(bench.target.support_labels(block))
        ).to(bench.device)
        known = bench.source_classes
        # Nobody is told which classes these are who does not ask.
        self._classes = (
            None if known is None else torch.from_numpy(known[block.classes]).to(bench.device)
        )
        # How many of a query's dimensions belong to one image.
        self._n_dims = bench.input_dims
        self.n_kept = bench.target.protocol.cost_episodes
        """Of so many episodes, the first, the accuracy lane's answers can be compared."""

    @property
    def numbers_per_image(self) -> int:
        """How many numbers target and answer of one image add to its features."""
        return 0

    def given(self, first: int, count: int | None) -> dict[str, Any]:
        """The targets of one support set (`count` None), or of `count`, read and on the device."""
        labels = self._labels[first] if count is None else self._labels[first : first + count]
        return {"labels": labels}

    def support(self, inputs: Tensor, first: int, count: int | None, **given: Any) -> Support:
        """A support set for one episode (`count` None), or for `count` of them."""
        target = self._bench.target
        seeds = tuple(
            derive_seed("adapt", self._bench.seed, target.episode_key, i)
            for i in range(first, first + (count or 1))
        )
        classes = self._classes
        if classes is not None:
            classes = classes[first] if count is None else classes[first : first + count]
        return Support(inputs, n_way=target.n_way, seeds=seeds, classes=classes, **given)

    def adapted(self, found: object) -> Predictor | Detector:
        """What adaptation returned. Raises `ContractError` when it cannot answer."""
        if not isinstance(found, Predictor):
            raise ContractError(
                f"{self._name}: adapt returned {type(found).__name__}, and a "
                "medbench.api.Predictor is needed."
            )
        return found

    def _tensor(self, found: Any, query: Tensor, first: int, *after: int) -> Tensor:
        """Scores ``(..., n_query, n_way, *after)``. Raises `ContractError` or `NonFinite`."""
        lead = query.shape[: query.ndim - self._n_dims]
        want = (*lead, self._bench.target.n_way, *after)
        if not isinstance(found, Tensor) or tuple(found.shape) != want:
            seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ContractError(f"{self._name}: predict returned {seen}, and {want} is needed.")
        if not found.is_floating_point():
            raise ContractError(f"{self._name}: predict returned {found.dtype}; scores are floats.")
        if not torch.isfinite(found).all():
            raise NonFinite(
                f"{self._name}: scores are not finite in episode {first} or soon after."
            )
        return found.detach()

    @abstractmethod
    def checked(self, found: Any, query: Tensor, first: int) -> Checked:
        """What predict returned for `query`, held to the contract.

        Raises `ContractError` or `NonFinite`.
        """

    @abstractmethod
    def reduced(self, first: int, answers: Checked, *, batched: bool) -> Any:
        """What the accuracy lane keeps of a block that starts at episode `first`."""

    @abstractmethod
    def joined(self, parts: list[Any]) -> Joined:
        """What `reduced` kept of all blocks, in order."""

    @abstractmethod
    def stacked(self, answers: list[Checked]) -> Any:
        """The cost lane's answers, an episode each."""

    @abstractmethod
    def concatenated(self, answers: list[Checked]) -> Any:
        """As `stacked`, of blocks of episodes."""

    def gap(self, together: Any, alone: list[Any]) -> float:
        """How far answers for single queries are from the same queries' among others.

        Both as predict returned them.
        """
        scores, few = together.detach(), torch.cat([a.detach() for a in alone])
        # Scores may be huge and nearly alike, or tiny: what matters is the size of a gap among the
        # differences between scores, as far as rounding lets these be told.
        scale = (scores.max() - scores.min()).clamp_min(1e-3 * float(scores.abs().max()))
        scale = scale.clamp_min(torch.finfo(scores.dtype).tiny)
        return float(((scores[: len(few)] - few).abs() / scale).max())

    @abstractmethod
    def agreement(self, fast: Any, slow: Any) -> float:
        """The share of the cost lane's predictions (`slow`) that the accuracy lane has too.

        `fast` is what `joined` or `concatenated` gave.
        """

    @abstractmethod
    def measured(self, found: Joined) -> dict[str, Floats]:
        """Every metric of every episode."""

    def by_group(self, found: Joined) -> ByGroup | None:
        """How often the queries of each group were answered right, over all episodes.

        None where an answer is not right or wrong: a mask or a box is more or less so.
        """
        return None

    def pictured(self, answers: Any) -> bytes | None:
        """The first queries of the first episode with these answers (as `stacked` gave them).

        A WebP file, or None where an answer has no place in the image.
        """
        return None

    def _to_show(self) -> tuple[Ints, NDArray[np.uint8]]:
        """Which queries a picture shows, and their images ``(n, *space, C)``, C 1 or 3.

        Of several modalities it is the first.
        """
        rows = self._block.query[0][:MOST]
        dataset = self._bench.target.opened.dataset
        images = dataset.read(rows)
        if dataset.info.modalities:
            images = images[..., : dataset.info.modalities[0].channels]
        return rows, images
