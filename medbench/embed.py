"""Images to network inputs and features: each image decoded, resized and embedded once.

Pixels stay uint8 until a batch is on the device; conversion, resizing and normalisation run there
for the whole batch. While the network sees one batch, a thread reads the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medbench.api import Backbone, Dataset, InputSpec
from medbench.draws import Ints
from medbench.errors import ContractError, DataError, NonFinite
from medbench.files import atomic, content_key, locked
from medbench.modalities import Images, lacking, widths_of
from medbench.quiet import NOBODY, Quiet

# Rows embedded per forward pass. Fixed, and never a function of the machine: the rounding of a
# matrix product can depend on the batch, and features must not depend on the number of workers.
BATCH = 128
VOLUME_BATCH = 16
STORE_LIMIT_BYTES = 1 << 30
View = Literal["features", "maps"]
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's convert("L")


def to_input(images: NDArray[np.uint8] | Images, spec: InputSpec, device: torch.device) -> Tensor:
    """Images ``(b, H, W, C)`` uint8 as a network wants them: ``(b, C', size, size)`` float32.

    Volumes ``(b, D, H, W, C)`` become ``(b, C', size, size, size)``. Of several modalities each is
    made grey or coloured by itself, and one that is missing has ``spec.missing`` in every pixel.
    Raises `ContractError` for images with a network for volumes, or the other way round, and for
    another number of modalities than the network's.
    """
    given = images if isinstance(images, Images) else Images(images)
    images = given.pixels
    if images.ndim != 2 + spec.n_dims:
        raise ContractError(
            f"images {images.shape} were given to a network whose input has {spec.n_dims} "
            "dimensions besides batch and channels."
        )
    if len(given.widths) != len(spec.modalities):
        raise ContractError(
            f"images of {len(given.widths) or 1} modalities were given to a network built for "
            f"{len(spec.modalities) or 1}."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, 1)
    resized = pixels.shape[2:] != spec.shape[1:]
    # Resizing takes half the time where each channel lies in one piece.
    layout = torch.contiguous_format if resized else torch.preserve_format
    x = pixels.to(torch.float32, memory_format=layout).div_(255.0)
    wide = (1, -1, *(1,) * spec.n_dims)
    if given.widths:
        each = spec.channels // len(given.widths)
        parts = torch.split(x, list(given.widths), dim=1)
        x = torch.cat([_coloured(_grey(part, each), each) for part in parts], dim=1)
    else:
        x = _grey(x, spec.channels)
    if resized:
        x = resize(x, spec).clamp_(0.0, 1.0)  # bicubic overshoots
    if not given.widths:
        x = _coloured(x, spec.channels)
    mean = torch.tensor(spec.mean, device=device).view(wide)
    std = torch.tensor(spec.std, device=device).view(wide)
    # There is no such layout of volumes that weights of images could share.
    layout = torch.channels_last if spec.n_dims == 2 else torch.contiguous_format
    x = (x - mean).div_(std)
    if given.missing is not None:
        gone = torch.from_numpy(given.missing).to(device)
        gone = gone.repeat_interleave(spec.channels // len(given.widths), dim=1)
        x = torch.where(gone.view(*gone.shape, *(1,) * spec.n_dims), (spec.missing - mean) / std, x)
    return x.contiguous(memory_format=layout)


def _grey(x: Tensor, channels: int) -> Tensor:
    """One channel of three, where one is wanted."""
    if channels != 1 or x.shape[1] != 3:
        return x
    weights = torch.tensor(_LUMINANCE, device=x.device).view(1, -1, *(1,) * (x.ndim - 2))
    return (x * weights).sum(dim=1, keepdim=True)


def _coloured(x: Tensor, channels: int) -> Tensor:
    """One channel three times, where three are wanted."""
    return x.expand(-1, 3, *x.shape[2:]) if channels == 3 and x.shape[1] == 1 else x


def resize(x: Tensor, spec: InputSpec) -> Tensor:
    """Images ``(b, C, H, W)`` or volumes ``(b, C, D, H, W)`` at the size that `spec` says.

    Antialiased, as PIL does it: without, shrinking skips pixels.
    """
    return resized(x, spec.shape[1:], spec.interpolation)


def resized(x: Tensor, size: tuple[int, ...], interpolation: str = "bilinear") -> Tensor:
    """Values ``(b, c, *space)`` at another `size`, of two dimensions or three.

    Interpolation is separable, and torch antialiases in two dimensions only, so volumes are resized
    slice by slice, then in depth.
    """
    if len(size) == 2:
        return _resized(x, size, interpolation)
    b, c, d, h, w = x.shape
    slices = _resized(x.reshape(b, c * d, h, w), size[1:], interpolation)
    columns = slices.reshape(b, c, d, size[1] * size[2])
    return _resized(columns, (size[0], size[1] * size[2]), interpolation).reshape(b, c, *size)


def _resized(x: Tensor, size: tuple[int, ...], interpolation: str) -> Tensor:
    smooth = interpolation != "nearest"
    return F.interpolate(
        x,
        size=size,
        mode=interpolation,
        antialias=smooth,
        align_corners=False if smooth else None,
    )


class ImageStore:
    """Decoded images of a dataset, each read once while all of them fit in memory."""

    def __init__(self, dataset: Dataset, limit_bytes: int = STORE_LIMIT_BYTES) -> None:
        """Nothing is read yet. A dataset of more than `limit_bytes` (1 GiB) is never kept."""
        self._dataset = dataset
        shape = (len(dataset.labels), *dataset.info.image_shape)
        fits = int(np.prod(shape)) <= limit_bytes
        self._pixels = np.empty(shape, np.uint8) if fits else None
        self._here = np.zeros(len(dataset.labels), bool)
        self._widths = widths_of(dataset.info)

    @property
    def n_images(self) -> int:
        """How many images the dataset has."""
        return len(self._here)

    def shown(self, rows: Ints, *, keep: bool = True) -> Images:
        """Images ``(len(rows), ...)`` with what is told of their modalities.

        A row is the number of an image, plus the number of all images times what is missing of it
        (`medbench.modalities.missing_in`); `read` takes the former alone.
        """
        if not self._widths:
            return Images(self.read(rows, keep=keep))
        patterns, indices = np.divmod(np.asarray(rows, np.int64), self.n_images)
        images = self.read(indices, keep=keep)
        missing = lacking(patterns, len(self._widths)) if patterns.any() else None
        return Images(images, self._widths, missing)

    def read(self, indices: Ints, *, keep: bool = True) -> NDArray[np.uint8]:
        """Images ``(*indices.shape, H, W, C)`` uint8, for indices of any shape.

        With `keep` False what is not in memory yet is not kept there either, which is right for a
        sweep that needs every image once. Raises `ContractError` for another shape, `DataError`
        when images cannot be read.
        """
        indices = np.asarray(indices, np.int64)
        if self._pixels is None:
            return self._fetch(indices)
        # `take` copies whole images; fancy indexing takes half as long again.
        here = self._here.take(indices)
        if not here.all():
            if not keep:
                images = np.empty((*indices.shape, *self._pixels.shape[1:]), np.uint8)
                images[here] = self._pixels[indices[here]]
                images[~here] = self._fetch(indices[~here])
                return images
            missing = np.unique(indices[~here])
            self._pixels[missing] = self._fetch(missing)
            self._here[missing] = True
        return self._pixels.take(indices, axis=0)

    def _fetch(self, indices: Ints) -> NDArray[np.uint8]:
        info = self._dataset.info
        try:
            images = self._dataset.read(indices.reshape(-1))
        except OSError as error:
            raise DataError(f"dataset {info.name}: its images cannot be read: {error}.") from error
        shape = info.image_shape
        want = (indices.size, *shape)
        if images.shape != want or images.dtype != np.uint8:
            raise ContractError(
                f"dataset {info.name}: read returned {images.shape} {images.dtype}, and {want} "
                "uint8 was promised."
            )
        return images.reshape(*indices.shape, *shape)


@final
class Folded(Backbone):
    """An equal network that embeds faster: BatchNorm folded into the convolutions before it.

    Made by `medbench.backbones.inference_copy`; in eval mode only, as there is no BatchNorm left
    to train. ``original`` is the `weights_digest` of the network it stands for.
    """

    def __init__(self, network: Backbone, original: str, n_folded: int) -> None:
        super().__init__()
        self.network = network
        self.original = original
        self.n_folded = n_folded
        self.n_features, self.input = network.n_features, network.input
        self.origin, self.reference = network.origin, network.reference

    def feature_map(self, images: Tensor) -> Tensor:
        """As the network's."""
        return self.network.feature_map(images)

    def forward(self, images: Tensor) -> Tensor:
        """As the network's."""
        out: Tensor = self.network(images)
        return out


def form_of(backbone: Backbone) -> str:
    """How a network embeds, in words for a record: ``plain``, or ``4 BatchNorms folded``."""
    forms = [m.form for m in backbone.modules() if isinstance(m, Backbone) and m.form]
    if isinstance(backbone, Folded):
        forms.append(f"{backbone.n_folded} BatchNorms folded")
    return "; ".join(forms) or "plain"


def weights_digest(backbone: Backbone) -> str:
    """BLAKE2b-128 over names, shapes and bytes of all parameters and buffers."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(backbone.state_dict().items()):
        h.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        data = tensor.detach().cpu().contiguous()
        h.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def forward(backbone: Backbone, images: Tensor, view: View) -> Tensor:
    """What an algorithm sees of images ``(b, C, H, W)``, or volumes, through a backbone.

    ``features``: ``(b, n_features)``; ``maps``: ``(b, c, h, w)``, the features of each place.
    Raises `ContractError` for another shape than promised.
    """
    name = type(backbone.network if isinstance(backbone, Folded) else backbone).__name__
    if view == "maps":
        maps = backbone.feature_map(images)
        if maps.ndim != 4 or len(maps) != len(images):
            raise ContractError(
                f"{name}.feature_map returned {tuple(maps.shape)} for {len(images)} images, and "
                "(images, channels, height, width) is needed."
            )
        return maps
    features: Tensor = backbone(images)
    if features.shape != (len(images), backbone.n_features):
        raise ContractError(
            f"{name} returned features {tuple(features.shape)} for {len(images)} images, and "
            f"promised n_features = {backbone.n_features}."
        )
    return features


def batch_size(spec: InputSpec) -> int:
    """Rows embedded per forward pass: fewer of volumes, which are so much larger."""
    return BATCH if spec.n_dims == 2 else VOLUME_BATCH


def embed(
    backbone: Backbone, store: ImageStore, rows: Ints, device: torch.device, view: View = "features"
) -> Tensor:
    """Features ``(len(rows), d)`` float32 on the CPU, in eval mode, in batches of a fixed size.

    With the view ``maps`` they are ``(len(rows), c, h, w)``. Raises `NonFinite` naming the image,
    `ContractError` for features of a wrong shape.
    """
    parts = list(_batches(backbone, store, rows, device, view))
    return torch.cat(parts) if parts else torch.empty(0, backbone.n_features)


def _batches(
    backbone: Backbone, store: ImageStore, rows: Ints, device: torch.device, view: View
) -> Iterator[Tensor]:
    """The features of `rows`, batch after batch; memory holds two batches of images."""
    backbone.eval()
    size = batch_size(backbone.input)
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    # Decoding and the network's kernels both leave Python's lock to others.
    with ThreadPoolExecutor(1, "medbench-read") as reader:
        coming = [reader.submit(store.shown, piece, keep=False) for piece in pieces[:1]]
        for i, piece in enumerate(pieces):
            images = coming.pop().result()
            coming += [reader.submit(store.shown, p, keep=False) for p in pieces[i + 1 : i + 2]]
            if len(piece) == 1:
                # Some kernels round a lone image in their own way; in company it gets the same
                # features whichever images are asked for beside it.
                images = images.twice()
            with torch.inference_mode():
                found = forward(backbone, to_input(images, backbone.input, device), view)
                found = found[: len(piece)]
                finite = torch.isfinite(found).flatten(1).all(dim=1)
                if not finite.all():
                    bad = int((~finite).nonzero()[0, 0])
                    number = int(piece[bad]) % store.n_images
                    raise NonFinite(f"The {view} of image {number} are not finite.")
                found = found.to("cpu", torch.float32).contiguous()
            yield found


# --- the cache -----------------------------------------------------------------------------------


def features_of(
    backbone: Backbone,
    dataset: Dataset,
    store: ImageStore,
    rows: Ints,
    device: torch.device,
    cache: Path,
    view: View = "features",
    quiet: Quiet = NOBODY,
) -> Tensor:
    """Features (or maps) of `rows` (ascending) from the cache, or embedded now and kept there.

    Files are named by all that determines features; an image is embedded once, whichever rows are
    asked for beside it. Of several processes that want the same features one embeds and the others
    wait for its file. Rows that were asked for together before are mapped from it, not loaded.
    Between batches a measurement that waits for `quiet` goes first.
    """
    key = content_key(_ingredients(backbone, dataset, device, view))
    rows = np.ascontiguousarray(rows, "<i8")
    missing, parts = _kept(cache, key, view, rows)
    if len(missing):
        with contextlib.ExitStack() as held:
            with quiet.away():
                held.enter_context(locked(cache / f"{key}.lock", wait=True))
            missing, parts = _kept(cache, key, view, rows)
            if len(missing):
                for debris in cache.glob(f".{key}-*.tmp"):  # of a process killed while it wrote
                    debris.unlink(missing_ok=True)
                name = hashlib.blake2b(missing.tobytes(), digest_size=8).hexdigest()
                path = cache / f"{key}-{name}.safetensors"
                batches = _batches(backbone, store, missing, device, view)
                _write(path, view, missing, _with_pauses(batches, quiet))
                missing, parts = _kept(cache, key, view, rows)
    for mapped_rows, mapped in parts:
        if np.array_equal(mapped_rows, rows):
            return mapped
    if not parts:
        return embed(backbone, store, rows, device, view)  # no rows at all
    found = torch.empty(len(rows), *parts[0][1].shape[1:])
    for some, features in parts:
        _, there, here = np.intersect1d(some, rows, assume_unique=True, return_indices=True)
        found[torch.from_numpy(here)] = features[torch.from_numpy(there)]
    return found


def _with_pauses(batches: Iterator[Tensor], quiet: Quiet) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        quiet.pause()


def _ingredients(
    backbone: Backbone, dataset: Dataset, device: torch.device, view: View
) -> dict[str, Any]:
    folded = isinstance(backbone, Folded)
    return {
        "dataset": dataset.digest,
        "weights": backbone.original if folded else weights_digest(backbone),
        "network": type(backbone.network if folded else backbone).__qualname__,
        # Equal weights may belong to unequal networks: parameters say where to pool, say.
        "reference": backbone.reference,
        "form": form_of(backbone),
        "input": _input_words(backbone.input),
        "view": view,
        "precision": "float32",
        "device": device.type,
        "torch": torch.__version__,
        "batch": batch_size(backbone.input),
    }


def _input_words(spec: InputSpec) -> list[str]:
    given = vars(spec).copy()
    # Only where they say something, so that features in older caches serve on.
    extra = (given.pop("modalities"), given.pop("missing"))
    words = [str(v) for v in given.values()]
    return [*words, *map(str, extra)] if extra[0] else words


def _kept(cache: Path, key: str, view: View, rows: Ints) -> tuple[Ints, list[tuple[Ints, Tensor]]]:
    """Those of `rows` that no file of this key holds, and rows and features of each such file."""
    parts = [p for f in sorted(cache.glob(f"{key}-*.safetensors")) if (p := _mapped(f, view))]
    held = np.concatenate([np.empty(0, np.int64), *(some for some, _ in parts)])
    return np.setdiff1d(rows, held, assume_unique=True), parts


def _mapped(path: Path, view: View) -> tuple[Ints, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            rows, features = file.get_tensor("rows"), file.get_tensor(view)
    except (SafetensorError, OSError, RuntimeError):
        return None  # a damaged cache file is made again
    return rows.numpy(), features


def _write(path: Path, view: View, rows: Ints, batches: Iterator[Tensor]) -> None:
    """Features as they come into a safetensors file, so that memory never holds them all."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        first = next(batches)
        n_bytes = first[0].numel() * 4 * len(rows)
        header = {
            "rows": {"dtype": "I64", "shape": [len(rows)], "data_offsets": [0, rows.nbytes]},
            view: {
                "dtype": "F32",
                "shape": [len(rows), *first.shape[1:]],
                "data_offsets": [rows.nbytes, rows.nbytes + n_bytes],
            },
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight bytes
        file.write(len(text).to_bytes(8, "little") + text + rows.tobytes())
        file.write(first.numpy().data)
        for batch in batches:
            file.write(batch.numpy().data)
