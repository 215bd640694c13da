"""CT-slice-like images: a class is the kind of lesion in the abdomen and how they are arranged."""

from __future__ import annotations

import numpy as np

from medbench_datasets.synthetic.canvas import frame, grid, inside, radius, smooth_noise, wide
from medbench_datasets.synthetic.draws import Floats
from medbench_datasets.synthetic.lesions import PATTERNS, Kind, arrange, stamp
from medbench_datasets.synthetic.scene import Batch, Domain, Scene

_KINDS = (
    Kind("cysts", -0.42, -0.42, softness=0.2),
    Kind("enhancing nodules", 0.42, 0.42, softness=0.2),
    Kind("rim-enhancing abscesses", 0.45, -0.4, hole=0.58, softness=0.25, size=1.3),
    Kind("wedge infarcts", -0.42, -0.42, aspect=3.4, size=1.15),
    Kind("calcified strands", 0.45, 0.45, aspect=3.4, size=1.15),
    Kind("target lesions", -0.4, 0.45, hole=0.58, softness=0.25, size=1.3),
)

# Organs as (name, x, y, half width, half height, grey), the liver on the image's left.
_ORGANS = (
    ("liver", -0.36, -0.1, 0.42, 0.44, 0.1),
    ("spleen", 0.52, 0.02, 0.2, 0.28, 0.08),
    ("stomach", 0.26, -0.32, 0.24, 0.18, -0.1),
    ("left kidney", 0.36, 0.34, 0.14, 0.17, 0.14),
    ("right kidney", -0.36, 0.38, 0.14, 0.17, 0.14),
    ("aorta", 0.04, 0.14, 0.07, 0.07, 0.2),
)


def paint(batch: Batch) -> Scene:
    """One axial slice an image: wall, fat, organs, spine and lesions; each lesion is an object."""
    image, patient = batch.image, batch.patient
    x, y = grid(batch.size)
    centre = image.uniform("slice/x", -0.1, 0.1), image.uniform("slice/y", -0.1, 0.1)
    scale = image.uniform("slice/scale", 0.9, 1.05)
    tilt = image.uniform("slice/tilt", -0.3, 0.3)
    norm = np.sqrt(1.0 + tilt * tilt)
    u, v = frame(x, y, centre, (1.0 / norm, tilt / norm), scale)
    # Some archives store slices mirrored, and the class has no side.
    u = u * wide(image.sign("slice/mirrored"))
    width = wide(patient.uniform("body/width", 0.88, 0.96))
    depth = wide(patient.uniform("body/depth", 0.72, 0.84))
    r = radius(u / width, v / depth)
    skin, wall = inside(r - 1.0, 0.07), inside(r - 0.86, 0.07)
    grain = smooth_noise(image, "grain", u, v, 14.0) - 0.5
    pixels: Floats = 0.04 + 0.22 * skin + 0.22 * wall
    for name, ox, oy, half_width, half_height, grey in _ORGANS:
        dx, dy = (
            patient.uniform(f"{name}/x", -0.06, 0.06),
            patient.uniform(f"{name}/y", -0.06, 0.06),
        )
        grown = wide(patient.uniform(f"{name}/size", 0.88, 1.12))
        shape = radius(
            (u - ox - wide(dx)) / (half_width * grown), (v - oy - wide(dy)) / (half_height * grown)
        )
        shade = wide(grey + image.uniform(f"{name}/phase", -0.04, 0.04))
        pixels = pixels + shade * inside(shape - 1.0, 0.25) * wall
    bone = radius(u / 0.15, (v - 0.52) / 0.15)
    pixels = pixels + (0.4 * inside(bone - 1.0, 0.4) - 0.2 * inside(bone - 0.45, 0.4)) * skin
    pixels = pixels + 0.06 * grain * skin

    placed = arrange(image, batch.patterns, room=0.68, base=0.15)
    value, masks = stamp(image, _KINDS, batch.forms, placed, u, v)
    pixels = pixels + value * (1.0 - 0.35 * np.abs(value))
    return Scene(pixels[..., None], masks)


CT = Domain(
    modality="CT",
    channels=1,
    forms=tuple(kind.name for kind in _KINDS),
    patterns=PATTERNS,
    paint=paint,
)
