"""Layers with cheap second derivatives equal PyTorch's, alone and vectorised over tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from medbench_algorithms.common import twice_differentiable as own
from medbench_algorithms.common.twice_differentiable import CheapSecondDerivatives

Layer = Callable[..., Any]
CHANNELS = 4


def numbers(*shape: int) -> Tensor:
    # Far from ties, so that finite differences do not change the greatest of a window.
    count = int(torch.Size(shape).numel())
    return (torch.randperm(count).double() / count - 0.4).view(shape).requires_grad_()


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)


LAYERS: dict[str, tuple[Layer, list[tuple[int, ...]]]] = {
    "convolution": (F.conv2d, [(3, 3), (3,)]),
    "convolution without bias": (lambda x, w: F.conv2d(x, w, padding=1), [(3, 3)]),
    "strided convolution": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        [(3, 2), (3,)],
    ),
    "BatchNorm": (normalised, [(), ()]),
    "max-pooling": (lambda x: F.max_pool2d(x, 2), []),
    "overlapping max-pooling": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), []),
}


def inputs_of(name: str) -> list[Tensor]:
    torch.manual_seed(0)
    _, shapes = LAYERS[name]
    if name == "BatchNorm":
        return [numbers(3, CHANNELS, 4, 5), numbers(CHANNELS), numbers(CHANNELS)]
    weights = [numbers(3, CHANNELS, *s) if len(s) == 2 else numbers(*s) for s in shapes]
    return [numbers(2, CHANNELS, 5, 6), *weights]


def cheap(layer: Layer) -> Layer:
    def run(*inputs: Tensor) -> Any:
        with CheapSecondDerivatives():
            return layer(*inputs)

    return run


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_both_derivatives_are_right(name: str, layout: torch.memory_format) -> None:
    layer, _ = LAYERS[name]
    x, *weights = inputs_of(name)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        found: Tensor = cheap(layer)(x.contiguous(memory_format=layout), *weights)
        return found

    found = run(x, *weights)
    assert type(found.grad_fn).__name__.startswith("_")  # ours, not PyTorch's
    torch.testing.assert_close(found, layer(x, *weights))
    assert torch.autograd.gradcheck(run, (x, *weights))
    assert torch.autograd.gradgradcheck(run, (x, *weights))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shared", [False, True])
def test_vectorised_over_tasks_each_is_as_alone(name: str, shared: bool) -> None:
    """Three tasks, with weights of their own or shared; up to the second derivative."""
    layer, _ = LAYERS[name]
    x, *weights = inputs_of(name)
    tasks = torch.stack([x, 2 * x.flip(0), x.flip(2)]).detach().requires_grad_()
    dims = tuple(None if shared else 0 for _ in weights)
    stacked = [
        w if shared else torch.stack([w, 0.5 * w, -w]).detach().requires_grad_() for w in weights
    ]

    def one_by_one(tasks: Tensor, *weights: Tensor) -> Tensor:
        return torch.stack(
            [layer(x, *(w if shared else w[i] for w in weights)) for i, x in enumerate(tasks)]
        )

    results = []
    for run in (vmap(cheap(layer), (0, *dims)), one_by_one):
        out = run(tasks, *stacked)
        torch.manual_seed(1)  # numbers in the order of the shape, whatever the layout
        leaves = [tasks, *stacked]
        first = torch.autograd.grad((out * torch.randn(out.shape)).sum(), leaves, create_graph=True)
        length = torch.stack([g.square().sum() for g in first if g is not None]).sum()
        # Pooling is linear: its second derivative by the input is none.
        second = torch.autograd.grad(length, leaves, allow_unused=True) if weights else ()
        results.append((out, *first, *second))
    for found, expected in zip(*results, strict=True):
        if expected is None:
            assert found is None or not found.any()
        else:
            torch.testing.assert_close(found, expected)


def test_third_derivatives_are_refused_rather_than_wrong() -> None:
    x, weight, bias = inputs_of("BatchNorm")
    (first,) = torch.autograd.grad(
        cheap(normalised)(x, weight, bias).pow(3).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="Third derivatives were asked for"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_what_does_not_fit_goes_to_pytorch() -> None:
    x = numbers(2, CHANNELS, 4, 4)
    half = x.detach().bfloat16()
    weight = numbers(3, CHANNELS, 3, 3)
    running = torch.zeros(CHANNELS).double(), torch.ones(CHANNELS).double()
    with CheapSecondDerivatives():
        same = F.conv2d(x, weight, padding="same")
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        found = [
            F.batch_norm(x, *running),
            F.batch_norm(x, None, None, training=True),
            F.batch_norm(x.flatten(2), None, None, *running, training=True),
            F.max_pool2d(half, 2),
        ]
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            F.batch_norm(x[:1, :, :1, :1], None, None, *running, training=True)
    torch.testing.assert_close(same, F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(pooled.flatten(2), x.flatten(2).gather(2, places.flatten(2)))
    assert not any(type(f.grad_fn).__name__.startswith("_") for f in (same, pooled, *found))
    assert own.batch_norm(x, None, None, nn.Parameter(running[1]), None, True).shape == x.shape
