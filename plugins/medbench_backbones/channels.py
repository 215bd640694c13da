"""Which channels of a network belong together, and a network without some of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What does to every channel the same, and mixes none.
_EACH: Final = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip
_EACH_FUNCTIONS: Final[tuple[Callable[..., object], ...]] = (
    torch.relu, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish,
    F.dropout, F.dropout2d, F.dropout3d,
    F.max_pool2d, F.max_pool3d, F.avg_pool2d, F.avg_pool3d,
)  # fmt: skip
_SUMS: Final[tuple[Callable[..., object], ...]] = (operator.add, operator.iadd, torch.add)


@dataclass(eq=False)
class Channels:
    """Channels that stand or fall together: those of one convolution, or of several added up.

    ``made_by``, ``normed_by`` and ``taken_by``: names of convolutions that give them, of BatchNorms
    over them, and of convolutions that take them. ``fixed``: something else sees them, the
    network's output for one, so that none can go.
    """

    made_by: list[str] = field(default_factory=list)
    normed_by: list[str] = field(default_factory=list)
    taken_by: list[str] = field(default_factory=list)
    fixed: bool = False

    @property
    def prunable(self) -> bool:
        """Whether single channels can be left out."""
        return not self.fixed and bool(self.made_by) and bool(self.taken_by)

    def join(self, other: Channels) -> None:
        """Take in what `other` has."""
        self.made_by += other.made_by
        self.normed_by += other.normed_by
        self.taken_by += other.taken_by
        self.fixed |= other.fixed


def channels_of(network: nn.Module) -> list[Channels]:
    """The channels that a trace of the network shows, in its order, fixed ones included.

    Raises what tracing a network that cannot be traced raises.
    """
    graph = fx.symbolic_trace(network).graph
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = [modules[n.target] for n in graph.nodes if n.op == "call_module"]
    # What is called twice, or known by two names, serves more than one place.
    repeated = {m for m in calls if sum(m is c for c in calls) > 1}
    of = _Of()
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        if module is None or module in repeated or _hooked(module):
            if not _passed(node, of):
                of.fix(node)
        elif type(module) in _CONVOLUTIONS and module.groups == 1:
            of[node.args[0]].taken_by.append(node.target)
            of.new(node).made_by.append(node.target)
        elif type(module) in _NORMS and module.track_running_stats:
            of[node.args[0]].normed_by.append(node.target)
            of.same(node, node.args[0])
        elif type(module) in _EACH and not getattr(module, "return_indices", False):
            of.same(node, node.args[0])
        else:
            of.fix(node)
    return of.all()


class _Of:
    """The channels of each node's output."""

    def __init__(self) -> None:
        self._found: dict[fx.Node, Channels] = {}

    def __getitem__(self, node: fx.Node) -> Channels:
        return self._found[node]

    def new(self, node: fx.Node) -> Channels:
        """Channels of their own."""
        return self._found.setdefault(node, Channels())

    def same(self, node: fx.Node, other: fx.Node) -> None:
        """The channels of `other`."""
        self._found[node] = self._found[other]

    def sum(self, node: fx.Node, one: fx.Node, other: fx.Node) -> None:
        """The channels of two nodes, which are from here on the same."""
        kept, gone = self._found[one], self._found[other]
        if kept is not gone:
            kept.join(gone)
            for known, channels in self._found.items():
                if channels is gone:
                    self._found[known] = kept
        self._found[node] = kept

    def fix(self, node: fx.Node) -> None:
        """Nothing is known of what the node does with its inputs, and with their channels."""
        for given in node.all_input_nodes:
            self._found[given].fixed = True
        self.new(node).fixed = True

    def all(self) -> list[Channels]:
        """Each once, in the order of the network."""
        return list(dict.fromkeys(self._found.values()))


def _passed(node: fx.Node, of: _Of) -> bool:
    """Whether a function leaves channels apart; if so its output is noted."""
    given = node.all_input_nodes
    if node.op == "call_function" and node.target in _EACH_FUNCTIONS and len(given) == 1:
        of.same(node, given[0])
        return True
    if node.op == "call_function" and node.target in _SUMS and len(given) == len(node.args) == 2:
        of.sum(node, given[0], given[1])
        return True
    return False


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def magnitudes(network: nn.Module, channels: Channels) -> Tensor:
    """The sum of absolute weights of each channel's filter ``(n,)`` (Li et al. 2017, section 3.1).

    Of channels that are added up it is the sum over all convolutions that give them.
    """
    sums = [_weight(network, name).abs().flatten(1).sum(1) for name in channels.made_by]
    return torch.stack(sums).sum(0)


def strongest(values: Tensor, share: float) -> Tensor:
    """The numbers, ascending, of what is left when a `share` of the smallest has gone.

    One at least is left, and of equal ones the first.
    """
    # A third of thirty is ten, also in floats.
    n_left = max(1, len(values) - int(share * len(values) + 1e-9))
    return values.argsort(descending=True, stable=True)[:n_left].sort().values


def narrow(network: nn.Module, channels: Channels, left: Tensor) -> None:
    """Leave out, in place, all channels but those numbered `left`."""
    for name in channels.made_by:
        layer = network.get_submodule(name)
        assert isinstance(layer, _CONVOLUTIONS)
        _cut(layer, ("weight", "bias"), left, 0)
        layer.out_channels = len(left)
    for name in channels.normed_by:
        norm = network.get_submodule(name)
        assert isinstance(norm, _NORMS)
        _cut(norm, ("weight", "bias", "running_mean", "running_var"), left, 0)
        norm.num_features = len(left)
    for name in channels.taken_by:
        layer = network.get_submodule(name)
        assert isinstance(layer, _CONVOLUTIONS)
        _cut(layer, ("weight",), left, 1)
        layer.in_channels = len(left)


def silence(network: nn.Module, channels: Channels, left: Tensor) -> None:
    """Give weight zero, in place, to all channels but those numbered `left`."""
    for name in channels.taken_by:
        weight = _weight(network, name)
        gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        gone[left] = False
        weight.data[:, gone] = 0


def prunable(network: nn.Module) -> Iterator[Channels]:
    """Those channels of a network of which single ones can be left out."""
    return (c for c in channels_of(network) if c.prunable)


def _cut(layer: nn.Module, names: tuple[str, ...], left: Tensor, dim: int) -> None:
    for name in names:
        held = getattr(layer, name)
        if held is None:
            continue
        cut = held.detach().index_select(dim, left.to(held.device))
        if isinstance(held, nn.Parameter):
            setattr(layer, name, nn.Parameter(cut, requires_grad=held.requires_grad))
        else:
            setattr(layer, name, cut)


def _weight(network: nn.Module, name: str) -> Tensor:
    weight = network.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()
