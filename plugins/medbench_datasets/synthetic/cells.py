"""Blood-cell-like images: a class is the form of the nucleus and the texture of the cytoplasm."""

from __future__ import annotations

import numpy as np

from medbench_datasets.synthetic.canvas import (
    blend,
    coloured,
    frame,
    grid,
    inside,
    radius,
    smooth_noise,
    wave,
    wide,
)
from medbench_datasets.synthetic.draws import Floats, Ints
from medbench_datasets.synthetic.scene import Batch, Domain, Scene

_N_NEIGHBOURS = 4


def _nucleus(forms: Ints, x: Floats, y: Floats, edge: Floats) -> Floats:
    """Cover 0...1 of each image's nucleus, in the cell's coordinates; areas are much alike."""

    def disc(cx: float, cy: float, r: float) -> Floats:
        return inside(radius(x - cx, y - cy) - r, edge)

    round_one = disc(0.08, 0.0, 0.46)
    bean = np.clip(disc(-0.05, 0.0, 0.58) - disc(0.42, 0.0, 0.44), 0.0, 1.0)
    two = np.maximum(disc(-0.36, 0.0, 0.31), disc(0.36, 0.0, 0.31))
    four = np.maximum(
        np.maximum(disc(-0.45, -0.12, 0.22), disc(-0.14, 0.38, 0.22)),
        np.maximum(disc(0.36, 0.3, 0.22), disc(0.38, -0.3, 0.22)),
    )
    ring = np.clip(disc(0.0, 0.0, 0.58) - disc(0.0, 0.0, 0.32), 0.0, 1.0)
    along = np.clip(x, -0.62, 0.62)
    rod = inside(radius(x - along, y) - 0.2, edge)
    cover = rod
    for form, shape in enumerate((round_one, bean, two, four, ring)):
        cover = np.where(wide(forms == form), shape, cover)
    return cover


def paint(batch: Batch) -> Scene:
    """One cell an image, among paler neighbours; the mask is the whole cell."""
    image, patient = batch.image, batch.patient
    x, y = grid(batch.size)
    b = len(batch.forms)
    scale = image.uniform("cell/scale", 0.68, 0.84) * patient.uniform("cell/scale", 0.92, 1.08)
    cx, cy = image.uniform("cell/x", -0.16, 0.16), image.uniform("cell/y", -0.16, 0.16)
    u, v = frame(x, y, (cx, cy), image.direction("cell/axis"), scale)
    squeeze = wide(image.uniform("cell/squeeze", 0.88, 1.12))
    u, v = u * squeeze, v / squeeze
    edge = wide(2.2 / batch.size / scale)
    wobble = smooth_noise(image, "cell/outline", u, v, 3.0) - 0.5
    rim = radius(u, v) - 0.95 - 0.3 * wobble
    cell = inside(rim, edge)
    bend = 0.16 * (smooth_noise(image, "nucleus/bend", u, v, 2.5) - 0.5)
    grown = wide(image.uniform("nucleus/scale", 0.92, 1.12))
    nucleus = _nucleus(batch.forms, (u + bend) / grown, (v - bend) / grown, edge)

    pixels = np.ones((b, batch.size, batch.size, 3)) * coloured((0.9, 0.84, 0.82))
    pale = coloured((0.86, 0.62, 0.62))
    for k in range(_N_NEIGHBOURS):
        dx, dy = image.direction(f"neighbour/{k}/direction")
        away = image.uniform(f"neighbour/{k}/away", 0.75, 1.35)
        size = image.uniform(f"neighbour/{k}/size", 0.28, 0.45)
        r = radius(x - wide(dx * away), y - wide(dy * away)) / wide(size)
        disc = inside(r - 1.0, 0.15) * (0.55 + 0.45 * np.clip(r, 0.0, 1.0))
        pixels = blend(pixels, pale, disc * 0.8)

    tint = patient.uniform("stain", -0.05, 0.05, 3)[:, None, None, :]
    cytoplasm = coloured((0.74, 0.64, 0.78)) + tint
    pixels = blend(pixels, cytoplasm, cell)
    pixels = _granules(batch, pixels, u, v, cell)
    chromatin = 0.14 * (smooth_noise(image, "chromatin", u, v, 9.0) - 0.5)
    dark = coloured((0.36, 0.22, 0.52)) + tint + chromatin[..., None]
    pixels = blend(pixels, dark, nucleus * cell)
    return Scene(pixels, (cell >= 0.5)[:, None])


def _granules(batch: Batch, pixels: Floats, u: Floats, v: Floats, cell: Floats) -> Floats:
    """Cytoplasm with the texture of each image's class."""
    image = batch.image
    pattern = wide(batch.patterns)
    fine = smooth_noise(image, "granules/fine", u, v, 15.0)
    coarse = smooth_noise(image, "granules/coarse", u, v, 7.0)
    strength = wide(image.uniform("granules/strength", 0.8, 1.1))
    dots = np.clip((coarse - 0.52) * 6.0, 0.0, 1.0)
    specks = np.clip((fine - 0.42) * 4.0, 0.0, 1.0)
    stripes = 0.5 + 0.5 * wave(2.2 * v + 0.25 + 0.3 * coarse)
    darkness = np.where(pattern == 1, specks, np.where(pattern == 2, dots, 0.0))
    darkness = np.where(pattern == 4, stripes, darkness)
    brightness = np.where(pattern == 3, dots, 0.0)
    shade = coloured((0.42, 0.26, 0.46))
    vacuole = coloured((0.97, 0.93, 0.95))
    pixels = blend(pixels, shade, cell * darkness * strength * 0.62)
    return blend(pixels, vacuole, cell * brightness * np.minimum(strength, 1.0) * 0.9)


CELLS = Domain(
    modality="light microscopy",
    channels=3,
    forms=(
        "round nucleus",
        "bean-shaped nucleus",
        "bilobed nucleus",
        "segmented nucleus",
        "ring nucleus",
        "rod nucleus",
    ),
    patterns=(
        "clear cytoplasm",
        "fine granules",
        "coarse granules",
        "vacuoles",
        "streaks",
    ),
    paint=paint,
)
