"""Layers that are cheap to differentiate twice, as second-order MAML does, and to vectorise.

PyTorch composes the second derivative of BatchNorm of two dozen small operations, and that of
max-pooling leaves the channels-last layout, after which every layer below is slow. Here the first
derivative of each layer is a function of its own, whose derivative is written out with the kernels
of the first. Third derivatives are refused.

These layers do to every channel the same, so tasks that are vectorised by ``torch.func.vmap``
become channels, and a convolution with weights for each task a grouped one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_aten: Final = torch.ops.aten
_PRECISIONS: Final = (torch.float32, torch.float64)


@final
class CheapSecondDerivatives(TorchFunctionMode):
    """Within it convolution, BatchNorm by batch statistics and max-pooling take the layers here.

    Attention takes its plain formula, as its fused kernels have no second derivative. Values and
    gradients are those of PyTorch's own to rounding. Running statistics, which a functional call
    throws away, are not updated. Calls that do not fit (other precisions, BatchNorm without scale
    and shift or by running statistics, images not in two dimensions) go to PyTorch.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the layer of this module in the place of PyTorch's."""
        own = _LAYERS.get(func, func)
        return own(*args, **(kwargs or {}))


def conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`: images ``(b, c, h, w)``, weight ``(o, c / groups, kh, kw)``."""
    if isinstance(padding, str) or not _fits(images):
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
    shape = (_pair(stride), _pair(padding), _pair(dilation))
    found: Tensor = _Convolution.apply(images, weight, bias, *shape, groups)
    return found


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of ``(b, c, h, w)``."""
    fits = training and weight is not None and bias is not None and _fits(x)
    if not fits or x.numel() == x.shape[1]:  # PyTorch refuses a single number a channel
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    found: Tensor = _BatchNorm.apply(x, weight, bias, eps)[0]
    return found


def max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`torch.max_pool2d` of ``(b, c, h, w)``."""
    if return_indices or not _fits(x):
        pool: Any = F.max_pool2d
        return pool(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    shape = (_pair(kernel_size), _pair(stride or kernel_size), _pair(padding), _pair(dilation))
    return _MaxPool.apply(x, (*shape, ceil_mode))[0]


def attention(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


_LAYERS: Final[Mapping[Any, Callable[..., Any]]] = {
    torch.conv2d: conv2d,
    F.batch_norm: batch_norm,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.scaled_dot_product_attention: attention,
}


def _fits(x: Tensor) -> bool:
    return x.dim() == 4 and x.dtype in _PRECISIONS


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _last_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    # PyTorch's `once_differentiable` lets `autograd.grad` pass it by, and be wrong.
    @wraps(backward)
    def refusing(*args: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Third derivatives were asked for (create_graph in a second derivative), which "
                "layers within CheapSecondDerivatives do not have. Leave that context out."
            )
        return backward(*args)

    return refusing


# --- tasks as channels ---------------------------------------------------------------------------


def _to_channels(x: Tensor, dim: int | None, n_tasks: int) -> Tensor:
    """``(b, n_tasks * c, h, w)`` of images that have tasks in dimension `dim`, or share them."""
    by_task = x.unsqueeze(1).expand(-1, n_tasks, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    x = by_task.flatten(1, 2)
    return x.to(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _to_rows(weight: Tensor | None, dim: int | None, n_tasks: int) -> Tensor | None:
    """``(n_tasks * o, ...)`` of weights ``(o, ...)``, those of one task after the other."""
    if weight is None:
        return None
    weight = weight.expand(n_tasks, *weight.shape) if dim is None else weight.movedim(dim, 0)
    return weight.flatten(0, 1)


# --- convolution ---------------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        return _convolved(x, weight, bias, (stride, padding, dilation, groups))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, *ctx.shape = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        wanted = ctx.needs_input_grad[:3]
        found = _ConvolutionGradient.apply(g, *ctx.saved_tensors, ctx.shape, wanted)
        return *found, None, None, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *shape: Any
    ) -> tuple[Tensor, int]:
        n = info.batch_size
        *lengths, groups = shape
        y = _Convolution.apply(
            _to_channels(x, dims[0], n),
            _to_rows(weight, dims[1], n),
            _to_rows(bias, dims[2], n),
            *lengths,
            groups * n,
        )
        return y.unflatten(1, (n, -1)), 1


class _ConvolutionGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, shape: Any, wanted: Any) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        by_x, by_weight = _slopes(g, x, weight, shape, *wanted[:2])
        # Summed here because the kernel that makes the others takes several times as long for it.
        return by_x, by_weight, g.sum((0, 2, 3)) if wanted[2] else None

    @staticmethod
    @_last_derivative
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        # The gradients are linear in g, and in one of x and the weight each.
        g, x, weight = ctx.saved_tensors
        for_g, for_x, for_weight, *_ = ctx.needs_input_grad
        by_g = by_x = by_weight = None
        if for_g:
            parts = []
            if vw is not None:
                parts.append(_convolved(x, vw, vb, ctx.shape))
            elif vb is not None:
                parts.append(vb.view(1, -1, 1, 1).expand_as(g))
            if vx is not None:
                parts.append(_convolved(vx, weight, None, ctx.shape))
            by_g = parts[0] + parts[1] if len(parts) == 2 else parts[0] if parts else None
        if for_x and vw is not None:
            by_x, _ = _slopes(g, x, vw, ctx.shape, True, False)
        if for_weight and vx is not None:
            _, by_weight = _slopes(g, vx, weight, ctx.shape, False, True)
        return by_g, by_x, by_weight, None, None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Any) -> Tensor:
    stride, padding, dilation, groups = shape
    found: Tensor = _aten.convolution(
        x, weight, bias, stride, padding, dilation, False, [0, 0], groups
    )
    return found


def _slopes(
    g: Tensor, x: Tensor, weight: Tensor, shape: Any, by_x: bool, by_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = shape
    found = _aten.convolution_backward(
        g,
        x,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [by_x, by_weight, False],
    )
    return found[0], found[1]


# --- BatchNorm -----------------------------------------------------------------------------------


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, scale = output
        ctx.mark_non_differentiable(mean, scale)
        ctx.save_for_backward(x, weight, mean, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        return *_BatchNormGradient.apply(g, *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        n = info.batch_size
        rows = (_to_rows(weight, dims[1], n), _to_rows(bias, dims[2], n))
        y, *statistics = _BatchNorm.apply(_to_channels(x, dims[0], n), *rows, eps)
        by_task = (s.unflatten(0, (n, -1)) for s in statistics)
        return (y.unflatten(1, (n, -1)), *by_task), (1, 0, 0)


class _BatchNormGradient(torch.autograd.Function):
    """The gradients of BatchNorm, as a function of the one of its output, ``g``.

    With ``z = (x - mean) * scale`` and ``P(g) = g - mean(g) - z * mean(g z)``, by channel, that by
    ``x`` is ``weight * scale * P(g)``, by the weight ``sum(g z)``, by the bias ``sum(g)``.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> Any:
        by_x, sum_gz, sum_g = _projected(g, x, weight, mean, scale, eps)
        ctx.save_for_backward(g, x, weight, mean, scale, sum_gz, sum_g)
        ctx.eps = eps
        return by_x, sum_gz, sum_g

    @staticmethod
    @_last_derivative
    def backward(ctx: Any, v: Tensor, v_weight: Tensor, v_bias: Tensor) -> Any:
        g, x, weight, mean, scale, sum_gz, sum_g = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        by_g, sum_vz, sum_v = _projected(v, x, weight, mean, scale, ctx.eps)
        # P is symmetric: what goes back to g is weight * scale * P(v), and the other two gradients.
        by_z = v_weight * scale
        by_g = by_g.addcmul_(x, _wide(by_z)).add_(_wide(v_bias - by_z * mean))
        product = (v * g).sum((0, 2, 3)) - (sum_v * sum_g + sum_vz * sum_gz) / n  # <v, P(g)>
        # x enters by z, in both projections, and by the scale, whose derivative is -scale^2 z / n.
        # All that goes back to it is a P(g) + b P(v) + c z, so a sum of g, v and x by channel.
        a = scale * (v_weight - weight * scale * sum_vz / n)
        b = -weight * scale.square() * sum_gz / n
        c = (-weight * scale.square() * product - a * sum_gz - b * sum_vz) / n
        constant = -(a * sum_g + b * sum_v) / n - c * scale * mean
        by_x = torch.addcmul(_wide(constant), g, _wide(a))
        by_x = by_x.addcmul_(v, _wide(b)).addcmul_(x, _wide(c * scale))
        return by_g, by_x, scale * product, None, None, None


def _projected(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``weight * scale * P(g)``, ``sum(g z)`` and ``sum(g)``."""
    found: tuple[Tensor, Tensor, Tensor] = _aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, scale, True, eps, [True, True, True]
    )
    return found


def _wide(by_channel: Tensor) -> Tensor:
    return by_channel.view(1, -1, 1, 1)


# --- max-pooling ---------------------------------------------------------------------------------


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, shape: Any) -> Any:
        return _aten.max_pool2d_with_indices(x, *shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.shape = inputs
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.like = x.shape, torch.channels_last if last else torch.contiguous_format
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        return _MaxPoolGradient.apply(g, *ctx.saved_tensors, ctx.like, ctx.shape), None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, shape: Any) -> Any:
        n = info.batch_size
        pooled, places = _MaxPool.apply(_to_channels(x, dims[0], n), shape)
        return (pooled.unflatten(1, (n, -1)), places.unflatten(1, (n, -1))), (1, 1)


class _MaxPoolGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, places: Tensor, like: Any, shape: Any) -> Tensor:
        ctx.save_for_backward(places)
        # The kernel asks for the input but reads its size and layout alone: keeping the real one
        # would keep a third of the graph.
        size, layout = like
        x = torch.empty(size, dtype=g.dtype, device=g.device, memory_format=layout)
        found: Tensor = _aten.max_pool2d_with_indices_backward(g, x, *shape, places)
        return found

    @staticmethod
    @_last_derivative
    def backward(ctx: Any, v: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        b, c, h, w = places.shape
        rows, chosen = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (v, places))
        return rows.gather(1, chosen).view(b, h, w, c).permute(0, 3, 1, 2), None, None, None
