"""How fast the machine is at this moment, by three fixed pieces of work.

A cell's times mean little without it: the same runner is slower when it is warm, shared or given
another frequency. The work never changes within one `VERSION`, so what differs between two
measurements of it is the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from medbench.contention import CoreWait
from medbench.measure import clock, settle

# Raised whenever the work below changes: numbers of two versions are not compared.
VERSION = 1
_SAMPLES = 8
_SIDE = 384
_STREAM = 1 << 21
_SMALL_OPERATIONS = 300


class Calibration:
    """Times arithmetic, memory traffic and the overhead of small operations on one device.

    Time spent waiting for a core is not in it, as the gate takes it out of a cell's times too.

    Methods differ in what limits them, and so do the ways in which a machine slows down: the three
    are kept apart, and how far they disagree says how much a correction by them can be trusted.
    """

    def __init__(self, device: torch.device, wait: CoreWait) -> None:
        self._device, self._wait = device, wait
        self._matrix = torch.linspace(-1, 1, _SIDE * _SIDE, device=device).view(_SIDE, _SIDE)
        self._source = torch.ones(_STREAM, device=device)
        self._sink = torch.empty_like(self._source)
        self._small = torch.ones(8, device=device)
        self._work: dict[str, Callable[[], object]] = {
            "matmul_s": self._multiply,
            "stream_s": self._copy,
            "dispatch_s": self._dispatch,
        }
        self._found: dict[str, list[float]] = {name: [] for name in self._work}
        self._round(1)

    def sample(self) -> None:
        """Add one value of each kind, the median of several, in seconds."""
        for name, values in self._round(_SAMPLES).items():
            self._found[name].append(round(median(values), 8))

    def as_dict(self) -> dict[str, Any]:
        """What the record keeps: the version of the work, and its seconds in order of sampling."""
        return {"version": VERSION, **self._found}

    def _round(self, n: int) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in self._work}
        for _ in range(n):
            for name, work in self._work.items():
                start, waited = clock(self._device), self._wait.seconds()
                work()
                settle(self._device)
                waited = self._wait.seconds() - waited
                times[name].append(clock(self._device) - start - waited)
        return times

    def _multiply(self) -> object:
        return self._matrix @ self._matrix

    def _copy(self) -> object:
        return self._sink.copy_(self._source)

    def _dispatch(self) -> object:
        small = self._small
        for _ in range(_SMALL_OPERATIONS):
            small = small + 1.0
        return small
