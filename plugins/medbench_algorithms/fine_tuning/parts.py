"""Which parameters of a network count as its last block, its normalisation or its biases."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from medbench.api import Backbone, ContractError

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def all_parameters(backbone: Backbone) -> list[str]:
    """Every parameter, by name."""
    return _some([name for name, _ in backbone.named_parameters()], backbone, "parameters")


def norm_parameters(backbone: Backbone) -> list[str]:
    """Scales and shifts of the normalisation layers.

    Raises `ContractError` where there are none.
    """
    names = [
        f"{layer}.{name}"
        for layer, module in backbone.named_modules()
        if _is_norm(module)
        for name, _ in module.named_parameters(recurse=False)
    ]
    return _some(names, backbone, "normalisation layers with weights")


def bias_parameters(backbone: Backbone) -> list[str]:
    """Every additive parameter: biases of convolutions, linear and normalisation layers.

    Raises `ContractError` where there are none.
    """
    # BEiT and EVA call theirs q_bias and v_bias.
    names = [n for n, _ in backbone.named_parameters() if n.rpartition(".")[2].endswith("bias")]
    return _some(names, backbone, "biases")


def last_block_parameters(backbone: Backbone) -> list[str]:
    """Parameters of the last block of layers, and of the normalisation that follows it.

    Blocks are told by the order of registration. From the whole network the search goes into the
    last child, as long as that holds all the blocks: it is the only child with parameters, or a
    plain sequence that no earlier child resembles. So the last block of conv4 and resnet12 is the
    fourth, that of a timm ResNet ``layer4``, of a ViT the last of ``blocks``.
    """
    owners = [id(p) for module in _last_block(backbone) for p in module.parameters()]
    names = [name for name, p in backbone.named_parameters() if id(p) in owners]
    return _some(names, backbone, "parameters")


def _some(names: list[str], backbone: Backbone, what: str) -> list[str]:
    if not names:
        raise ContractError(
            f"{type(backbone).__name__} has no {what}, so there is nothing to tune. Choose "
            "another backbone, or full-fine-tuning."
        )
    return names


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _only_norms(module: nn.Module) -> bool:
    """Whether all its parameters belong to normalisation layers."""
    return all(
        _is_norm(part)
        for part in module.modules()
        if next(part.parameters(False), None) is not None
    )


def _parts(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if _has_parameters(child)]


def _last_block(module: nn.Module) -> list[nn.Module]:
    parts, norms = _parts(module), []
    while parts and _only_norms(parts[-1]):
        norms.append(parts.pop())
    if not parts:
        return [module]
    *earlier, last = parts
    if not _parts(last):
        return [last, *norms]
    holds_all = not earlier or (
        isinstance(last, nn.Sequential | nn.ModuleList)
        and not any(_alike(last, other) for other in earlier)
    )
    return [*(_last_block(last) if holds_all else [last]), *norms]


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether both are sequences of the same kind of thing, like the stages of a ResNet."""
    return type(a) is type(b) and [type(m) for m in _parts(a)[:1]] == [
        type(m) for m in _parts(b)[:1]
    ]
