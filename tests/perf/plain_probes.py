"""Probes on frozen features as the field writes them: one episode at a time, PyTorch and sklearn.

Each takes support features ``(s, d)``, labels ``(s,)`` and query features ``(q, d)``, and returns
scores ``(q, k)``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]


def _head(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def fine_tuned_head(
    x: Tensor, y: Tensor, q: Tensor, *, start: tuple[Tensor, Tensor] | None, batches: list[Tensor]
) -> Tensor:
    """SGD with the settings of "A Closer Look" over the given batches of rows."""
    head = nn.Linear(x.shape[1], int(y.max()) + 1) if start is None else _head(*start)
    sgd = torch.optim.SGD(
        head.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001
    )
    for batch in batches:
        sgd.zero_grad()
        F.cross_entropy(head(x[batch]), y[batch]).backward()
        sgd.step()
    with torch.no_grad():
        return head(q)


class CosineClassifier(nn.Module):
    """``scale * g * cos(v, x)``, as weight normalisation makes it in "A Closer Look"."""

    def __init__(self, start: Tensor, scale: float) -> None:
        super().__init__()
        self.v = nn.Parameter(start.clone())
        self.g = nn.Parameter(start.norm(dim=1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g.unsqueeze(1) * F.normalize(self.v, dim=1)
        return self.scale * F.linear(F.normalize(x, dim=1), weight)


def cosine_head(
    x: Tensor, y: Tensor, q: Tensor, *, start: Tensor, batches: list[Tensor], scale: float
) -> Tensor:
    """A cosine classifier, fine-tuned by SGD over the given batches of rows."""
    head = CosineClassifier(start, scale)
    sgd = torch.optim.SGD(
        head.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001
    )
    for batch in batches:
        sgd.zero_grad()
        F.cross_entropy(head(x[batch]), y[batch]).backward()
        sgd.step()
    with torch.no_grad():
        scores: Tensor = head(q)
    return scores


def logistic_regression(x: Tensor, y: Tensor, q: Tensor, *, precise: bool = False) -> Tensor:
    """One fit of scikit-learn's, with its defaults; `precise`: to the end, in float64."""
    if precise:
        judge = LogisticRegression(solver="newton-cg", tol=1e-9, max_iter=10_000)
        centre = x.double().mean(0)
        x, q = x.double() - centre, q.double() - centre
    else:
        judge = LogisticRegression(max_iter=1000)
    judge.fit(x.numpy(), y.numpy())
    return torch.from_numpy(judge.decision_function(q.numpy()))


def swept_probe(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Standardised features, C swept over nine values by stratified folds, then one more fit."""
    X, labels = x.double().numpy(), y.numpy()
    mean, scale = X.mean(0), X.std(0)
    scale[scale == 0] = 1
    X = (X - mean) / scale
    grid = np.logspace(-4, 4, 9)
    n_folds = min(5, int(np.bincount(labels).min()))
    best = 1.0
    if n_folds > 1:
        losses = np.zeros(len(grid))
        for kept, held in StratifiedKFold(n_folds).split(X, labels):
            for i, C in enumerate(grid):
                probe = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
                logits = probe.fit(X[kept], labels[kept]).decision_function(X[held])
                p = log_softmax(logits, axis=1)
                losses[i] -= p[np.arange(len(held)), labels[held]].sum()
        best = float(grid[losses.argmin()])
    probe = LogisticRegression(C=best, class_weight="balanced", max_iter=1000).fit(X, labels)
    return torch.from_numpy(probe.decision_function((q.double().numpy() - mean) / scale))


def tip_adapter(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Nearest centroid and a cache of the support set (Zhang et al. 2022), alpha 1, beta 5.5."""
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    means = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])
    affinity = (-5.5 * (1 - q @ x.T)).exp()
    return affinity @ F.one_hot(y).to(q) + 10 * q @ F.normalize(means, dim=-1).T


def tip_adapter_f(x: Tensor, y: Tensor, q: Tensor, *, epochs: int = 20) -> Tensor:
    """Tip-Adapter, its keys tuned by AdamW under a cosine schedule."""
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    means = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])
    values, centroids = F.one_hot(y).to(q), F.normalize(means, dim=-1)
    adapter = nn.Linear(x.shape[1], len(x), bias=False)
    adapter.weight = nn.Parameter(x.clone())
    adamw = torch.optim.AdamW(adapter.parameters(), lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, epochs)

    def logits(features: Tensor) -> Tensor:
        affinity = (-5.5 * (1 - adapter(features))).exp()
        return affinity @ values + 10 * features @ centroids.T

    for _ in range(epochs):
        adamw.zero_grad()
        F.cross_entropy(logits(x), y).backward()
        adamw.step()
        schedule.step()
    with torch.no_grad():
        return logits(q)


def distribution_calibration(
    x: Tensor, y: Tensor, q: Tensor, *, means: Array, covariances: Array, drawn: Tensor | None
) -> Tensor:
    """Tukey's power, Gaussians borrowed from source classes, logistic regression on draws.

    As in the authors' code; with `drawn` ``(n_support, m, d)`` those features are taken.
    """
    rng = np.random.default_rng()
    X, Q = (np.sign(a) * np.abs(a) ** 0.5 for a in (x.double().numpy(), q.double().numpy()))
    labels = y.numpy()
    shot = int(np.bincount(labels).min())
    features, classes = [X], [labels]
    for i, example in enumerate(X):
        if drawn is None:
            near = np.argsort(np.linalg.norm(means - example, axis=1))[:2]
            mean = np.concatenate([means[near], example[None]]).mean(0)
            covariance = covariances[near].mean(0) + 0.21
            features.append(rng.multivariate_normal(mean, covariance, size=750 // shot))
        else:
            features.append(drawn[i].numpy())
        classes.append(np.full(750 // shot, labels[i]))
    judge = LogisticRegression(max_iter=1000).fit(np.concatenate(features), np.concatenate(classes))
    return torch.from_numpy(judge.decision_function(Q))
