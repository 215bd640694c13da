"""Aligned modalities of an image: which are shown, and which are missing from which test images.

An image with several modalities holds them one after the other in its channels. A protocol's
`Inputs` may show some of them alone, and take some away from a share of test images. Pure numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from medbench.api import Boxes, Dataset, DatasetInfo, did_you_mean
from medbench.draws import Ints, uniforms
from medbench.episodes import Block
from medbench.errors import ProtocolError
from medbench.files import bytes_digest
from medbench.protocols import EVERYTHING, Inputs, Protocol

if TYPE_CHECKING:
    from medbench.opened import Opened

Bools = NDArray[np.bool_]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# One bit each says in an int64 which are missing, beside the number of an image.
_MOST = 16


def wrongly_declared(info: DatasetInfo) -> str | None:
    """What is wrong with the modalities that a dataset declares; None when all is well."""
    names = [modality.name for modality in info.modalities]
    widths = [modality.channels for modality in info.modalities]
    shown = ", ".join(f"{name} ({width})" for name, width in zip(names, widths, strict=True))
    for name in names:
        if not _NAME.fullmatch(name) or name == EVERYTHING:
            return (
                f"info.modalities has one called {name!r}; names are letters, digits, '_', '-' and "
                f"'.', and not {EVERYTHING!r}."
            )
    if len(set(names)) < len(names) or len(names) > _MOST:
        return f"info.modalities are {shown}; {_MOST} at most, with different names, are expected."
    if any(width not in (1, 3) for width in widths):
        return f"info.modalities are {shown} (channels); each has 1 or 3."
    if names and sum(widths) != info.image_shape[-1]:
        return (
            f"info.modalities are {shown} (channels), {sum(widths)} together, and info.image_shape "
            f"{info.image_shape} has {info.image_shape[-1]}."
        )
    return None


def names_of(info: DatasetInfo) -> tuple[str, ...]:
    """Names of the aligned modalities of an image; empty where it has one alone."""
    several = len(info.modalities) > 1
    return tuple(modality.name for modality in info.modalities) if several else ()


def widths_of(info: DatasetInfo) -> tuple[int, ...]:
    """Channels of each of several aligned modalities; empty where an image has one alone."""
    several = len(info.modalities) > 1
    return tuple(modality.channels for modality in info.modalities) if several else ()


@dataclass(frozen=True, eq=False)
class Images:
    """Images ``(b, H, W, C)`` uint8 or volumes, the channels of each of several modalities in
    order (empty for one), and which of these are missing, ``(b, n_modalities)``, if any are.
    """

    pixels: NDArray[np.uint8]
    widths: tuple[int, ...] = ()
    missing: Bools | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def twice(self) -> Images:
        """Each image beside itself."""
        missing = None if self.missing is None else np.repeat(self.missing, 2, axis=0)
        return Images(np.repeat(self.pixels, 2, axis=0), self.widths, missing)


@final
class Chosen(Dataset):
    """Some of the modalities of a dataset, in its order; all else is as it was."""

    def __init__(self, whole: Dataset, names: Sequence[str]) -> None:
        """`names` are those of modalities that `whole` has."""
        self.whole = whole
        info = whole.info
        kept = tuple(m for m in info.modalities if m.name in names)
        starts = np.cumsum([0, *(m.channels for m in info.modalities)]).tolist()
        self._channels = [
            channel
            for modality, start in zip(info.modalities, starts[:-1], strict=True)
            if modality in kept
            for channel in range(start, start + modality.channels)
        ]
        self._names = tuple(m.name for m in kept)
        self.info = replace(
            info, image_shape=(*info.image_shape[:-1], len(self._channels)), modalities=kept
        )
        self.labels, self.splits, self.sites = whole.labels, whole.splits, whole.sites
        self.patients, self.spacings = whole.patients, whole.spacings
        self.times = whole.times

    @property
    def digest(self) -> str:
        """Of the whole dataset and the choice."""
        return bytes_digest(f"{self.whole.digest} {' '.join(self._names)}".encode())

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images with the channels of the chosen modalities."""
        return np.ascontiguousarray(self.whole.read(indices)[..., self._channels])

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As of the whole dataset."""
        return self.whole.read_masks(indices)

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """As of the whole dataset."""
        return self.whole.read_boxes(indices)


def shown_of(protocol: Protocol, inputs: Inputs, datasets: Sequence[Opened]) -> list[Opened]:
    """The protocol's datasets with the modalities that `inputs` shows.

    Raises `ProtocolError` where these are not the same for all, or one is not there.
    """
    where = f"protocol {protocol.name}, inputs {inputs.label!r}"
    found = [_shown(where, inputs, opened) for opened in datasets]
    by_name = {opened.name: names_of(opened.dataset.info) for opened in found}
    if len(set(by_name.values())) > 1:
        told = "; ".join(f"{k}: {', '.join(v) or 'one alone'}" for k, v in by_name.items())
        raise ProtocolError(
            f"{where}: its datasets have different modalities ({told}), and a network takes one "
            "list of them. Name those that all have in 'inputs: [{modalities: [...]}]'."
        )
    names = next(iter(by_name.values()))
    for key, shares in (("missing", inputs.missing), ("missing_support", inputs.missing_support)):
        strange = [name for name in shares if name not in names]
        if strange:
            raise ProtocolError(
                f"{where}: {key} names {strange[0]!r}, and the images have "
                f"{', '.join(names) or 'one modality alone'}.{did_you_mean(strange[0], names)}"
            )
        if names and all(shares.get(name) == 1 for name in names):
            raise ProtocolError(
                f"{where}: {key} takes every modality from every image; leave one below 1."
            )
    return found


def _shown(where: str, inputs: Inputs, opened: Opened) -> Opened:
    if inputs.modalities is None:
        return opened
    info = opened.dataset.info
    known = [modality.name for modality in info.modalities]
    for name in inputs.modalities:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "declares none"
            raise ProtocolError(
                f"{where}: dataset {opened.name} {has}, and modality {name!r} is asked for."
                f"{did_you_mean(name, known)}"
            )
    if len(inputs.modalities) == len(known):
        return opened
    return replace(opened, dataset=Chosen(opened.dataset, inputs.modalities))


# --- missing from test images --------------------------------------------------------------------


def missing_in(inputs: Inputs, names: Sequence[str], key: str, block: Block) -> tuple[Ints, Ints]:
    """What each support and query image of a block lacks: ``(n, n_support)``, ``(n, n_query)``.

    Bit k of a number says that the k-th modality is missing. It is a pure function of `key`, the
    episode and the image's place in it, so all methods meet the same; what a smaller share takes
    away a larger one does too. No image loses everything: where all would be missing, that of the
    smallest share stays, and of equal ones that with the largest random number.
    """
    sides = [("support", inputs.missing_support, block.support)]
    sides.append(("query", inputs.missing, block.query))
    found = []
    for side, shares, rows in sides:
        lacks = _drawn(shares, names, f"missing/{side}/{key}", block.first, rows.shape)
        found.append((lacks << np.arange(len(names))).sum(axis=-1))
    return found[0], found[1]


def _drawn(
    shares: Mapping[str, float], names: Sequence[str], key: str, first: int, shape: Any
) -> Ints:
    """``(n, n_images, n_modalities)`` of 0 and 1."""
    n, n_images = shape
    lacks = np.zeros((n, n_images, len(names)), np.int64)
    if not shares:
        return lacks
    drawn = np.ones(lacks.shape)
    share = np.array([shares.get(name, 0.0) for name in names])
    for k, name in enumerate(names):
        for i in range(n if name in shares else 0):
            drawn[i, :, k] = uniforms(f"{key}/{name}", first + i, n_images)
    lacks[drawn < share] = 1
    # Of those with the smallest share, the largest number.
    stays = np.where(share == share.min(), drawn, -1.0).argmax(axis=-1)
    nothing = np.nonzero(lacks.all(axis=-1))
    lacks[(*nothing, stays[nothing])] = 0
    return lacks


def lacking(patterns: Ints, n_modalities: int) -> Bools:
    """Numbers ``(...)`` of `missing_in` as ``(..., n_modalities)``."""
    found: Bools = (patterns[..., None] >> np.arange(n_modalities) & 1).astype(np.bool_)
    return found


def drawn_digest(patterns: Sequence[Ints]) -> str:
    """A digest of what `missing_in` returned."""
    return bytes_digest(b"".join(np.ascontiguousarray(p, "<i8").tobytes() for p in patterns))


def told(inputs: Inputs, names: Sequence[str], patterns: Sequence[Ints]) -> dict[str, Any]:
    """For a record: the modalities shown, and the share of images that lacked each."""
    found: dict[str, Any] = {"label": inputs.label, "modalities": list(names)}
    for side, lacks in zip(("support", "query"), patterns, strict=True):
        shares = lacking(lacks, len(names)).reshape(-1, len(names)).mean(axis=0)
        found[f"missing_of_{side}"] = {
            name: round(float(share), 6)
            for name, share in zip(names, shares, strict=True)
            if share > 0
        }
    return found
