"""Transductive methods as the field writes them: one episode at a time, in plain PyTorch.

Each takes support features ``(s, d)``, labels ``(s,)`` and query features ``(q, d)``, and returns
scores ``(q, k)``. Gradients come from autograd, steps from `torch.optim.Adam`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


def one_by_one(
    method: Method, features: Tensor, labels: Tensor, support: Tensor, query: Tensor
) -> Tensor:
    """Scores ``(e, q, k)`` of episodes given by rows of features, ``(e, s)`` and ``(e, q)``."""
    return torch.stack(
        [method(features[s], labels, features[q]) for s, q in zip(support, query, strict=True)]
    )


def prototypes(x: Tensor, y: Tensor) -> Tensor:
    """Class means ``(k, d)``."""
    return torch.stack([x[y == label].mean(0) for label in range(len(torch.unique(y)))])


def bd_cspn(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Prototypes rectified by pseudo-labelled queries (Liu et al. 2020)."""
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    q = q + (x.mean(0, keepdim=True) - q.mean(0, keepdim=True))
    plain = F.normalize(prototypes(x, y), dim=-1)
    by_support = 10 * F.normalize(x, dim=-1) @ plain.t()
    by_query = 10 * F.normalize(q, dim=-1) @ plain.t()
    of_support = F.one_hot(y, len(plain)) * by_support.exp()
    of_query = F.one_hot(by_query.argmax(-1), len(plain)) * by_query.exp()
    total = of_support.sum(0) + of_query.sum(0)
    rectified = (of_support / total).t() @ x + (of_query / total).t() @ q
    return 10 * F.normalize(q, dim=-1) @ F.normalize(rectified, dim=-1).t()


def laplacian_shot(x: Tensor, y: Tensor, q: Tensor, *, mean: Tensor) -> Tensor:
    """Nearest rectified prototypes, smoothed over a graph of queries (Ziko et al. 2020)."""
    x, q = F.normalize(x - mean, dim=-1), F.normalize(q - mean, dim=-1)
    q = q + (x.mean(0, keepdim=True) - q.mean(0, keepdim=True))
    means, everyone = prototypes(x, y), torch.cat([x, q])
    cosines = F.normalize(everyone, dim=-1) @ F.normalize(means, dim=-1).t()
    weights, guess = (10 * cosines).softmax(-1), cosines.argmax(-1)
    for label in range(len(means)):
        own = guess == label
        if own.any():
            means[label] = (weights[own, label].unsqueeze(-1) * everyone[own]).mean(0)
    distances = torch.cdist(q, means) ** 2
    nearest = torch.cdist(q, q).topk(3, largest=False).indices[:, 1:]
    graph = torch.zeros(len(q), len(q), dtype=q.dtype).scatter_(1, nearest, 1.0)
    assigned, before = (-distances).softmax(-1), math.inf
    for step in range(20):
        assigned = (graph @ assigned - distances).softmax(-1)
        inside = (assigned + 1e-12).log() + distances - graph @ assigned
        energy = (assigned * inside).sum().item()
        if step > 1 and abs(energy - before) <= 1e-6 * abs(before):
            break
        before = energy
    return assigned.log()


def pt_map(x: Tensor, y: Tensor, q: Tensor, *, steps: int) -> Tensor:
    """Class centres under an even Sinkhorn plan (Hu et al. 2021)."""
    x, q = (F.normalize((z.relu() + 1e-6).pow(0.5), dim=-1) for z in (x, q))
    x, q = (F.normalize(z - z.mean(0, keepdim=True), dim=-1) for z in (x, q))
    known, centres = F.one_hot(y).to(x.dtype), prototypes(x, y)
    for step in range(steps + 1):
        plan = (-10 * torch.cdist(q, centres) ** 2).exp()
        plan = plan / plan.sum()
        rows = torch.zeros(len(q), dtype=q.dtype)
        for _ in range(1000):
            if (rows - plan.sum(1)).abs().max() < 1e-6:
                break
            rows = plan.sum(1)
            plan = plan / rows.unsqueeze(1)
            plan = plan * (len(q) / len(centres) / plan.sum(0))
        if step < steps:
            counts = known.sum(0) + plan.sum(0)
            means = (known.t() @ x + plan.t() @ q) / counts.unsqueeze(1)
            centres = centres + 0.2 * (means - centres)
    return plan.log()


def tim(x: Tensor, y: Tensor, q: Tensor, *, steps: int, alpha: float = 1.0) -> Tensor:
    """Mutual information of queries and predictions (Boudiaf et al. 2020, Veilleux et al. 2021)."""
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    weight = prototypes(x, y).requires_grad_()
    by_support, by_conditional = (0.1, 0.1) if alpha == 1 else (1.0, 1.0)
    optimiser = torch.optim.Adam([weight], lr=1e-4)

    def entropy(p: Tensor) -> Tensor:
        if alpha == 1:
            return -(p * (p + 1e-12).log()).sum(-1)
        return (1 - (p**alpha).sum(-1)) / (alpha - 1)

    for _ in range(steps):
        p = _distances(weight, q).softmax(-1)
        loss = by_support * F.cross_entropy(_distances(weight, x), y)
        loss = loss - entropy(p.mean(0)) + by_conditional * entropy(p).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return _distances(weight.detach(), q)


def tim_adm(x: Tensor, y: Tensor, q: Tensor, *, steps: int) -> Tensor:
    """TIM by updates in closed form (Boudiaf et al. 2020, Proposition 1)."""
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    weight, known = prototypes(x, y), F.one_hot(y).to(x.dtype)
    by_support, by_query = 0.1 / 1.1, len(x) / len(q)
    for _ in range(steps):
        of_support, of_query = (_distances(weight, z).softmax(-1) for z in (x, q))
        sharper = of_query**1.1
        wanted = sharper / sharper.sum(0, keepdim=True).sqrt()
        wanted = wanted / wanted.sum(1, keepdim=True)
        above = by_support * (
            (known - of_support).t() @ x + of_support.sum(0).unsqueeze(1) * weight
        )
        above = above + by_query * (
            (wanted - of_query).t() @ q + of_query.sum(0).unsqueeze(1) * weight
        )
        below = by_support * known.sum(0) + by_query * wanted.sum(0)
        weight = above / below.unsqueeze(1)
    return _distances(weight, q)


def _distances(weight: Tensor, z: Tensor) -> Tensor:
    """``-tau / 2 |z - w|^2`` with tau 15."""
    return 15 * (z @ weight.t() - 0.5 * (weight**2).sum(1) - 0.5 * (z**2).sum(1, keepdim=True))


def transductive_fine_tuning(x: Tensor, y: Tensor, q: Tensor, *, epochs: int) -> Tensor:
    """Cross-entropy of the support set and entropy of the queries (Dhillon et al. 2020)."""
    x, q = x.relu(), q.relu()
    means = prototypes(x, y)
    head = nn.Linear(x.shape[1], len(means))
    with torch.no_grad():
        head.weight.copy_(F.normalize(means, dim=-1))
        head.bias.zero_()
    x, q = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-5)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimiser.step()
        logits = head(q)
        optimiser.zero_grad()
        (-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()).backward()
        optimiser.step()
    scores: Tensor = head(q)
    return scores.detach()


def label_propagation(x: Tensor, y: Tensor, q: Tensor, *, mean: Tensor) -> Tensor:
    """Labels spread over a Gaussian graph, by a matrix inverse (Zhou et al. 2004)."""
    z = F.normalize(torch.cat([x, q]) - mean, dim=-1)
    graph = (-(torch.cdist(z, z) ** 2) / (2 * 0.25**2)).exp()
    graph.fill_diagonal_(0)
    spread = _spread(graph, y, 0.8)[len(x) :]
    return (spread / spread.sum(-1, keepdim=True)).log()


def tpn(x: Tensor, y: Tensor, q: Tensor, *, widths: nn.Module) -> Tensor:
    """The same over a graph of learned widths and nearest 20 neighbours (Liu et al. 2019)."""
    z = torch.cat([x, q])
    z = z / widths(z)
    graph = (-(torch.cdist(z, z) ** 2) / z.shape[1] / 2).exp()
    nearest = graph.topk(20, dim=-1).indices
    kept = torch.zeros_like(graph).scatter_(1, nearest, 1.0)
    return _spread(graph * ((kept + kept.t()) > 0), y, 0.99)[len(x) :].detach()


def _spread(graph: Tensor, y: Tensor, alpha: float) -> Tensor:
    n, root = len(graph), graph.sum(-1).rsqrt()
    system = torch.eye(n, dtype=graph.dtype) - alpha * root.unsqueeze(1) * graph * root
    known = torch.zeros(n, len(torch.unique(y)), dtype=graph.dtype)
    known[: len(y)] = F.one_hot(y).to(graph.dtype)
    inverse: Tensor = torch.linalg.inv(system)
    return inverse @ known


def gaussian_mixture(x: Tensor, y: Tensor, q: Tensor, *, mean: Tensor) -> Tensor:
    """EM of spherical Gaussians with one variance for all (after Nigam et al. 2000)."""
    x, q = F.normalize(x - mean, dim=-1), F.normalize(q - mean, dim=-1)
    z, known = torch.cat([x, q]), F.one_hot(y).to(x.dtype)
    n, d = z.shape
    means, shares = prototypes(x, y), known.mean(0)
    variance = ((z - z.mean(0)) ** 2).mean()
    before = -math.inf
    for _ in range(100):
        constant = d * (math.log(2 * math.pi) + variance.log())
        logs = shares.log() - 0.5 * (torch.cdist(z, means) ** 2 / variance + constant)
        found = (known * logs[: len(x)]).sum() + logs[len(x) :].logsumexp(-1).sum()
        if found.item() / n - before <= 1e-4:
            break
        before = found.item() / n
        p = torch.cat([known, logs[len(x) :].softmax(-1)])
        counts = p.sum(0)
        means, shares = (p.t() @ z) / counts.unsqueeze(1), counts / n
        variance = (p * torch.cdist(z, means) ** 2).sum() / (n * d)
    return logs[len(x) :].log_softmax(-1)
