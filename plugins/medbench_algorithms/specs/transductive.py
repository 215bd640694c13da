"""Specs of methods that look at all queries of an episode together."""

from __future__ import annotations

from typing import Final

from medbench.api import AlgorithmSpec

SPECS: Final[tuple[AlgorithmSpec, ...]] = ()
