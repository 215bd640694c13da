"""Chest-radiograph-like images: a class is the kind of shadow and how shadows are arranged."""

from __future__ import annotations

import numpy as np

from medbench_datasets.synthetic.canvas import (
    frame,
    grid,
    inside,
    radius,
    smooth_noise,
    wave,
    wide,
)
from medbench_datasets.synthetic.lesions import PATTERNS, Kind, arrange, stamp
from medbench_datasets.synthetic.scene import Batch, Domain, Scene

_KINDS = (
    Kind("nodules", 0.5, 0.5, softness=0.25),
    Kind("bullae", -0.42, -0.42, softness=0.3),
    Kind("cavities", 0.5, -0.4, hole=0.58, softness=0.3, size=1.3),
    Kind("band shadows", 0.5, 0.5, aspect=3.6, size=1.15),
    Kind("fissures", -0.42, -0.42, aspect=3.6, size=1.15),
    Kind("haloed shadows", -0.42, 0.5, hole=0.58, softness=0.3, size=1.3),
)


def paint(batch: Batch) -> Scene:
    """One thorax an image: lungs, heart, spine, ribs and shadows; each shadow is an object."""
    image, patient = batch.image, batch.patient
    x, y = grid(batch.size)
    centre = image.uniform("chest/x", -0.12, 0.12), image.uniform("chest/y", -0.12, 0.12)
    scale = image.uniform("chest/scale", 0.88, 1.08) * patient.uniform("chest/scale", 0.95, 1.05)
    tilt = image.uniform("chest/tilt", -0.15, 0.15)
    norm = np.sqrt(1.0 + tilt * tilt)
    u, v = frame(x, y, centre, (1.0 / norm, tilt / norm), scale)
    breadth = wide(patient.uniform("lung/breadth", 0.31, 0.38))
    height = wide(patient.uniform("lung/height", 0.66, 0.78))
    apart = wide(patient.uniform("lung/apart", 0.38, 0.44))
    left = radius((u + apart) / breadth, v / height) - 1.0
    right = radius((u - apart) / breadth, v / height) - 1.0
    lungs = np.maximum(inside(left, 0.2), inside(right, 0.2))
    heart = inside(radius((u - 0.12) / 0.3, (v - 0.32) / 0.34) - 1.0, 0.2)
    spine = inside(np.abs(u) - 0.09, 0.1)
    body = inside(radius(u / 1.02, v / 1.35) - 1.0, 0.15)
    n_ribs = wide(patient.uniform("ribs/count", 3.0, 3.8))
    shift = wide(patient.uniform("ribs/phase"))
    ribs = np.clip(wave(n_ribs * (v + 0.35 * u * u) + shift), 0.0, 1.0)
    grain = smooth_noise(image, "lung/grain", u, v, 12.0) - 0.5
    pixels = 0.06 + body * 0.56
    pixels = pixels - lungs * (0.3 - 0.09 * ribs - 0.08 * grain)
    pixels = pixels + 0.2 * heart * lungs + 0.14 * spine * body

    placed = arrange(image, batch.patterns, room=0.76, base=0.15)
    value, masks = stamp(image, _KINDS, batch.forms, placed, u, v)
    # Shadows replace what lies behind in part, so that they are seen on lung and heart alike.
    pixels = pixels + value * (1.0 - 0.35 * np.abs(value))
    return Scene(pixels[..., None], masks)


XRAY = Domain(
    modality="radiography",
    channels=1,
    forms=tuple(kind.name for kind in _KINDS),
    patterns=PATTERNS,
    paint=paint,
)
