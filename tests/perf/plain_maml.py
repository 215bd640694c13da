"""Meta-training as it is commonly written: one task at a time, in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from medbench.api import Task
from medbench_algorithms.optimisation.reptile import mini_batches


def outer_loop(
    net: nn.Module, steps: Iterable[Sequence[Task]], loss_of: Callable[[nn.Module, Task], Tensor]
) -> list[float]:
    """The losses of outer steps with Adam at 0.001 on the mean loss of each step's tasks."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for tasks in steps:
        optimiser.zero_grad()
        total = 0.0
        for task in tasks:
            loss = loss_of(net, task) / len(tasks)
            torch.autograd.backward(loss)
            total += loss.item()
        optimiser.step()
        losses.append(total)
    return losses


def maml(
    net: nn.Module, task: Task, lr: float, n_steps: int, *, second_order: bool = True
) -> Tensor:
    """The query loss of MAML."""
    weights = dict(net.named_parameters())
    for _ in range(n_steps):
        logits = functional_call(net, weights, (task.support.inputs,))
        loss = F.cross_entropy(logits, task.support.labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
        weights = {
            name: value - lr * gradient
            for (name, value), gradient in zip(weights.items(), gradients, strict=True)
        }
    return F.cross_entropy(functional_call(net, weights, (task.query,)), task.query_labels)


def anil(net: nn.Sequential, task: Task, lr: float, n_steps: int) -> Tensor:
    """The query loss of ANIL."""
    body, head = net
    features = body(task.support.inputs)
    weight, bias = head.weight, head.bias
    for _ in range(n_steps):
        loss = F.cross_entropy(F.linear(features, weight, bias), task.support.labels)
        by_weight, by_bias = torch.autograd.grad(loss, [weight, bias], create_graph=True)
        weight, bias = weight - lr * by_weight, bias - lr * by_bias
    return F.cross_entropy(F.linear(body(task.query), weight, bias), task.query_labels)


def reptile(
    net: nn.Module, steps: Sequence[Sequence[Task]], lr: float, n_steps: int, size: int
) -> list[float]:
    """The mean inner losses of Reptile's outer steps, whose rate falls from 1 to 0."""
    fast = copy.deepcopy(net)
    adam = torch.optim.Adam(fast.parameters(), lr=lr, betas=(0.0, 0.999))
    losses = []
    for step, tasks in enumerate(steps):
        towards = [torch.zeros_like(p) for p in net.parameters()]
        total = 0.0
        for task in tasks:
            fast.load_state_dict(net.state_dict())
            images = torch.cat([task.support.inputs, task.query])
            labels = torch.cat([task.support.labels, task.query_labels])
            for chosen in mini_batches(len(labels), size, n_steps, task.support.generator()):
                adam.zero_grad()
                loss = F.cross_entropy(fast(images[chosen]), labels[chosen])
                torch.autograd.backward(loss)
                adam.step()
                total += loss.item() / n_steps / len(tasks)
            for way, start, end in zip(towards, net.parameters(), fast.parameters(), strict=True):
                way += (end.detach() - start.detach()) / len(tasks)
        with torch.no_grad():
            for start, way in zip(net.parameters(), towards, strict=True):
                start += (1 - step / len(steps)) * way
        losses.append(total)
    return losses
