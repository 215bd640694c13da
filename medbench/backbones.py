"""Builds a backbone from its reference with weights: random, from a file, or pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medbench.api import Backbone, derive_seed
from medbench.config import BackboneRef
from medbench.errors import ContractError, DataError, MedbenchError, PluginError
from medbench.plugins import Registry, load_factory, resolve_params
from medbench.weights import check_weights, weights_path


def build_backbone(
    registry: Registry, ref: BackboneRef, *, image_size: int, channels: int, seed: int
) -> Backbone:
    """The network of `ref` in eval mode, on the CPU.

    Random weights come from `seed` and the backbone's name alone. Raises `UsageError`, `DataError`
    for an unusable weights file, `PluginError` when the factory fails.
    """
    entry = registry.get("backbones", ref.name)
    params = resolve_params(entry, ref.params)
    check_weights(entry, ref)
    if entry.spec.takes_argument:
        params["argument"] = ref.name.partition(":")[2]
    factory = load_factory(entry)
    state = torch.random.get_rng_state()
    torch.manual_seed(derive_seed("weights", ref.name, seed))
    try:
        backbone = factory(
            **{"image_size": image_size, "channels": channels} | params,
            pretrained=ref.weights == "pretrained",
        )
    except MedbenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"backbone {ref.name!r} of {entry.origin()} failed to build: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        torch.random.set_rng_state(state)
    if not isinstance(backbone, Backbone):
        raise ContractError(
            f"backbone {ref.name!r} of {entry.origin()}: the factory returned "
            f"{type(backbone).__name__}, and a medbench.api.Backbone is needed."
        )
    if ref.weights not in ("random", "pretrained"):
        load_weights(backbone, read_weights(Path(ref.weights)), ref.weights)
        backbone.origin = f"file {Path(ref.weights).name}"
    # Convolutions run up to twice as fast in this layout, on CPUs and tensor cores alike.
    return backbone.to(memory_format=torch.channels_last).eval()


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
