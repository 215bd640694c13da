"""Digits that mean something: the last ones of a result differ from processor to processor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BITS = 32


def printable(values: Floats) -> Floats:
    """`values` to 12 decimals.

    Accuracies are multiples of a small fraction, and ends of their intervals often lie half-way
    between two printed numbers: without the rounding, noise would choose between them.
    """
    found: Floats = np.asarray(values).round(12)
    return found


def settled(p: Floats) -> Floats:
    """Each `p`, however small, to its first 32 bits.

    Logarithms, exponentials and sums round in their own way on each kind of processor, and a table
    must have the same digits on all.
    """
    mantissas, exponents = np.frexp(p)
    found: Floats = np.ldexp(np.rint(np.ldexp(mantissas, _BITS)), exponents - _BITS)
    return found
