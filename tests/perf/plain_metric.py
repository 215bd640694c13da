"""Metric methods as the field writes them: one episode at a time, in plain PyTorch.

Each takes support features ``(s, d)`` (or maps ``(s, c, h, w)``), labels ``(s,)``, and query
features ``(q, d)``, and returns scores ``(q, k)``. Learned layers are those of medbench's modules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from medbench.episodes import Shape

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


class Labelled(Dataset[tuple[Tensor, int]]):
    """Features or maps in memory, and the class of each."""

    def __init__(self, inputs: Tensor, labels: list[int]) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.inputs[i], self.labels[i]


class TaskSampler(Sampler[list[int]]):
    """Yields the rows of an episode's images, class after class, by Python's own generator."""

    def __init__(self, by_class: Sequence[Sequence[int]], shape: Shape, n_tasks: int) -> None:
        self.by_class = by_class
        self.shape = shape
        self.n_tasks = n_tasks

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.n_tasks):
            classes = random.sample(range(len(self.by_class)), self.shape.way)
            size = self.shape.shot + self.shape.query
            yield torch.cat(
                [torch.tensor(random.sample(self.by_class[c], size)) for c in classes]
            ).tolist()


Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support inputs and labels, query inputs and labels, of one episode."""


def collate(images: list[tuple[Tensor, int]], shape: Shape) -> Task:
    """One episode of images in the order of `TaskSampler`, with labels ``0 ... way - 1``."""
    classes = list(dict.fromkeys(label for _, label in images))
    inputs = torch.stack([image for image, _ in images])
    labels = torch.tensor([classes.index(label) for _, label in images])
    by_class = inputs.unflatten(0, (shape.way, -1)), labels.unflatten(0, (shape.way, -1))
    support, query = (
        [t[:, : shape.shot].flatten(0, 1) for t in by_class],
        [t[:, shape.shot :].flatten(0, 1) for t in by_class],
    )
    return support[0], support[1], query[0], query[1]


def prototypes(x: Tensor, y: Tensor) -> Tensor:
    """Class means ``(k, d)``."""
    return torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])


def protonet(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Minus the squared distances to the class means."""
    return -(torch.cdist(q, prototypes(x, y)) ** 2)


def cosine_centroid(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Cosines to the class means."""
    return F.normalize(q, dim=-1) @ F.normalize(prototypes(x, y), dim=-1).T


def simpleshot(x: Tensor, y: Tensor, q: Tensor, *, mean: Tensor) -> Tensor:
    """Nearest class mean of centred features of unit length."""
    return protonet(F.normalize(x - mean, dim=-1), y, F.normalize(q - mean, dim=-1))


def nearest_neighbour(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Minus the squared distance to the nearest support image of each class."""
    squared = torch.cdist(q, x) ** 2
    return -torch.stack([squared[:, y == c].amin(1) for c in range(int(y.max()) + 1)], 1)


def neighbours(x: Tensor, y: Tensor, q: Tensor, *, k: int) -> Tensor:
    """The votes of the `k` nearest support images; the nearer class wins a tie."""
    votes = F.one_hot(y[torch.cdist(q, x).topk(k, largest=False).indices]).sum(1)
    return votes + 0.5 * nearest_neighbour(x, y, q).softmax(-1)


def matching_networks(x: Tensor, y: Tensor, q: Tensor, *, scale: float = 1.0) -> Tensor:
    """The log of the attention that a query pays to each class."""
    attention = (scale * F.normalize(q, dim=-1) @ F.normalize(x, dim=-1).T).softmax(-1)
    return (attention @ F.one_hot(y).to(attention)).log()


def matching_networks_in_context(
    x: Tensor, y: Tensor, q: Tensor, *, along_support: nn.LSTM, reader: nn.LSTMCell
) -> Tensor:
    """Matching Networks with full context embeddings, as easyfsl writes them."""
    states, _ = along_support(x.unsqueeze(0))
    x = x + states.squeeze(0)[:, : x.shape[1]] + states.squeeze(0)[:, x.shape[1] :]
    hidden, cell = q, torch.zeros_like(q)
    for _ in range(len(x)):
        read = (hidden @ x.T).softmax(-1) @ x
        hidden, cell = reader(torch.cat([q, read], 1), (hidden, cell))
        hidden = hidden + q
    return matching_networks(x, y, hidden)


def feat(x: Tensor, y: Tensor, q: Tensor, *, head: nn.Module, temperature: float) -> Tensor:
    """Class means adapted to each other by self-attention (Ye et al. 2020)."""
    means = prototypes(x, y)
    queries, keys, values = head.queries(means), head.keys(means), head.values(means)
    attention = (queries @ keys.T / means.shape[1] ** 0.5).softmax(-1)
    adapted = head.norm(means + head.out(attention @ values))
    return -(torch.cdist(q, adapted) ** 2) / temperature


def simple_cnaps(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Mahalanobis distances under dense covariances, class by class, as in the authors' code."""
    scores = []
    of_task = torch.cov(x.T)
    for c in range(int(y.max()) + 1):
        own = x[y == c]
        of_class = torch.cov(own.T) if len(own) > 1 else torch.zeros_like(of_task)
        share = len(own) / (len(own) + 1)
        covariance = share * of_class + (1 - share) * of_task + torch.eye(x.shape[1])
        off = q - own.mean(0)
        scores.append(-0.5 * (off @ torch.linalg.inv(covariance) * off).sum(-1))
    return torch.stack(scores, 1)


def dsn(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Distances to the subspaces of classes by singular value decomposition, as the authors do."""
    scores = []
    for c in range(int(y.max()) + 1):
        own = x[y == c]
        mean = own.mean(0)
        basis = torch.linalg.svd((own - mean).T, full_matrices=False).U[:, : len(own) - 1]
        off = q - mean
        scores.append(-(off - off @ basis @ basis.T).square().sum(-1))
    return torch.stack(scores, 1)


def relation_network(x: Tensor, y: Tensor, q: Tensor, *, module: nn.Module) -> Tensor:
    """Every pair of class map and query map, concatenated, through the whole module."""
    classes = prototypes(x, y)
    pairs = torch.cat(
        [
            classes.unsqueeze(0).expand(len(q), -1, -1, -1, -1),
            q.unsqueeze(1).expand(-1, len(classes), -1, -1, -1),
        ],
        dim=2,
    ).flatten(0, 1)
    out = F.max_pool2d(F.relu(module.first_norm(module.first(pairs))), 2)
    out = F.max_pool2d(F.relu(module.second_norm(module.second(out))), 2)
    scores: Tensor = module.score(F.relu(module.hidden(out.flatten(1))))
    return scores.view(len(q), -1)
