"""Scopes that measure time and memory, and the description of the machine they ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

from medbench import __version__
from medbench.errors import Unavailable

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def pick_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises `Unavailable` when this machine lacks it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Unavailable(f"There is no device {name!r}; use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise Unavailable(f"Device {name!r} is not supported; use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise Unavailable(
                f"Device {name!r} was asked for, and this machine has {count} CUDA devices that "
                "torch can use. Use --device cpu, or see 'medbench doctor'."
            )
    return device


def clock(device: torch.device) -> float:
    """Seconds, after all work queued on the device is done."""
    settle(device)
    return time.perf_counter()


def settle(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The highest memory use within a ``with`` block, for that block alone.

    Attributes, in bytes, None where this system cannot tell: ``host_bytes`` (peak resident set of
    this process), ``host_added_bytes`` (the same above what was resident at the start),
    ``device_bytes`` (peak allocated on the device) and ``device_reserved_bytes``.
    """

    host_bytes: int | None = None
    host_added_bytes: int | None = None
    device_bytes: int | None = None
    device_reserved_bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        """Measures nothing before the block is entered."""
        self._device = device
        self._base: int | None = None

    def __enter__(self) -> PeakMemory:
        """Reset the kernel's and the allocator's high-water marks."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            # 5 resets VmHWM (Linux, proc(5)); elsewhere a peak for a scope cannot be had.
            _CLEAR_REFS.write_text("5")
            self._base = psutil.Process().memory_info().rss
        except OSError:
            self._base = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the marks."""
        if self._base is not None:
            peak = _high_water_bytes()
            if peak is not None:
                self.host_bytes = peak
                self.host_added_bytes = max(0, peak - self._base)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.device_bytes = torch.cuda.max_memory_allocated(self._device)
            self.device_reserved_bytes = torch.cuda.max_memory_reserved(self._device)

    def as_dict(self) -> dict[str, int | None]:
        """The four numbers by name."""
        return {
            "peak_host_bytes": self.host_bytes,
            "peak_host_added_bytes": self.host_added_bytes,
            "peak_device_bytes": self.device_bytes,
            "peak_device_reserved_bytes": self.device_reserved_bytes,
        }


def _high_water_bytes() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine as a record tells it; ``class`` is what times may be compared within."""
    cpu = _cpu_name()
    found: dict[str, Any] = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "class": f"{cpu}, {torch.get_num_threads()} thread",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_bytes"] = properties.total_memory
        found["class"] = properties.name
    elif torch.get_num_threads() != 1:
        found["class"] += "s"
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {
        "medbench": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: importlib.metadata.version(name) for name in ("numpy", "timm")},
        "system": f"{platform.system()} {platform.release()}",
    }
