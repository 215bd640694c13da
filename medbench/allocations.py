"""Counts the bytes that tensors take on the CPU: the same number at every run of the same code.

The resident set depends on what the allocator kept and on the size of pages; what tensors asked for
does not, so that a copy too many shows as exactly its size.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch


class TensorBytes:
    """Within a ``with`` block, the highest sum of live bytes that tensors took there on the CPU.

    Attributes: ``peak_bytes`` (above what was there before) and ``total_bytes`` (all that was asked
    for), both None where this torch cannot tell. Memory of numpy and of other libraries is not
    in them.
    """

    peak_bytes: int | None = None
    total_bytes: int | None = None

    def __init__(self) -> None:
        self._stop: Any = None

    def __enter__(self) -> TensorBytes:
        """Start to listen to torch's allocator."""
        # The profiler built on Kineto takes seconds to start; this one, which torch keeps beside
        # it without a public name, takes none.
        start = getattr(torch.autograd, "_enable_profiler_legacy", None)
        stop = getattr(torch.autograd, "_disable_profiler_legacy", None)
        if start is None or stop is None:
            return self
        from torch._C._profiler import _ExperimentalConfig

        words: Any = torch.autograd
        start(
            words.ProfilerConfig(
                words.ProfilerState.CPU,
                False,  # shapes
                True,  # memory
                False,  # stacks
                False,  # operations counted
                False,  # modules
                _ExperimentalConfig(),
            )
        )
        self._stop = stop
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and add up."""
        if self._stop is None:
            return
        live = peak = total = 0
        for thread in self._stop():
            for event in thread:
                if event.kind() == "memory_alloc":
                    size = int(event.cpu_memory_usage())
                    live += size
                    peak, total = max(peak, live), total + max(0, size)
        self.peak_bytes, self.total_bytes = peak, total

    def as_dict(self) -> dict[str, int | None]:
        """Both numbers by the names that records use."""
        return {"peak_tensor_bytes": self.peak_bytes, "total_tensor_bytes": self.total_bytes}
