"""Any model of timm as a backbone: ``timm:MODEL``, random or pretrained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, InputSpec, MedbenchError, Unavailable, did_you_mean


@contextmanager
def _third_party_warnings_ignored() -> Iterator[None]:
    """Keep deprecations inside timm from failing a run that turns warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with _third_party_warnings_ignored():
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.models import get_pretrained_cfg

_NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
# What timm's models raise for a size they cannot take: refused arguments, failed assertions,
# shapes that do not multiply, empty maps.
_SIZE_FAULTS = (TypeError, AssertionError, RuntimeError, ValueError, ZeroDivisionError)


class _SizeError(Exception):
    """The model cannot be built for, or run on, images of this size."""


def create(
    *,
    argument: str,
    image_size: int,
    channels: int,
    pretrained: bool = False,
    input_size: int | None = None,
) -> TimmBackbone:
    """Build ``timm:ARGUMENT`` without its classifier.

    `input_size` is the user's choice of pixels a side, and an error where the model refuses it.
    When it is None a pretrained model keeps its own size; a random one takes the protocol's
    `image_size`, or its own where it refuses that.

    Raises `MedbenchError` for unknown models and refused sizes, `Unavailable` when weights cannot
    be fetched.
    """
    cfg = _config(argument)
    if pretrained and not cfg.has_weights:
        raise MedbenchError(
            f"timm:{argument} has no pretrained weights.{_tags_hint(argument)} Or use random "
            "weights, or a weights file."
        )
    own = _own_size(cfg)
    if input_size is not None:
        sizes = [input_size]
    elif pretrained:
        sizes = [own]
    else:
        sizes = list(dict.fromkeys([image_size, own]))
    refusals: list[_SizeError] = []
    for size in sizes:
        try:
            return _build(argument, cfg, size, channels, pretrained)
        except _SizeError as refusal:
            refusals.append(refusal)
    raise MedbenchError(
        f"timm:{argument} does not take images of {sizes[-1]} pixels: {refusals[-1]}. Its own size "
        f"is {own}, and {_sizes_taken(argument, cfg)}; set input_size accordingly."
    ) from refusals[-1]


def _config(argument: str) -> Any:
    """What timm knows of the model. Raises `MedbenchError` with near matches."""
    architecture, _, tag = argument.partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise MedbenchError(f"timm {timm.__version__} has no model {architecture!r}.{near}")
    try:
        return get_pretrained_cfg(argument, allow_unregistered=False)
    except RuntimeError as error:
        raise MedbenchError(
            f"timm {timm.__version__} has no weights {tag!r} for {architecture!r}."
            f"{_tags_hint(argument)}"
        ) from error


def _tags_hint(argument: str) -> str:
    architecture, _, tag = argument.partition(".")
    names = timm.list_pretrained(f"{architecture}.*")
    return did_you_mean(tag, [name.partition(".")[2] for name in names])


def _own_size(cfg: Any) -> int:
    height, width = cfg.input_size[-2:]
    # The few models made for oblong images take square ones too; their shorter side costs less.
    return int(min(height, width))


def _patch_size(model: nn.Module) -> int:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return int(max(patch)) if isinstance(patch, Sequence) else int(patch)


def _sizes_taken(argument: str, cfg: Any) -> str:
    if not cfg.fixed_input_size:
        least = f" of at least {max(cfg.min_input_size[-2:])}" if cfg.min_input_size else ""
        return f"it takes most other sizes{least}"
    with _third_party_warnings_ignored(), torch.device("meta"):
        patch = _patch_size(timm.create_model(argument, pretrained=False, num_classes=0))
    return f"others must be multiples of {patch}" if patch > 1 else "it takes few others"


def _build(argument: str, cfg: Any, size: int, channels: int, pretrained: bool) -> TimmBackbone:
    """The model at one size. Raises `_SizeError`, `Unavailable`."""
    # Convolutional networks have no such argument, and need none.
    resized = (size, size) != tuple(cfg.input_size[-2:])
    extra: dict[str, Any] = {"img_size": size} if cfg.fixed_input_size and resized else {}
    try:
        with _third_party_warnings_ignored():
            model = timm.create_model(
                argument, pretrained=pretrained, num_classes=0, in_chans=channels, **extra
            )
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if pretrained and (isinstance(error, OSError) or library in _NETWORK_LIBRARIES):
            raise Unavailable(
                f"The pretrained weights of timm:{argument} could not be fetched "
                f"({type(error).__name__}). Allow this machine the network once, set HF_ENDPOINT "
                "to a mirror or HF_HOME to a filled cache, or give a weights file "
                "(weights: PATH.safetensors) instead of 'pretrained'."
            ) from error
        if extra and isinstance(error, _SIZE_FAULTS):
            raise _SizeError(_first_line(error)) from error
        raise
    patch = _patch_size(model)
    if cfg.fixed_input_size and size % patch:
        # timm would silently leave the last rows and columns out.
        raise _SizeError(f"{size} is no multiple of its patches of {patch} pixels")
    model.eval()
    try:
        with torch.no_grad():
            features = model(torch.zeros(1, channels, size, size))
    except _SIZE_FAULTS as error:
        raise _SizeError(_first_line(error)) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise MedbenchError(
            f"timm:{argument} gives no single feature vector for an image, so it cannot be a "
            "backbone. Choose an image classification model."
        )
    backbone = TimmBackbone(model, _input_spec(model, size, channels), features.shape[1])
    if pretrained:
        backbone.origin = backbone.source
    return backbone


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _input_spec(model: nn.Module, size: int, channels: int) -> InputSpec:
    with _third_party_warnings_ignored():
        data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    if data["interpolation"] in ("nearest", "bilinear"):
        interpolation = data["interpolation"]
    return InputSpec(
        size=size,
        channels=channels,
        mean=_for_channels(data["mean"], channels),
        std=_for_channels(data["std"], channels),
        interpolation=interpolation,
    )


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (float(sum(values) / len(values)),) * channels


@final
class TimmBackbone(Backbone):
    """A timm model in the shape that medbench wants; made by `create`."""

    def __init__(self, model: nn.Module, input_spec: InputSpec, n_features: int) -> None:
        super().__init__()
        self.model = model
        self.input = input_spec
        self.n_features = n_features
        cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
        tag = f".{cfg['tag']}" if cfg.get("tag") else ""
        self.source = f"timm {cfg.get('architecture', type(model).__name__)}{tag}"

    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, c, h, w)``; a transformer's patch tokens as a map.

        Raises `MedbenchError` where the model has no such map.
        """
        found = self.model.forward_features(images)  # type: ignore[operator]
        if isinstance(found, Tensor) and found.ndim == 4:
            if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
                return found.permute(0, 3, 1, 2)
            return found
        if isinstance(found, Tensor) and found.ndim == 5:  # inflated
            return found.flatten(2, 3)
        if isinstance(found, Tensor) and found.ndim == 3:
            patches = found[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
            grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
            side = math.isqrt(patches.shape[1])
            height, width = grid or (side, side)
            if height * width == patches.shape[1]:
                return patches.mT.reshape(len(patches), -1, height, width)
        raise MedbenchError(
            f"{self.source} has no spatial feature map; use an algorithm that works on feature "
            "vectors, or another model."
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``, pooled as the model pools them."""
        out: Tensor = self.model(images)
        return out
