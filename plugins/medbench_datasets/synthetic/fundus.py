"""Fundus-like images: a class is the kind of lesion on the retina and how lesions are arranged."""

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
    wide,
)
from medbench_datasets.synthetic.draws import Floats
from medbench_datasets.synthetic.lesions import PATTERNS, Kind, arrange, stamp
from medbench_datasets.synthetic.scene import Batch, Domain, Scene

_KINDS = (
    Kind("haemorrhages", -0.75, -0.75, softness=0.4),
    Kind("hard exudates", 0.85, 0.85, softness=0.3),
    Kind("laser scars", 0.8, -0.7, hole=0.55, softness=0.3, size=1.25),
    Kind("flame haemorrhages", -0.8, -0.8, aspect=3.4, size=1.15),
    Kind("nerve fibre streaks", 0.85, 0.85, aspect=3.4, size=1.15),
    Kind("pale-centred spots", -0.75, 0.8, hole=0.55, softness=0.3, size=1.25),
)


def _vessels(batch: Batch, u: Floats, v: Floats) -> Floats:
    """Darkness 0...1 of the vessels: parabolas that leave the optic disc at ``u = -0.5``."""
    shape = batch.patient
    dark = np.zeros(u.shape)
    for k, (bend, width) in enumerate([(0.55, 0.05), (0.16, 0.04), (1.4, 0.04)]):
        for side in (-1.0, 1.0):
            c = wide(shape.uniform(f"vessel/{k}/{side}", 0.7 * bend, 1.3 * bend))
            wiggle = 0.14 * (smooth_noise(shape, f"vessel/{k}/{side}/wiggle", u, v, 4.0) - 0.5)
            w = v + wiggle
            miss = np.abs(w * w - c * (u + 0.5)) / np.sqrt(4.0 * w * w + c * c)
            right_side = (w * side > 0.0) & (u > -0.55)
            dark = np.maximum(dark, np.where(right_side, inside(miss - width, 0.06), 0.0))
    return dark


def paint(batch: Batch) -> Scene:
    """One eye an image: disc, vessels, macula and lesions; each lesion is an object."""
    image, patient = batch.image, batch.patient
    x, y = grid(batch.size)
    centre = image.uniform("eye/x", -0.1, 0.1), image.uniform("eye/y", -0.1, 0.1)
    scale = image.uniform("eye/scale", 0.88, 1.02)
    tilt = image.uniform("eye/tilt", -0.35, 0.35)
    norm = np.sqrt(1.0 + tilt * tilt)
    u, v = frame(x, y, centre, (1.0 / norm, tilt / norm), scale)
    u = u * wide(image.sign("eye/side"))
    edge = 2.5 / batch.size
    eye = inside(radius(u, v) - 0.97, edge)
    tint = patient.uniform("retina/tint", -0.06, 0.06, 3)[:, None, None, :]
    mottle = smooth_noise(patient, "retina/mottle", u, v, 6.0) - 0.5
    retina = coloured((0.68, 0.36, 0.2)) + tint + 0.1 * mottle[..., None]
    retina = retina * (1.0 - 0.22 * radius(u, v))[..., None]
    vessels = _vessels(batch, u, v)
    retina = blend(retina, coloured((0.42, 0.12, 0.09)), vessels * 0.65)
    macula = np.clip(1.0 - (radius(u - 0.25, v) / 0.3), 0.0, 1.0)
    retina = retina * (1.0 - 0.3 * macula)[..., None]
    cup = wide(patient.uniform("disc/size", 0.14, 0.19))
    retina = blend(retina, coloured((0.95, 0.8, 0.55)), inside(radius(u + 0.5, v) - cup, 0.06))

    placed = arrange(image, batch.patterns, room=0.72, base=0.15)
    value, masks = stamp(image, _KINDS, batch.forms, placed, u, v)
    retina = blend(retina, coloured((0.22, 0.03, 0.03)), np.clip(-value, 0.0, 1.0))
    retina = blend(retina, coloured((1.0, 0.9, 0.55)), np.clip(value, 0.0, 1.0))
    pixels = blend(np.full((*eye.shape, 3), 0.03), retina, eye)
    return Scene(pixels, masks)


FUNDUS = Domain(
    modality="fundus photography",
    channels=3,
    forms=tuple(kind.name for kind in _KINDS),
    patterns=PATTERNS,
    paint=paint,
)
