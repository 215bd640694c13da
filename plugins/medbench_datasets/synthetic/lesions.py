"""Lesions as parametric stamps: what six kinds of a domain are made of, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench_datasets.synthetic.canvas import inside, radius
from medbench_datasets.synthetic.draws import Draws, Floats, Ints

N_PLACES = 6
"""The most lesions in one image."""


PATTERNS = ("solitary", "paired", "clustered", "in a row", "in a ring")
"""What `arrange` can do, in the order of its numbers."""


@dataclass(frozen=True)
class Kind:
    """One kind of lesion: how bright at rim and core, and its shape.

    ``hole`` is the core's share of the radius, ``softness`` the width of the edge in radii,
    ``aspect`` how much longer than wide, ``size`` its radius beside the others'.
    """

    name: str
    rim: float
    core: float
    hole: float = 0.5
    softness: float = 0.3
    aspect: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Placed:
    """Where the lesions of each image lie, ``(b, N_PLACES)``; those not `present` are not drawn."""

    x: Floats
    y: Floats
    radius: Floats
    present: NDArray[np.bool_]


def stamp(
    draws: Draws, kinds: Sequence[Kind], chosen: Ints, placed: Placed, x: Floats, y: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Brightness to add ``(b, S, S)``, and each lesion's own mask ``(b, N_PLACES, S, S)``.

    `chosen` ``(b,)`` picks the kind of each image's lesions.
    """

    def fact(name: str) -> Floats:
        table = np.array([getattr(kind, name) for kind in kinds], np.float64)
        return table[chosen][:, None, None, None]

    b = len(chosen)
    ax, ay = draws.direction("lesion/axis", N_PLACES)
    # Neighbours lie roughly alike, as streaks along one vessel do.
    ax, ay = 0.8 * ax[:, :1] + 0.2 * ax, 0.8 * ay[:, :1] + 0.2 * ay
    norm = np.sqrt(ax * ax + ay * ay) + 1e-9
    stretch = np.sqrt(fact("aspect"))[:, 0, 0]
    scale = placed.radius * fact("size")[:, 0, 0]
    c, s = _wide(ax / norm / scale), _wide(ay / norm / scale)
    dx, dy = x[:, None] - _wide(placed.x), y[:, None] - _wide(placed.y)
    u = (c * dx + s * dy) / _wide(stretch)
    v = (c * dy - s * dx) * _wide(stretch)
    r = radius(u, v)
    soft = np.maximum(fact("softness"), 2.0 / x.shape[-1] / _wide(scale))
    body = inside(r - 1.0, soft)
    core = inside(r - fact("hole"), soft)
    value = fact("rim") * body + (fact("core") - fact("rim")) * core
    value = value * _wide(draws.uniform("lesion/contrast", 0.85, 1.15, N_PLACES))
    present = placed.present[:, :, None, None]
    value = np.where(present, value, 0.0)
    # The strongest lesion wins where two meet: sums would make new, brighter kinds.
    strongest = np.argmax(np.abs(value), axis=1)
    rows = np.arange(b)[:, None, None]
    height, width = np.indices(strongest.shape[1:])
    masks = (r <= 1.0) & present
    # A lesion between two pixel centres still has the pixel it lies in.
    return value[rows, strongest, height, width], masks | (_nearest_pixel(r) & present)


def _nearest_pixel(r: Floats) -> NDArray[np.bool_]:
    flat = r.reshape(*r.shape[:2], -1)
    nearest = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(nearest, flat.argmin(axis=2)[..., None], True, axis=2)
    return nearest.reshape(r.shape)


def _wide(values: Floats) -> Floats:
    return values[:, :, None, None]


def arrange(draws: Draws, patterns: Ints, room: float, base: float) -> Placed:
    """Places for the five arrangements that domains share, within a circle of radius `room`.

    Patterns: 0 solitary and large, 1 a pair far apart, 2 a tight cluster, 3 a row, 4 a ring.
    `base` is a lesion's radius.
    """
    k = np.arange(N_PLACES)
    b = len(patterns)
    ux, uy = draws.direction("arrange/axis")
    cx, cy = draws.direction("arrange/centre")
    away = draws.uniform("arrange/away", 0.0, 1.0)
    # Direction of each member of the ring: exact sixth parts of a turn.
    h = math.sqrt(3.0) / 2.0
    ring_x = np.array([1.0, 0.5, -0.5, -1.0, -0.5, 0.5])
    ring_y = np.array([0.0, h, h, 0.0, -h, -h])
    triple_x = np.array([1.0, -0.5, -0.5, 0.0, 0.0, 0.0])
    triple_y = np.array([0.0, h, -h, 0.0, 0.0, 0.0])
    along = np.array([-1.5, -0.5, 0.5, 1.5, 0.0, 0.0])
    pair = np.array([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    zero = np.zeros(N_PLACES)
    local_x = np.stack(
        [zero, pair * room * 0.62, triple_x * base * 1.5, along * room * 0.42, ring_x * room * 0.6]
    )[patterns]
    local_y = np.stack([zero, zero, triple_y * base * 1.5, zero, ring_y * room * 0.6])[patterns]
    count = np.array([1, 2, 3, 4, 6])[patterns]
    size = np.array([1.7, 1.25, 1.0, 0.95, 0.85])[patterns]
    reach = np.array([0.7, 0.25, 0.65, 0.3, 0.25])[patterns] * room
    wobble = 0.06 * room
    x = (ux[:, None] * local_x - uy[:, None] * local_y) + (cx * away * reach)[:, None]
    y = (uy[:, None] * local_x + ux[:, None] * local_y) + (cy * away * reach)[:, None]
    x = x + draws.uniform("arrange/x", -wobble, wobble, N_PLACES)
    y = y + draws.uniform("arrange/y", -wobble, wobble, N_PLACES)
    grown = draws.uniform("arrange/size", 0.85, 1.2, N_PLACES)
    radii = base * size[:, None] * grown
    return Placed(x, y, radii, np.broadcast_to(k, (b, N_PLACES)) < count[:, None])
