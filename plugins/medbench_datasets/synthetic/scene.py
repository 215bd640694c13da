"""What a domain is given to paint, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench_datasets.synthetic.draws import Draws, Floats, Ints


@dataclass(frozen=True)
class Batch:
    """Images to paint: their classes as two factors, and draws that belong to each level."""

    image: Draws
    patient: Draws
    site: Draws
    forms: Ints
    patterns: Ints
    size: int


@dataclass(frozen=True)
class Scene:
    """Images before the scanner: `pixels` ``(b, S, S, C)`` about 0...1, `masks` ``(b, k, S, S)``.

    Each of the `k` masks is one object; an empty one stands for no object.
    """

    pixels: Floats
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Domain:
    """One kind of imaging: the names of its two factors, and how its images are painted."""

    modality: str
    channels: int
    forms: tuple[str, ...]
    patterns: tuple[str, ...]
    paint: Callable[[Batch], Scene]
