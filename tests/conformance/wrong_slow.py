"""A module with hooks that keeps everybody waiting."""

from __future__ import annotations

import time

from medbench.api import hookimpl

time.sleep(0.6)


@hookimpl
def medbench_algorithms():
    return []
