"""BatchNorm folded into the convolutions before it, as a trace shows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medbench.network import Backbone

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(backbone: Backbone) -> int:
    """Fold every BatchNorm that can be, in place; how many these were.

    In eval mode BatchNorm is one multiplication and one addition a channel, which the weights and
    bias of the convolution before it can take over (Jacob et al. 2018, section 3.2). Only a
    convolution whose output goes to one BatchNorm and nowhere else is folded, as a trace of the
    network shows; of a wrapper that of what it wraps. Raises what tracing a network that cannot be
    traced raises.
    """
    return sum(_folded(network) for network in backbone.innermost())


def _folded(network: nn.Module) -> int:
    if not any(type(m) in _NORMS for m in network.modules()):
        return 0
    pairs = list(_foldable(network))
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(
            network.get_submodule(convolution),  # type: ignore[type-var]
            network.get_submodule(norm),  # type: ignore[arg-type]
        )
        network.set_submodule(convolution, fused)
        network.set_submodule(norm, nn.Identity())
    return len(pairs)


def _foldable(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and the one BatchNorm that takes its output."""
    calls = [n for n in fx.symbolic_trace(network).graph.nodes if n.op == "call_module"]
    modules = dict(network.named_modules(remove_duplicate=False))
    # A module that is called twice, or known by two names, serves more than one place.
    once = [n for n in calls if sum(modules[n.target] is modules[m.target] for m in calls) == 1]
    for norm in once:
        before = norm.args[0]
        if (
            before in once
            and len(before.users) == 1
            and type(modules[norm.target]) in _NORMS
            and modules[norm.target].running_mean is not None
            and type(modules[before.target]) in _CONVOLUTIONS
            and not any(_hooked(modules[n.target]) for n in (norm, before))
        ):
            yield before.target, norm.target


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
