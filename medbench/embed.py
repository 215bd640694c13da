"""Images to network inputs and features: each image decoded, resized and embedded once.

Pixels stay uint8 until a batch is on the device; conversion, resizing and normalisation run there
for the whole batch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medbench.api import Backbone, Dataset, InputSpec
from medbench.episodes import Ints
from medbench.errors import ContractError, NonFinite
from medbench.files import atomic, content_key, locked

# Rows embedded per forward pass. Fixed, and never a function of the machine: the rounding of a
# matrix product can depend on the batch, and features must not depend on the number of workers.
BATCH = 128
_STORE_LIMIT_BYTES = 1 << 30
View = Literal["features", "maps"]
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's convert("L")


def to_input(images: NDArray[np.uint8], spec: InputSpec, device: torch.device) -> Tensor:
    """Images ``(b, H, W, C)`` uint8 as a network wants them: ``(b, C', size, size)`` float32."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    x = x.to(torch.float32).div_(255.0)
    if spec.channels == 1 and x.shape[1] == 3:
        weights = torch.tensor(_LUMINANCE, device=device).view(1, 3, 1, 1)
        x = (x * weights).sum(dim=1, keepdim=True)
    if x.shape[-2:] != (spec.size, spec.size):
        # Antialiased, as PIL does it: without, shrinking skips pixels.
        smooth = spec.interpolation != "nearest"
        x = F.interpolate(
            x,
            size=(spec.size, spec.size),
            mode=spec.interpolation,
            antialias=smooth,
            align_corners=False if smooth else None,
        )
        x = x.clamp_(0.0, 1.0)  # bicubic overshoots
    if spec.channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


class ImageStore:
    """Decoded images of a dataset, each read once while they fit in memory (1 GiB)."""

    def __init__(self, dataset: Dataset) -> None:
        """Nothing is read yet."""
        self._dataset = dataset
        shape = (len(dataset.labels), *dataset.info.image_shape)
        fits = int(np.prod(shape)) <= _STORE_LIMIT_BYTES
        self._pixels = np.empty(shape, np.uint8) if fits else None
        self._here = np.zeros(len(dataset.labels), bool)

    def read(self, indices: Ints) -> NDArray[np.uint8]:
        """Images ``(len(indices), H, W, C)`` uint8. Raises `ContractError` for another shape."""
        indices = np.asarray(indices, np.int64)
        if self._pixels is None:
            return self._fetch(indices)
        missing = np.unique(indices[~self._here[indices]])
        if len(missing):
            self._pixels[missing] = self._fetch(missing)
            self._here[missing] = True
        found: NDArray[np.uint8] = self._pixels[indices]
        return found

    def _fetch(self, indices: Ints) -> NDArray[np.uint8]:
        images = self._dataset.read(indices)
        want = (len(indices), *self._dataset.info.image_shape)
        if images.shape != want or images.dtype != np.uint8:
            raise ContractError(
                f"dataset {self._dataset.info.name}: read returned {images.shape} {images.dtype}, "
                f"and {want} uint8 was promised."
            )
        return images


def weights_digest(backbone: Backbone) -> str:
    """BLAKE2b-128 over names, shapes and bytes of all parameters and buffers."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(backbone.state_dict().items()):
        h.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        data = tensor.detach().cpu().contiguous()
        h.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def forward(backbone: Backbone, images: Tensor, view: View) -> Tensor:
    """What an algorithm sees of `images` ``(b, C, H, W)`` through a backbone.

    ``features``: ``(b, n_features)``; ``maps``: ``(b, c, h, w)``, the features of each place.
    Raises `ContractError` for another shape than promised.
    """
    if view == "maps":
        maps = backbone.feature_map(images)
        if maps.ndim != 4 or len(maps) != len(images):
            raise ContractError(
                f"{type(backbone).__name__}.feature_map returned {tuple(maps.shape)} for "
                f"{len(images)} images, and (images, channels, height, width) is needed."
            )
        return maps
    features: Tensor = backbone(images)
    if features.shape != (len(images), backbone.n_features):
        raise ContractError(
            f"{type(backbone).__name__} returned features {tuple(features.shape)} for "
            f"{len(images)} images, and promised n_features = {backbone.n_features}."
        )
    return features


def embed(
    backbone: Backbone, store: ImageStore, rows: Ints, device: torch.device, view: View = "features"
) -> Tensor:
    """Features ``(len(rows), d)`` float32 on the CPU, in eval mode, in batches of `BATCH`.

    With the view ``maps`` they are ``(len(rows), c, h, w)``. Raises `NonFinite` naming the image,
    `ContractError` for features of a wrong shape.
    """
    backbone.eval()
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            found = forward(backbone, to_input(store.read(some), backbone.input, device), view)
            finite = torch.isfinite(found).flatten(1).all(dim=1)
            if not finite.all():
                bad = int((~finite).nonzero()[0, 0])
                raise NonFinite(f"The {view} of image {int(some[bad])} are not finite.")
            parts.append(found.to("cpu", torch.float32).contiguous())
    return torch.cat(parts) if parts else torch.empty(0, backbone.n_features)


def features_of(
    backbone: Backbone,
    dataset: Dataset,
    store: ImageStore,
    rows: Ints,
    device: torch.device,
    cache: Path,
    view: View = "features",
) -> Tensor:
    """Features (or maps) of `rows` (ascending) from the cache, or embedded now and kept there.

    The file is named by all that determines it. Of several processes that want the same features
    one embeds and the others wait for its file.
    """
    ingredients: dict[str, Any] = {
        "dataset": dataset.digest,
        "weights": weights_digest(backbone),
        "network": type(backbone).__qualname__,
        "input": [str(v) for v in vars(backbone.input).values()],
        "view": view,
        "rows": hashlib.blake2b(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest(),
        "precision": "float32",
        "device": device.type,
        "torch": torch.__version__,
        "batch": BATCH,
    }
    key = content_key(ingredients)
    path = cache / f"{key}.safetensors"
    found = _load(path, len(rows))
    if found is not None:
        return found
    with locked(cache / f"{key}.lock", wait=True):
        found = _load(path, len(rows))
        if found is None:
            found = embed(backbone, store, rows, device, view)
            with atomic(path) as temporary:
                save_file({view: found}, temporary)
    return found


def _load(path: Path, n: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor(next(iter(file.keys())))
    except (SafetensorError, OSError, RuntimeError):
        return None  # a damaged cache file is made again
    return features if len(features) == n else None
