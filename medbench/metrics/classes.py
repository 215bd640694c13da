"""Scores of episodes whose answers are classes or labels, many episodes at a time.

Every function takes probabilities or predictions of a block of episodes and returns one number an
episode. The labels never leave this side: no plugin sees those of a query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1", "nll", "ece")
MULTILABEL_METRICS = (*METRICS, "average_precision")
ORDINAL_METRICS = ("grade_error", "kappa")
ALL_METRICS = (*MULTILABEL_METRICS, *ORDINAL_METRICS)
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


def multilabel(scores: NDArray[Any], truth: NDArray[Any]) -> dict[str, Floats]:
    """All multilabel metrics of a block, each ``(n,)``.

    `scores`: ``(n, n_query, n_labels)`` log-odds; `truth`: 0 or 1, of that shape. A label is
    predicted where its probability is above one half. Accuracy is the share of right answers over
    queries and labels (as MedMNIST counts it); balanced accuracy, AUROC, F1 and average precision
    are computed label by label and averaged over the labels that have both kinds of query (F1 over
    all labels, 0 for a label that is never there and never predicted); the negative log-likelihood
    (nats) and the calibration error are over all answers.
    """
    logits = scores.astype(np.float64)
    truth = truth.astype(bool)
    # log(1 + exp(-x)) without overflow.
    log_yes, log_no = -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits)
    p = np.exp(log_yes)
    chosen = logits > 0
    right = chosen == truth
    n_true, n_chosen = truth.sum(axis=1), chosen.sum(axis=1)
    n_false = truth.shape[1] - n_true
    both = (n_true > 0) & (n_false > 0)
    hits = (truth & chosen).sum(axis=1).astype(np.float64)
    rejected = (~truth & ~chosen).sum(axis=1) / np.maximum(n_false, 1)
    flat = (len(logits), -1)
    answers = np.where(truth, log_yes, log_no).reshape(flat)
    confidence = np.where(chosen, p, 1.0 - p).reshape(flat)
    return {
        "accuracy": right.reshape(flat).mean(axis=1),
        "balanced_accuracy": _mean_where((hits / np.maximum(n_true, 1) + rejected) / 2, both),
        "auroc": _auroc(logits, truth),
        "f1": (2 * hits / np.maximum(n_true + n_chosen, 1)).mean(axis=-1),
        "nll": -answers.mean(axis=1),
        "ece": _ece(confidence, right.reshape(flat)),
        "average_precision": _mean_where(_average_precision(logits, truth), both),
    }


def ordinal(scores: NDArray[Any], labels: Ints, grades: Ints) -> dict[str, Floats]:
    """What ordered classes allow besides, each ``(n,)``.

    `scores` ``(n, n_query, n_way)`` and `labels` ``(n, n_query)`` as in `classification`;
    ``grades`` ``(n, n_way)`` is the rank of the class behind each label. ``grade_error``: the mean
    distance between predicted and true grade; ``kappa``: Cohen's kappa with quadratic weights
    (Cohen 1968), NaN where chance agreement is already perfect.
    """
    predicted = np.take_along_axis(grades, scores.argmax(axis=-1), axis=1).astype(np.float64)
    true = np.take_along_axis(grades, labels, axis=1).astype(np.float64)
    seen = ((predicted - true) ** 2).mean(axis=1)
    # Mean squared difference of independent draws from the two marginals.
    expected = (
        predicted.var(axis=1) + true.var(axis=1) + (predicted.mean(axis=1) - true.mean(axis=1)) ** 2
    )
    kappa = np.where(expected > 0, 1.0 - seen / np.where(expected > 0, expected, 1.0), np.nan)
    return {"grade_error": np.abs(predicted - true).mean(axis=1), "kappa": kappa}


def by_group(scores: NDArray[Any], truth: NDArray[Any], groups: Ints) -> dict[str, NDArray[Any]]:
    """Answers to the queries of each group (a patient, or an image), over all episodes of a block.

    `scores` ``(n, n_query, n_way)``; `truth` ``(n, n_query)`` labels, or ``(n, n_query, n_labels)``
    of 0 and 1; `groups` ``(n, n_query)``. Returns ``group``, ``answers`` and ``right``, each
    ``(n_groups,)``: what an interval that covers new patients needs. Right answers are those that
    the accuracy counts.
    """
    if truth.ndim == scores.ndim:
        right, each = ((scores > 0) == truth.astype(bool)).sum(axis=-1), truth.shape[-1]
    else:
        right, each = (scores.argmax(axis=-1) == truth).astype(np.int64), 1
    names, place = np.unique(groups.reshape(-1), return_inverse=True)
    return {
        "group": names.astype(np.int64),
        "answers": each * np.bincount(place),
        "right": np.bincount(place, weights=right.reshape(-1)).astype(np.int64),
    }


def _average_precision(scores: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Area under the precision-recall steps of each label, ``(n, n_labels)``; ties count as one.

    The mean over positives of the precision at their score, every query of that score or a higher
    one being retrieved.
    """
    # Ascending ranks of the negated scores with the largest rank for ties: how many are retrieved.
    _, retrieved = _tied_ranks(-scores)
    n_true = truth.sum(axis=1)
    # The same among positives only: negatives are pushed behind everything.
    behind = np.where(truth, -scores, np.inf)
    _, found = _tied_ranks(behind)
    precision = np.where(truth, found / retrieved, 0.0)
    total: Floats = precision.sum(axis=1) / np.maximum(n_true, 1)
    return total


def _tied_ranks(values: Floats) -> tuple[Ints, Ints]:
    """The lowest and highest rank, from 1 on axis 1, of those equal to each of `values`.

    As scipy's ``rankdata``, whose import would take longer than the rest of a small cell.
    """
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones_like(ordered[:, :1], dtype=bool)
    place = np.arange(1, values.shape[1] + 1).reshape(-1, *[1] * (values.ndim - 2))
    begins = np.where(np.concatenate([edge, differs], axis=1), place, 0)
    ends = np.where(np.concatenate([differs, edge], axis=1), place, values.shape[1])
    first, last = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(first, order, np.maximum.accumulate(begins, axis=1), axis=1)
    highest = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    np.put_along_axis(last, order, highest, axis=1)
    return first, last


def _mean_where(values: Floats, where: NDArray[np.bool_]) -> Floats:
    count = where.sum(axis=-1)
    total = np.where(where, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _auroc(p: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Mann-Whitney's U with midranks, averaged over the classes of each episode."""
    first, last = _tied_ranks(p)
    ranks = (first + last) / 2
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
