"""The two ways of running a cell's episodes: fast in batches, and one by one as a clinic would."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.allocations import TensorBytes
from medbench.answers import ByGroup, answers_for
from medbench.api import Algorithm, Detector, Predictor, Support
from medbench.backbones import inference_copy
from medbench.bench import Bench
from medbench.calibration import Calibration
from medbench.contention import CoreWait
from medbench.embed import ImageStore, View, features_of, form_of, forward, to_input
from medbench.energy import episode_energy
from medbench.episodes import Block
from medbench.errors import ContractError
from medbench.measure import PeakMemory, clock, settle
from medbench.modalities import Images
from medbench.quiet import NOBODY, Quiet
from medbench.training import Progress

WARM_UP_EPISODES = 2
# Fixed, and never a function of the machine, as the rounding of a matrix product can depend on it.
EPISODES_PER_BLOCK = 50
_BLOCK_BYTES = 1 << 28
# Predictions of the two lanes may differ where two classes tie to rounding, and nowhere else.
LANES_MUST_AGREE = 0.98
_INDUCTIVE_TOLERANCE = 1e-3
_COUNTED_EPISODE_S = 5.0


class Lanes:
    """The two ways of running a cell's episodes; both must predict alike."""

    def __init__(
        self,
        bench: Bench,
        algorithm: Algorithm,
        block: Block,
        cache: Path,
        *,
        episodes_per_block: int | None = None,
        quiet: Quiet = NOBODY,
    ) -> None:
        """`episodes_per_block` bounds the accuracy lane's blocks, where memory ran out before."""
        self._bench, self._algorithm, self._block, self._cache = bench, algorithm, block, cache
        self._most, self._quiet = episodes_per_block or EPISODES_PER_BLOCK, quiet
        self._traits = bench.entry.spec.traits
        works_on = self._traits.works_on
        self._view: View | None = None if works_on == "images" else works_on
        # Methods on features never see the network, so both lanes may embed with a faster equal.
        backbone = bench.backbone
        self._embedder = backbone if self._view is None else inference_copy(backbone)
        self._store = ImageStore(bench.target.opened.dataset)
        self._support, self._query = bench.target.rows(block)
        self._answers = answers_for(bench, block)

    def _input(self, rows: NDArray[np.int64]) -> Tensor:
        return to_input(self._store.shown(rows), self._bench.backbone.input, self._bench.device)

    def _given(self, inputs: Tensor, first: int, count: int | None) -> Support:
        return self._answers.support(inputs, first, count, **self._answers.given(first, count))

    def _adapt(self, support: Support) -> Predictor | Detector:
        kept = [t.clone() for t in _tensors(support)]
        predictor = self._answers.adapted(self._algorithm.adapt(support))
        if not all(map(_unchanged, kept, _tensors(support))):
            raise ContractError(
                f"{self._bench.entry.name}: adapt changed the support set it was given."
            )
        return predictor

    def accuracy(self, progress: Progress) -> Any:
        """Answers of every episode; classes' are scores ``(n, n_query, n_way)``."""
        n, answers = len(self._block), self._answers
        batched = self._view is not None and self._traits.batched
        out: list[Any] = []
        if self._view is not None:
            rows = np.unique(np.concatenate([self._support.ravel(), self._query.ravel()]))
            # All images of the pool, so that every shot of this target shares one cache file.
            rows = np.union1d(rows, self._bench.target.pool.images)
            features = features_of(
                self._embedder,
                self._bench.target.opened.dataset,
                self._store,
                rows,
                self._bench.device,
                self._cache,
                self._view,
                self._quiet,
            ).to(self._bench.device)
            support = torch.from_numpy(np.searchsorted(rows, self._support))
            query = torch.from_numpy(np.searchsorted(rows, self._query))
            step = self._episodes_per_block(features) if batched else 1
            for first in range(0, n, step):
                some = slice(first, min(first + step, n))
                s, q = _rows(features, support[some]), _rows(features, query[some])
                if batched:
                    predictor = self._adapt(self._given(s, first, len(s)))
                    found = answers.checked(predictor.predict(q), q, first)
                else:
                    predictor = self._adapt(self._given(s[0], first, None))
                    found = answers.checked(predictor.predict(q[0]), q[0], first)
                if first == 0:
                    self._check_inductive(s[:1], q[:1])
                out.append(answers.reduced(first, found, batched=batched))
                progress((first + len(s)) / n, f"episode {first + len(s)}/{n}")
        else:
            for i in range(n):
                predictor = self._adapt(self._given(self._input(self._support[i]), i, None))
                q = self._input(self._query[i])
                found = answers.checked(predictor.predict(q), q, i)
                if i == 0:
                    self._check_inductive(self._input(self._support[i])[None], q[None])
                out.append(answers.reduced(i, found, batched=False))
                progress((i + 1) / n, f"episode {i + 1}/{n}")
        return answers.joined(out)

    def _episodes_per_block(self, features: Tensor) -> int:
        shape = self._block.shape
        images = shape.way * (shape.shot + shape.query)
        numbers = features[0].numel() + self._answers.numbers_per_image
        size = images * numbers * features.element_size()
        if self._bench.target.multilabel:
            size *= self._bench.target.n_way  # each label is a task of its own
        return max(1, min(self._most, EPISODES_PER_BLOCK, _BLOCK_BYTES // size))

    def _check_inductive(self, support: Tensor, query: Tensor) -> None:
        """A method that says it is inductive answers queries alone as it does together."""
        if self._traits.is_transductive(self._bench.params) or not self._traits.deterministic:
            return
        predictor = self._adapt(self._given(support[0], 0, None))
        together = predictor.predict(query[0])
        few = min(3, query.shape[1])
        alone = [predictor.predict(query[0, i : i + 1]) for i in range(few)]
        gap = self._answers.gap(together, alone)
        if gap > _INDUCTIVE_TOLERANCE:
            raise ContractError(
                f"{self._bench.entry.name} declares itself inductive, and scores a query "
                f"differently alone than among others (by {gap:.2g} of their range). "
                "Declare the trait transductive, or make each query independent of the others."
            )

    def _seen(self, images: Images) -> Tensor:
        """What the algorithm sees of raw images: features, maps, or network inputs."""
        x = to_input(images, self._bench.backbone.input, self._bench.device)
        if self._view is None:
            return x
        with torch.inference_mode():
            features = forward(self._embedder, x, self._view)
        # A clone is an ordinary tensor again, which an algorithm may differentiate through.
        return features.clone()

    def cost(self, n: int) -> tuple[dict[str, Any], Any]:
        """Times and memory of `n` episodes one by one from raw images, and their answers."""
        self._answers.n_kept = max(n, self._answers.n_kept)
        device = self._bench.device
        times: dict[str, list[float]] = {
            k: [] for k in ("support_feature_s", "adapt_s", "query_feature_s", "predict_s")
        }
        waits: dict[str, list[float]] = {k: [] for k in ("adaptation_wait_s", "prediction_wait_s")}
        answers: list[Any] = []
        n_adapted = 0
        wait = CoreWait()

        def episode(i: int) -> tuple[list[float], list[float], Any, int]:
            support_images = self._store.shown(self._support[i])
            query_images = self._store.shown(self._query[i])
            given = self._answers.given(i, None)
            marks = [clock(device)]
            waited = [wait.seconds()]
            support = self._answers.support(self._seen(support_images), i, None, **given)
            marks.append(clock(device))
            adapted = self._algorithm.adapt(support)
            settle(device)
            waited.append(wait.seconds())
            marks.append(clock(device))
            waited.append(wait.seconds())
            predictor = self._answers.adapted(adapted)
            query = self._seen(query_images)
            marks.append(clock(device))
            result = predictor.predict(query)
            settle(device)
            waited.append(wait.seconds())
            marks.append(clock(device))
            checked = self._answers.checked(result, query, i)
            # Between the second and the third lies the clock that both stages share.
            return list(np.diff(marks)), list(np.diff(waited)[::2]), checked, predictor.n_adapted

        for i in range(min(WARM_UP_EPISODES, n)):
            episode(i)
        calibration = Calibration(device, wait)
        calibration.sample()
        gc.collect()
        _trim()
        with PeakMemory(device) as peak:
            for i in range(n):
                seconds, waited, result, n_adapted = episode(i)
                for kept, values in ((times, seconds), (waits, waited)):
                    for name, value in zip(kept, values, strict=True):
                        kept[name].append(value)
                answers.append(result)
        calibration.sample()
        tensors = self._tensor_bytes(episode, float(np.sum(list(times.values()))) / n)
        energy = episode_energy(device, episode, n)
        wait_known = wait.known
        wait.close()
        total_adapt = np.add(times["support_feature_s"], times["adapt_s"])
        total_predict = np.add(times["query_feature_s"], times["predict_s"])
        summary = {name: _spread(np.asarray(values)) for name, values in times.items()}
        summary["adaptation_s"] = _spread(total_adapt)
        summary["prediction_s"] = _spread(total_predict)
        load = os.getloadavg()[0]
        return (
            {
                "n_episodes": n,
                "warm_up_episodes": WARM_UP_EPISODES,
                "times": summary,
                # What two runs are compared by, episode by episode; 0.1 microseconds are enough.
                "episodes": {
                    name: [round(v, 7) for v in values]
                    for name, values in (times | (waits if wait_known else {})).items()
                },
                "calibration": calibration.as_dict(),
                "memory": peak.as_dict() | tensors.as_dict(),
                "energy": energy,
                "parameters_adapted": int(n_adapted),
                "network": form_of(self._embedder),
                "load_average": load,
            },
            self._answers.stacked(answers),
        )

    def _tensor_bytes(self, episode: Callable[[int], object], seconds: float) -> TensorBytes:
        """What tensors take in one more episode, which is not timed."""
        counted = TensorBytes()
        # On a GPU its own allocator's peak is exact; a long episode would list millions of events.
        if self._bench.device.type == "cpu" and seconds < _COUNTED_EPISODE_S:
            with counted:
                episode(0)
        return counted

    def measured(self, found: Any) -> dict[str, NDArray[np.float64]]:
        """Every metric of every episode, of what `accuracy` returned."""
        return self._answers.measured(found)

    def by_group(self, found: Any) -> ByGroup | None:
        """Right answers of every patient or image, of what `accuracy` returned; None of masks."""
        return self._answers.by_group(found)

    def pictured(self, slow: Any) -> bytes | None:
        """A few queries with the cost lane's answers, as a WebP file; None of classes."""
        return self._answers.pictured(slow)

    def compare(self, fast: Any, slow: Any) -> dict[str, float]:
        """Shares of equal predictions of the two lanes, for the record.

        The lanes embed images in batches of different sizes, which differ in rounding, and an
        iteration may blow that up. So where too few predictions are equal, the batched form is
        asked again about the cost lane's own features (``lanes_agree_on_same_features``).
        Raises `ContractError` when it differs on these, or where there is nothing to ask again.
        """
        agree = self._answers.agreement(fast, slow)
        found = {"lanes_agree": agree}
        if not self._traits.deterministic or agree >= LANES_MUST_AGREE:
            return found
        if self._view is not None and self._traits.batched:
            again = self._batched_on_cost_features(len(slow))
            agree = self._answers.agreement(again, slow)
            found["lanes_agree_on_same_features"] = agree
        if agree < LANES_MUST_AGREE:
            raise ContractError(
                f"{self._bench.entry.name}: predictions in batches and one by one agree on "
                f"{100 * agree:.1f} % of the queries. Its batched form differs from its single "
                "form, it keeps state between episodes, or it draws from a global generator."
            )
        return found

    def _batched_on_cost_features(self, n: int) -> Any:
        def features(rows: NDArray[np.int64]) -> Tensor:
            return torch.stack([self._seen(self._store.shown(episode)) for episode in rows])

        out = []
        for first in range(0, n, self._most):
            some = slice(first, min(first + self._most, n))
            query = features(self._query[some])
            support = self._given(features(self._support[some]), first, len(query))
            found = self._adapt(support).predict(query)
            out.append(self._answers.checked(found, query, first))
        return self._answers.concatenated(out)


def _tensors(support: Support) -> list[Tensor]:
    found = (support.inputs, support.labels, support.masks, support.classes)
    return [tensor for tensor in found if tensor is not None]


def _unchanged(before: Tensor, after: Tensor) -> bool:
    if torch.equal(before, after):
        return True
    # A missing modality may be NaN, which equals nothing.
    absent = before.isnan()
    return torch.equal(absent, after.isnan()) and torch.equal(before[~absent], after[~absent])


def _rows(features: Tensor, index: Tensor) -> Tensor:
    # Twice as fast as indexing with a matrix of rows.
    flat = features.index_select(0, index.reshape(-1).to(features.device))
    return flat.view(*index.shape, *features.shape[1:])


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    q25, median, q75, p95 = np.percentile(values, [25, 50, 75, 95])
    return {
        "median": float(median),
        "p95": float(p95),
        "iqr": float(q75 - q25),
        "mean": float(values.mean()),
        "min": float(values.min()),
    }


def _trim() -> None:
    # Freed memory that malloc still holds would hide what the next scope allocates.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
