"""Shapes and textures on a grid of pixels, for many images at once.

Coordinates run from -1 to 1 over the image; arrays are ``(b, S, S)`` and per-image numbers
``(b,)``. Only operations that IEEE 754 rounds exactly are used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench_datasets.synthetic.draws import Draws, Floats

_LATTICE = 32  # cells of the noise lattice along an edge, a power of two; it repeats beyond


def wide(values: NDArray[Any]) -> NDArray[Any]:
    """Per-image numbers ``(b,)`` shaped to meet ``(b, S, S)``."""
    return values[:, None, None]


def grid(size: int) -> tuple[Floats, Floats]:
    """Coordinates x and y of the pixels' centres, each ``(1, S, S)``."""
    axis = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    return x[None], y[None]


def frame(
    x: Floats, y: Floats, centre: tuple[Floats, Floats], axis: tuple[Floats, Floats], scale: Floats
) -> tuple[Floats, Floats]:
    """Coordinates seen from an object with this centre, direction and scale, all ``(b,)``."""
    dx, dy = x - wide(centre[0]), y - wide(centre[1])
    c, s = wide(axis[0] / scale), wide(axis[1] / scale)
    return c * dx + s * dy, c * dy - s * dx


def inside(distance: Floats, softness: Floats | float) -> Floats:
    """1 where a signed distance is negative, 0 where positive, a ramp of this width between."""
    return np.clip(0.5 - distance / softness, 0.0, 1.0)


def radius(x: Floats, y: Floats) -> Floats:
    """Distance from the origin."""
    return np.sqrt(x * x + y * y)


def wave(phase: Floats) -> Floats:
    """A smooth wave of period 1 between -1 and 1, made of parabolas instead of a sine."""
    t = phase - np.floor(phase)
    s = np.where(t < 0.5, t, t - 0.5)
    arc = 16.0 * s * (0.5 - s)
    return np.where(t < 0.5, arc, -arc)


def smooth_noise(draws: Draws, name: str, x: Floats, y: Floats, cells: Floats | float) -> Floats:
    """Value noise in 0...1 with about this many cells from -1 to 1, continuous in x and y."""
    spacing = wide(cells * 0.5) if isinstance(cells, np.ndarray) else cells * 0.5
    u, v = (x + 1.5) * spacing, (y + 1.5) * spacing
    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i, v - j
    fu, fv = fu * fu * (3.0 - 2.0 * fu), fv * fv * (3.0 - 2.0 * fv)
    # One flat lattice for all images: taking from it is several times quicker than three indices.
    lattice = draws.uniform(name, 0.0, 1.0, _LATTICE * _LATTICE)
    first = np.arange(len(lattice))[:, None, None] * _LATTICE**2
    left, top = i.astype(np.int64) & (_LATTICE - 1), j.astype(np.int64) & (_LATTICE - 1)
    right = (left + 1) & (_LATTICE - 1)
    upper = first + top * _LATTICE
    lower = first + ((top + 1) & (_LATTICE - 1)) * _LATTICE
    values = lattice.reshape(-1)
    a, b = values.take(upper + left), values.take(upper + right)
    c, d = values.take(lower + left), values.take(lower + right)
    above, below = a + (b - a) * fu, c + (d - c) * fu
    result: Floats = above + (below - above) * fv
    return result


def blurred(pixels: Floats, strength: Floats) -> Floats:
    """Images ``(b, S, S, C)`` smoothed by a three-tap kernel with this side weight ``(b,)``.

    At larger sizes the taps are spread, so that a scanner blurs the same share of the image.
    """
    reach = max(1, round(pixels.shape[1] / 28))
    weight = strength[:, None, None, None]
    while True:
        for axis in (1, 2):
            before = _shifted(pixels, reach, axis)
            after = _shifted(pixels, -reach, axis)
            pixels = pixels * (1.0 - 2.0 * weight) + (before + after) * weight
        if reach == 1:
            return pixels
        reach //= 2


def _shifted(pixels: Floats, by: int, axis: int) -> Floats:
    """Moved along an axis, with the border repeated."""
    n = pixels.shape[axis]
    source = np.clip(np.arange(n) - by, 0, n - 1)
    return np.take(pixels, source, axis=axis)


def coloured(colour: tuple[float, float, float]) -> Floats:
    """A colour shaped to meet ``(b, S, S, 3)``."""
    return np.array(colour)[None, None, None, :]


def blend(base: Floats, over: Floats, cover: Floats) -> Floats:
    """`over` painted on `base` ``(b, S, S, C)`` where `cover` ``(b, S, S)`` is 1."""
    return base + (over - base) * cover[..., None]


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Boxes ``(k, 4)`` x0, y0, x1, y1 in pixels, ends excluded, of the masks that are not empty."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(found, np.float32).reshape(-1, 4)
