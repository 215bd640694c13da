"""Scores of episodes, many at a time; numpy only.

Every function takes probabilities or predictions of a block of episodes and returns one number an
episode. The labels never leave this side: no plugin sees those of a query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1", "nll", "ece")
ECE_BINS = 15


def classification(scores: NDArray[Any], labels: Ints) -> dict[str, Floats]:
    """All classification metrics of a block.

    `scores`: ``(n, n_query, n_way)`` logits; `labels`: ``(n, n_query)`` in ``0 ... n_way - 1``.
    Each value is ``(n,)``: accuracy, balanced accuracy (mean recall of the classes present),
    macro one-against-rest AUROC (of the classes that have both kinds of query; NaN when none
    has), macro F1 (0 for a class never predicted and never there), negative log-likelihood in
    nats, and the expected calibration error of the top label in 15 equal bins (Guo et al. 2017),
    which is biased upwards by the few queries of one episode and is meant for comparing methods.
    """
    logits = scores.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    p = np.exp(log_p)
    predicted = logits.argmax(axis=-1)
    truth = labels[..., None] == np.arange(logits.shape[-1])  # (n, n_query, n_way)
    chosen = predicted[..., None] == np.arange(logits.shape[-1])
    hits = (truth & chosen).sum(axis=1).astype(np.float64)
    n_true, n_chosen = truth.sum(axis=1), chosen.sum(axis=1)
    right = predicted == labels
    return {
        "accuracy": right.mean(axis=1),
        "balanced_accuracy": _mean_where(hits / np.maximum(n_true, 1), n_true > 0),
        "auroc": _auroc(p, truth),
        "f1": (2 * hits / np.maximum(n_true + n_chosen, 1)).mean(axis=-1),
        "nll": -np.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0].mean(axis=1),
        "ece": _ece(p.max(axis=-1), right),
    }


def _mean_where(values: Floats, where: NDArray[np.bool_]) -> Floats:
    count = where.sum(axis=-1)
    total = np.where(where, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _auroc(p: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Mann-Whitney's U with midranks, averaged over the classes of each episode."""
    ranks = rankdata(p, axis=1)
    pos = truth.sum(axis=1).astype(np.float64)
    neg = truth.shape[1] - pos
    u = (ranks * truth).sum(axis=1) - pos * (pos + 1) / 2
    return _mean_where(u / np.maximum(pos * neg, 1), (pos > 0) & (neg > 0))


def _ece(confidence: Floats, right: NDArray[np.bool_]) -> Floats:
    n, queries = confidence.shape
    # Bins are (a, b]: a confidence of exactly 1/15 belongs to the first.
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    flat = (np.arange(n)[:, None] * ECE_BINS + bins).reshape(-1)
    gap = (right - confidence).reshape(-1)
    sums = np.bincount(flat, weights=gap, minlength=n * ECE_BINS).reshape(n, ECE_BINS)
    total: Floats = np.abs(sums).sum(axis=1) / queries
    return total
