"""An algorithm whose module reaches behind medbench.api."""

from __future__ import annotations

from wrong_algorithms import Mean

from medbench import episodes
from medbench.stats import estimate  # noqa: F401

__all__ = ["Mean", "episodes"]
