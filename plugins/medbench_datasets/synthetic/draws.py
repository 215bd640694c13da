"""Random numbers as a pure function of (seed, name, index), the same on every machine.

numpy's generators are reproducible in their bits but not, by promise, in their distributions; a
hash of counters needs no state either, so that any image can be made alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


def mixed(words: Words) -> Words:
    """SplitMix64's output function (Steele, Lea, Flood 2014) of each word."""
    z = words + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MUL_1
    z = (z ^ (z >> np.uint64(27))) * _MUL_2
    return z ^ (z >> np.uint64(31))


def uniforms(words: Words) -> Floats:
    """The upper 53 bits of each word as a number in 0...1, 1 excluded."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """Named draws for a batch of things, each with its own index: images, patients or sites."""

    seed: int
    indices: Ints

    def words(self, name: str, *shape: int) -> Words:
        """Hashed words ``(b, *shape)`` that belong to this name."""
        base = np.array([derive_seed("synthetic", self.seed, name)], np.uint64)
        keys = mixed(mixed(base) ^ mixed(self.indices.astype(np.uint64)))
        n = int(np.prod(shape, dtype=np.int64))
        lanes = np.arange(n, dtype=np.uint64) * _GAMMA
        return mixed(keys[:, None] + lanes).reshape(len(self.indices), *shape)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, *shape: int) -> Floats:
        """Uniform numbers ``(b, *shape)`` in ``low...high``."""
        return low + (high - low) * uniforms(self.words(name, *shape))

    def sign(self, name: str, *shape: int) -> Floats:
        """-1 or 1, each with probability one half."""
        return np.where(self.uniform(name, 0.0, 1.0, *shape) < 0.5, -1.0, 1.0)

    def direction(self, name: str, *shape: int) -> tuple[Floats, Floats]:
        """Unit vectors of random direction, as (x, y).

        The tangent of the half angle gives sine and cosine by division alone, which every machine
        rounds alike; library sines differ in their last bit. The angle is not quite uniform.
        """
        t = self.uniform(f"{name}/t", -1.0, 1.0, *shape)
        turn = np.floor(self.uniform(f"{name}/quarter", 0.0, 4.0, *shape))
        scale = 1.0 + t * t
        x, y = (1.0 - t * t) / scale, 2.0 * t / scale
        x, y = np.where(turn % 2 == 0, x, -y), np.where(turn % 2 == 0, y, x)
        flip = np.where(turn < 2, 1.0, -1.0)
        return x * flip, y * flip

    def normal(self, name: str, *shape: int) -> Floats:
        """Nearly normal numbers, mean 0 and variance 1: the sum of four uniforms of 16 bits."""
        words = self.words(name, *shape)
        total = np.zeros(words.shape)
        for shift in (0, 16, 32, 48):
            total += ((words >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64)
        return (total / 65536.0 - 2.0 + 2.0 / 65536.0) * math.sqrt(3.0)
