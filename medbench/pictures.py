"""Pictures of answers: a few query images with what is true and what was predicted, in one strip.

Masks: the predicted one is a wash of its class's colour, the true one a line of it. Boxes: the
predicted ones are in their class's colour, and as many as the image has true ones, the surest; the
true ones are thin and white. Whose pictures these are is the data's licence's business: records
hold them apart from all else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medbench.api import Boxes, Detections

MOST: Final = 4
"""So many queries of an episode are shown, the first."""
_SIDE: Final = 144
_GAP: Final = 4
_PAPER: Final = (128, 128, 128)
_BLACK: Final = (0, 0, 0)
_WHITE: Final = (255, 255, 255)
_WASH: Final = 0.5
_QUALITY: Final = 80
# Okabe and Ito's colours, which everyone can tell apart; first what is seen on grey images, on
# stained ones and on the eye's.
_COLOURS: Final = (
    (0, 158, 115),
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
    (204, 121, 167),
    (230, 159, 0),
)

Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def mask_strip(images: Pixels, true: Masks, found: Masks) -> bytes:
    """Images ``(n, H, W, C)`` with masks ``(n, n_way, H, W)``, as a WebP file."""
    tiles = []
    for image, truth, answer in zip(images, true, found, strict=True):
        tile = _tile(image)
        pixels = np.asarray(tile).astype(np.float64)
        for mask, colour in _coloured(answer):
            inside = _fitted(mask, tile)
            pixels[inside] = (1 - _WASH) * pixels[inside] + _WASH * np.array(colour)
        for mask, colour in _coloured(truth):
            line = _outline(_fitted(mask, tile))
            pixels[_grown(line) & ~line] *= 0.4
            pixels[line] = colour
        tiles.append(Image.fromarray(pixels.round().astype(np.uint8)))
    return _strip(tiles)


def most_shown(images: Pixels, true: Masks, found: Masks) -> tuple[Pixels, Masks, Masks]:
    """Of volumes ``(n, D, H, W, C)`` and masks ``(n, n_way, D, H, W)`` one slice each.

    That in which the true masks are largest, of a volume without any the predicted ones; as
    `mask_strip` takes them.
    """
    by_slice = true.sum(axis=(1, 3, 4))
    none = ~true.any(axis=(1, 2, 3, 4))
    by_slice[none] = found.sum(axis=(1, 3, 4))[none]
    at = by_slice.argmax(axis=1)
    rows = np.arange(len(at))
    return images[rows, at], true[rows, :, at], found[rows, :, at]


def box_strip(images: Pixels, true: Sequence[Boxes], found: Sequence[Detections]) -> bytes:
    """Images ``(n, H, W, C)`` with boxes in their pixels, as a WebP file."""
    tiles = []
    for image, truth, answer in zip(images, true, found, strict=True):
        tile = _tile(image)
        draw = ImageDraw.Draw(tile)
        scale = tile.width / image.shape[1]
        surest = np.argsort(-answer.scores, kind="stable")[: len(truth.labels)]
        # The surest last, so that it lies on top.
        for i in surest[::-1]:
            _rectangle(draw, answer.xyxy[i] * scale, _colour(int(answer.labels[i])), 2)
        for box in truth.xyxy:
            _rectangle(draw, box * scale, _WHITE, 1)
        tiles.append(tile)
    return _strip(tiles)


def _colour(i: int) -> tuple[int, int, int]:
    return _COLOURS[i % len(_COLOURS)]


def _coloured(masks: Masks) -> list[tuple[Masks, tuple[int, int, int]]]:
    return [(mask, _colour(i)) for i, mask in enumerate(masks)]


def _tile(image: Pixels) -> Image.Image:
    """One image in colours, its longer side `_SIDE` pixels."""
    height, width, channels = image.shape
    grey = image[..., 0] if channels == 1 else image
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(grey).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _fitted(mask: Masks, tile: Image.Image) -> Masks:
    resized = Image.fromarray(mask).resize(tile.size, Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.bool_)


def _outline(mask: Masks) -> Masks:
    """The pixels of a mask beside one that is not, or at the border of the image."""
    inner = np.pad(mask, 1)
    inside = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    line: Masks = mask & ~inside
    return line


def _grown(mask: Masks) -> Masks:
    wide = np.pad(mask, 1)
    grown: Masks = mask | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return grown


def _rectangle(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.float64],
    colour: tuple[int, int, int],
    width: int,
) -> None:
    x0, y0, x1, y1 = (round(v) for v in box.tolist())
    # Edges of a box lie between pixels: the last one inside it is one before.
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_BLACK)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)


def _strip(tiles: Sequence[Image.Image]) -> bytes:
    """Tiles of the same size side by side, with `_GAP` pixels between them."""
    width, height = tiles[0].size
    whole = Image.new("RGB", (len(tiles) * (width + _GAP) - _GAP, height), _PAPER)
    for i, tile in enumerate(tiles):
        whole.paste(tile, (i * (width + _GAP), 0))
    out = io.BytesIO()
    whole.save(out, "WEBP", quality=_QUALITY, method=6)
    return out.getvalue()
