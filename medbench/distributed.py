"""What the processes of one training do together: share tasks, add up gradients, stay alike."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medbench.errors import ContractError, MedbenchError, Unavailable

HOST = "127.0.0.1"
# Processes wait for each other while the first validates, however long that takes. One that dies is
# noticed by other means.
_PATIENCE = datetime.timedelta(days=30)


class PeerLost(MedbenchError):
    """A process of a shared training could not be reached: it died, or never came."""


@dataclass(frozen=True)
class Seat:
    """Which process of a shared training this is, and where all of them meet.

    ``rank`` counts from 0, the process that validates, saves and writes the record.
    """

    rank: int
    world: int
    port: int


@final
@dataclass(frozen=True)
class Group:
    """The processes of one training, seen from one of them; by default there is only that one.

    Every process must call the same methods in the same order. Sums are in the order of ranks, and
    the same to the last bit in all of them.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, saves and writes the record."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` tasks are this process's: neighbours, so that ranks keep their order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add_up(self, parameters: Iterable[nn.Parameter], value: float) -> float:
        """Add up gradients, in place, and `value`, which is returned, over all processes.

        A gradient that no process has stays None.
        """
        if self.world == 1:
            return value
        own = [p for p in parameters if p.requires_grad]
        facts = [value, *(float(p.grad is not None) for p in own)]
        total, *having = self.sum(torch.tensor(facts, dtype=torch.float64)).tolist()
        used = [p for p, n in zip(own, having, strict=True) if n]
        for dtype in sorted({p.dtype for p in used}, key=str):
            # One message: what takes time is their number.
            some = [p for p in used if p.dtype == dtype]
            flat = torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in some]
            )
            summed = torch.split(self.sum(flat), [p.numel() for p in some])
            for p, part in zip(some, summed, strict=True):
                p.grad = part.view(p.shape).clone().to(p.device)
        return float(total)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a tensor that has the same shape in all of them."""
        if self.world == 1:
            return values
        found = values.detach().to(self.device).contiguous().clone()
        with _reaching():
            dist.all_reduce(found)
        return found.to(values.device)

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to what they are in the first process."""
        if self.world == 1:
            return
        for tensor in tensors:
            there = tensor.detach().to(self.device).contiguous()
            with _reaching():
                dist.broadcast(there, 0)
            with torch.no_grad():
                tensor.copy_(there)

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum(torch.zeros(1))

    def check_alike(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Raise `ContractError`, naming a tensor, when it differs between processes."""
        if self.world == 1:
            return
        own = torch.tensor([_fingerprint(t) for t in tensors.values()], dtype=torch.int64)
        first = own.clone()
        self.from_first([first])
        differs = self.sum((own != first).to(torch.int64))
        names = [name for name, n in zip(tensors, differs.tolist(), strict=True) if n]
        if names:
            raise ContractError(
                f"The {self.world} processes of this training differ in {names[0]!r} {where} "
                f"({len(names)} of {len(tensors)} tensors do). What a step changes may depend only "
                "on gradients that run.together has added up; or let the spec not claim "
                "parallel=True."
            )


@contextmanager
def joined(seat: Seat, device: torch.device) -> Iterator[Group]:
    """Meet the other processes of a training, and part from them at the end.

    NCCL carries the messages between GPUs, gloo those between CPUs. Raises `Unavailable` where
    torch was built without.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    has = dist.is_available() and (
        dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()
    )
    if not has:
        raise Unavailable(
            f"{seat.world} processes were asked for to share a training, and this torch "
            f"({torch.__version__}) has no {backend}. Use --training-processes 1."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback is not None:
        # By default gloo listens where the network can reach it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    with _reaching():
        # The first process has opened the store, see `Crew`.
        store = dist.TCPStore(HOST, seat.port, timeout=_PATIENCE)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend, store=store, rank=seat.rank, world_size=seat.world, timeout=_PATIENCE
        )
    try:
        yield Group(seat.rank, seat.world, device)
    finally:
        dist.destroy_process_group()


def open_store() -> Any:
    """Where processes of one machine meet; its ``port`` is one that was free."""
    store: Any = dist.TCPStore  # type: ignore[attr-defined]
    return store(HOST, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ConnectionError) as error:
        raise PeerLost(f"Another process of this training is gone: {error}") from error


def _fingerprint(tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(data.data, digest_size=8).digest(), "big", signed=True)


# --- running statistics --------------------------------------------------------------------------


@final
class RunningStatistics:
    """Makes BatchNorm's running statistics what they were had one process seen all batches.

    Each batch moves them by an affine map, so maps of the processes are applied in order of ranks.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Remember the statistics before a step."""
        self._norms: list[tuple[_BatchNorm, Tensor, Tensor, int]] = []
        for module in modules:
            for norm in module.modules():
                if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                    assert norm.running_var is not None
                    assert norm.num_batches_tracked is not None
                    before = int(norm.num_batches_tracked)
                    entry = (norm, norm.running_mean.clone(), norm.running_var.clone(), before)
                    self._norms.append(entry)

    def merge(self, group: Group) -> None:
        """Take in what the batches of all processes have changed since."""
        if not self._norms or group.world == 1:
            return
        counts = torch.zeros(group.world, len(self._norms), dtype=torch.int64)
        for i, (norm, _, _, before) in enumerate(self._norms):
            counts[group.rank, i] = int(norm.num_batches_tracked or 0) - before
        counts = group.sum(counts)
        moving = [i for i in range(len(self._norms)) if int(counts[:, i].sum())]
        if not moving:
            return
        parts = []
        for i in moving:
            norm, mean, variance, before = self._norms[i]
            keeps, later = _kept(norm.momentum, before, counts[:, i].tolist(), group.rank)
            for now, old in ((norm.running_mean, mean), (norm.running_var, variance)):
                assert now is not None
                parts.append(later * (now.double() - keeps * old.double()))
        sums = torch.split(group.sum(torch.cat(parts)), [len(part) for part in parts])
        found = iter(sums)
        for i in moving:
            norm, mean, variance, before = self._norms[i]
            total = int(counts[:, i].sum())
            keeps, _ = _kept(norm.momentum, before, [total], 0)
            for now, old in ((norm.running_mean, mean), (norm.running_var, variance)):
                assert now is not None
                now.copy_(keeps * old.double() + next(found))
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(before + total)


def _kept(
    momentum: float | None, before: int, counts: Sequence[int], rank: int
) -> tuple[float, float]:
    """What is left of the old value after the batches of `rank`, and of those after all later ones.

    Without momentum the statistics are the mean over all batches so far.
    """
    own, after = counts[rank], sum(counts[rank + 1 :])
    if momentum is not None:
        return (1 - momentum) ** own, (1 - momentum) ** after
    seen = before + own
    # A mean weighs all batches alike, whatever their order.
    return before / max(1, seen), seen / max(1, before + sum(counts))
