"""A module with hooks that imports what it should not, and does so slowly."""

from __future__ import annotations

import time

import torch

from medbench.api import hookimpl

time.sleep(0.0)


@hookimpl
def medbench_algorithms():
    return [torch]
