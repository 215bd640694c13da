"""Specs of methods that make more of few images."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec

SPECS: Final[tuple[AlgorithmSpec, ...]] = ()
