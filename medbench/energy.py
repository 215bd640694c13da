"""The energy that episodes take on a GPU, by the counter that Zeus reads (extra ``energy``).

The counter ticks some ten times a second, and an episode takes milliseconds, so episodes are run
one after the other for a while, apart from those that are timed. The processor's own counters
belong to root and count every process on the machine: they are left alone.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

# Twenty ticks or more, so that one more or less is 5 %.
WINDOW_S = 2.0
_KEY = "medbench episodes"


def episode_energy(
    device: torch.device, episode: Callable[[int], object], n: int, window_s: float = WINDOW_S
) -> dict[str, Any]:
    """Joules of one of `n` episodes, averaged over as many as `window_s` seconds hold.

    ``episode_j`` is None where there is no counter, and ``not_measured_because`` says why; else
    ``n_episodes``, ``window_s`` and ``counter`` say what it was measured with. What `episode`
    raises passes through.
    """
    if device.type != "cuda":
        return _none("the counters of a processor are root's, and count all processes")
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return _none("Zeus is not installed: pip install 'medbench[energy]'")
    index = device.index or 0
    try:
        monitor = ZeusMonitor(gpu_indices=[index], cpu_indices=[])
        if not monitor.gpus.supportsGetTotalEnergyConsumption(index):
            return _none("this GPU has no counter of energy")
        monitor.begin_window(_KEY)
    except Exception as error:  # its errors have no common base
        return _none(f"Zeus: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    began, count = time.perf_counter(), 0
    try:
        for i in itertools.cycle(range(n)):
            episode(i)
            count += 1
            if time.perf_counter() - began >= window_s:
                break
    except BaseException:
        monitor.end_window(_KEY, cancel=True)
        raise
    found = monitor.end_window(_KEY)
    joules = float(found.gpu_energy[index])
    if not joules > 0:
        return _none("the counter stood still")
    return {
        "episode_j": joules / count,
        "n_episodes": count,
        "window_s": float(found.time),
        "counter": f"of the GPU, by Zeus {importlib.metadata.version('zeus')}",
    }


def _none(why: str) -> dict[str, Any]:
    return {"episode_j": None, "not_measured_because": why}
