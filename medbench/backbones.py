"""Builds a backbone from its reference with weights, and what of it is tested."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medbench.api import Backbone, InputSpec, derive_seed
from medbench.config import BackboneRef
from medbench.embed import Folded, weights_digest
from medbench.errors import ContractError, DataError, MedbenchError, PluginError
from medbench.folding import fold_batchnorm
from medbench.nesting import Layer, layers
from medbench.plugins import Registry, load_factory
from medbench.weights import check_weights, weights_path

# How far features of the faster copy may be from the network's, relative to the largest of them.
FOLDING_TOLERANCE = 1e-4
_PROBE_IMAGES = 4


def build_backbone(
    registry: Registry,
    ref: BackboneRef,
    *,
    image_size: int,
    channels: int,
    seed: int,
    modalities: tuple[str, ...] = (),
) -> Backbone:
    """The network of `ref` in eval mode, on the CPU.

    `modalities` are the names of several, each of `channels`; a network that does not fuse them
    gets the channels of all. Random weights come from `seed` and the backbone's name alone, and of
    networks of single modalities from the modality's number too. What a wrapper wraps is built
    first and has the weights asked for. Raises `UsageError`, `DataError` for an unusable weights
    file, `PluginError` when the factory fails.
    """
    found = layers(registry, ref.name, ref.params)
    check_weights(found[-1].entry, ref)
    backbone = _built(found, ref, image_size, channels, modalities, seed)
    backbone.reference = json.dumps([[layer.name, layer.params] for layer in found])
    return _fast_layout(backbone).eval()


def _built(
    chain: Sequence[Layer],
    ref: BackboneRef,
    image_size: int,
    channels: int,
    modalities: tuple[str, ...],
    seed: int | str,
) -> Backbone:
    """The network of the first layer, around those of the others."""
    layer, *rest = chain
    size = {"image_size": image_size, "channels": channels * max(1, len(modalities))}
    if not rest:
        return _innermost_built(layer, ref, size, channels, modalities, seed)
    missing = None
    if layer.entry.spec.fuses:
        seeds = [f"{seed}/{k}" if k else seed for k in range(max(1, len(modalities)))]
        inner: Any = tuple(_built(rest, ref, image_size, channels, (), own).eval() for own in seeds)
    else:
        inner = _built(rest, ref, image_size, channels, modalities, seed).eval()
        missing = inner.input.missing
    made = _made(layer, size | layer.params | {"inner": inner}, seed)
    if made.input.modalities != modalities:
        # A wrapper that makes an InputSpec of its own keeps what its network wants nevertheless.
        kept = made.input.missing if missing is None else missing
        made.input = replace(made.input, modalities=modalities, missing=kept)
    _check_channels(layer, made.input)
    return made


def _innermost_built(
    layer: Layer,
    ref: BackboneRef,
    size: Mapping[str, Any],
    channels: int,
    modalities: tuple[str, ...],
    seed: int | str,
) -> Backbone:
    given: dict[str, Any] = {"pretrained": ref.weights == "pretrained"}
    if layer.entry.spec.takes_argument:
        given["argument"] = layer.name.partition(":")[2]
    backbone = _made(layer, {**size, **layer.params, **given}, seed)
    if modalities:
        wants = replace(backbone.input, modalities=modalities)
        if channels > 1 and wants.channels == size["channels"]:
            # Of more channels than its own a network knows no more than an average.
            alone = _made(layer, {**size, **layer.params, **given, "channels": channels}, seed)
            n = len(modalities)
            wants = replace(wants, mean=alone.input.mean * n, std=alone.input.std * n)
        backbone.input = wants
        _check_channels(layer, wants)
    if ref.weights not in ("random", "pretrained"):
        load_weights(backbone, read_weights(Path(ref.weights)), ref.weights)
        backbone.origin = f"file {Path(ref.weights).name}"
    return backbone


def _check_channels(layer: Layer, wants: InputSpec) -> None:
    n = len(wants.modalities)
    if not n:
        return
    if wants.channels not in (n, 3 * n):
        raise ContractError(
            f"backbone {layer.name!r} of {layer.entry.origin()} wants {wants.channels} channels, "
            f"and {n} modalities of 1 or 3 each are shown. Give each a network of its own, with "
            f"'late:{layer.name}' or 'gated:{layer.name}'."
        )
    if not len(wants.mean) == len(wants.std) == wants.channels:
        raise ContractError(
            f"backbone {layer.name!r} of {layer.entry.origin()} wants {wants.channels} channels "
            f"with {len(wants.mean)} means and {len(wants.std)} stds; one of each is needed."
        )


def _made(layer: Layer, given: Mapping[str, Any], seed: int | str) -> Backbone:
    """What a factory makes with weights from `seed`; the global generator stays as it is."""
    entry = layer.entry
    factory = load_factory(entry)
    state = torch.random.get_rng_state()
    torch.manual_seed(derive_seed("weights", layer.name, seed))
    try:
        backbone = factory(**given)
    except MedbenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"backbone {layer.name!r} of {entry.origin()} failed to build: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        torch.random.set_rng_state(state)
    if not isinstance(backbone, Backbone):
        raise ContractError(
            f"backbone {layer.name!r} of {entry.origin()}: the factory returned "
            f"{type(backbone).__name__}, and a medbench.api.Backbone is needed."
        )
    if backbone.input.n_dims != layer.n_dims:
        raise ContractError(
            f"backbone {layer.name!r} of {entry.origin()}: its spec says n_dims {layer.n_dims}, "
            f"and the input of what its factory returned {backbone.input.n_dims}."
        )
    if bool(backbone.lesson_images) != entry.spec.learns:
        raise ContractError(
            f"backbone {layer.name!r} of {entry.origin()}: its spec says learns "
            f"{entry.spec.learns}, and what its factory returned has lesson_images "
            f"{backbone.lesson_images}; without the first nothing would teach it."
        )
    return backbone


def _fast_layout(network: Backbone) -> Backbone:
    # Convolutions of images run up to twice as fast in this layout, on CPUs and tensor cores alike;
    # weights of volumes have five dimensions, and no such layout.
    if all(tensor.ndim < 5 for tensor in network.state_dict().values()):
        network.to(memory_format=torch.channels_last)
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a ``.safetensors`` file, or a ``.pth`` read without running its code.

    Raises `DataError`.
    """
    path = weights_path(str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a readable weights file: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # torch's UnpicklingError is what pickle's module defines
        raise DataError(
            f"{path}: refused, because it holds more than tensors ({type(error).__name__}); save "
            "a state_dict, or convert it to .safetensors."
        ) from error
    for nested in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(nested), Mapping):
            found = found[nested]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise DataError(f"{path}: holds a {type(found).__name__}, and named tensors are needed.")
    return {str(k).removeprefix("module."): v for k, v in found.items()}


def load_weights(backbone: Backbone, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Set all parameters and buffers of a backbone.

    Tensors of a classifier that the backbone does not have are left out; any other difference in
    names or shapes raises `DataError`.
    """
    own = backbone.state_dict()
    given = {k.removeprefix("backbone."): v for k, v in tensors.items()}
    if not set(own) & set(given):
        # A plugin may wrap a network under a name of its own; the file has the bare names.
        for prefix in {k.partition(".")[0] for k in own}:
            if {f"{prefix}.{k}" for k in given} & set(own):
                given = {f"{prefix}.{k}": v for k, v in given.items()}
    missing = sorted(set(own) - set(given))
    wrong = sorted(k for k in set(own) & set(given) if own[k].shape != given[k].shape)
    extra = sorted(set(given) - set(own))
    heads = [k for k in extra if any(w in k.split(".") for w in ("fc", "head", "classifier"))]
    strange = [k for k in extra if k not in heads]
    if missing or wrong or strange:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(own)} tensors are missing, such as {missing[0]}")
        if wrong:
            k = wrong[0]
            parts.append(f"{k} is {tuple(given[k].shape)}, and {tuple(own[k].shape)} is needed")
        if strange:
            parts.append(f"{len(strange)} are unknown, such as {strange[0]}")
        raise DataError(f"The weights in {origin} do not fit the network: {'; '.join(parts)}.")
    backbone.load_state_dict({k: given[k] for k in own})


def deploy(backbone: Backbone) -> Backbone:
    """The network that is tested, made of one that has all its weights (`Backbone.deployed`).

    `backbone` is given up. Raises `ContractError` where the network is another one to methods, and
    what the plugin raises.
    """
    name, wants, n_features = type(backbone).__name__, backbone.input, backbone.n_features
    with torch.no_grad():
        found = backbone.deployed()
    if not isinstance(found, Backbone):
        raise ContractError(
            f"{name}.deployed returned {type(found).__name__}, and a medbench.api.Backbone is "
            "needed."
        )
    if (found.input, found.n_features) != (wants, n_features):
        raise ContractError(
            f"{name}.deployed returned a network with n_features {found.n_features} for "
            f"{found.input}; what was trained had {n_features} for {wants}, and methods are made "
            "for that."
        )
    found.reference = backbone.reference
    return _fast_layout(found).eval()


def inference_copy(backbone: Backbone) -> Backbone:
    """A `Folded` network equal to `backbone` in eval mode, or `backbone` itself where none is.

    Its BatchNorms are folded (`medbench.folding.fold_batchnorm`). The copy is refused when the
    network cannot be traced, or when features or maps of a probe of images differ by more than
    `FOLDING_TOLERANCE`. `backbone` is left as it is, and later changes of it do not reach the copy.
    """
    if any(module.training for module in backbone.modules()):
        return backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Tracing runs a plugin's code in a way that it need not be made for, and not every network
        # has maps to compare.
        try:
            network = copy.deepcopy(backbone).requires_grad_(False)
            n_folded = fold_batchnorm(network)
            _fast_layout(network)
            if not n_folded or not _alike(backbone, network):
                return backbone
        except Exception:
            return backbone
    return Folded(network, weights_digest(backbone), n_folded).eval()


def _alike(backbone: Backbone, network: Backbone) -> bool:
    """Whether both give the same features and maps for a probe of made-up images."""
    wants = backbone.input
    at = next(backbone.parameters())
    shape = (_PROBE_IMAGES, *wants.shape)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    wide = (1, -1, *(1,) * wants.n_dims)
    mean, std = (torch.tensor(v).view(wide) for v in (wants.mean, wants.std))
    layout = torch.channels_last if wants.n_dims == 2 else torch.contiguous_format
    images = ((pixels - mean) / std).to(at.device, memory_format=layout)
    with torch.inference_mode():
        return _near(backbone(images), network(images)) and _near(
            backbone.feature_map(images), network.feature_map(images)
        )


def _near(plain: Tensor, folded: Tensor) -> bool:
    # Not "greater than": what is not finite is never near.
    gap, size = (plain - folded).abs().max(), plain.abs().max()
    return plain.shape == folded.shape and bool(gap <= FOLDING_TOLERANCE * size)
