"""What a site's scanner does to every image: gain, tone curve, cast, blur and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medbench_datasets.synthetic.canvas import blurred, grid, wide
from medbench_datasets.synthetic.draws import Floats
from medbench_datasets.synthetic.scene import Batch


def scanned(batch: Batch, pixels: Floats) -> NDArray[np.uint8]:
    """Images ``(b, S, S, C)`` uint8, as the site's scanner would store them.

    The tone curve is ``x (1 + a) / (1 + a x)``, which bends like a power law and, unlike one, is
    rounded alike everywhere.
    """
    image, patient, site = batch.image, batch.patient, batch.site
    b, channels = len(pixels), pixels.shape[-1]
    pixels = blurred(np.clip(pixels, 0.0, 1.0), site.uniform("blur", 0.0, 0.16))
    bend = site.uniform("tone", -0.35, 0.6) + image.uniform("tone", -0.2, 0.3)
    bend = bend[:, None, None, None]
    pixels = pixels * (1.0 + bend) / (1.0 + bend * pixels)
    cast = site.uniform("cast", 0.88, 1.12, channels) * patient.uniform(
        "cast", 0.92, 1.08, channels
    )
    if channels == 1:
        cast = np.ones((b, 1))
    pixels = pixels * cast[:, None, None, :]
    x, y = grid(batch.size)
    ux, uy = image.direction("light/direction")
    slope = image.uniform("light/slope", 0.0, 0.22)
    light = 1.0 + wide(slope) * (wide(ux) * x + wide(uy) * y)
    gain = site.uniform("gain", 0.85, 1.12) * image.uniform("gain", 0.8, 1.15)
    offset = image.uniform("offset", -0.06, 0.06)
    pixels = pixels * (light * wide(gain))[..., None] + offset[:, None, None, None]
    sigma = site.uniform("noise", 0.01, 0.04)[:, None, None, None]
    pixels = pixels + sigma * image.normal("noise", *pixels.shape[1:])
    return np.floor(np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
