"""What a job works with, built from its request: data, network, plugin and device."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medbench.api import Backbone, Place
from medbench.backbones import build_backbone
from medbench.config import AlgorithmRef, BackboneRef
from medbench.errors import ContractError, MedbenchError, Unavailable
from medbench.jobs import Job
from medbench.measure import pick_device
from medbench.nesting import mismatch
from medbench.plugins import Entry, Registry, load_factory, registry, resolve_params
from medbench.protocols import EVERYTHING, load_protocol
from medbench.tasks import Target, alone, resolve

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass
class Bench:
    """The parts of one cell or training, built from its request."""

    registry: Registry
    target: Target
    backbone: Backbone
    entry: Entry
    params: dict[str, Any]
    device: torch.device
    seed: int
    source_classes: NDArray[np.int64] | None = None
    """Of the target's data set, by class: its number in the source; -1 where it has none.

    Known of a cell whose method asks (trait ``knows_classes``).
    """

    @property
    def input_dims(self) -> int:
        """How many dimensions one image has, as the algorithm sees it."""
        works_on = self.entry.spec.traits.works_on
        if works_on == "images":
            return 1 + self.backbone.input.n_dims
        return 3 if works_on == "maps" else 1


def build_bench(job: Job, place: Place, rank: int = 0) -> Bench:
    """Open the data and build the network of a job, for process `rank` of it.

    A cell opens its target alone. Raises what data, plugins and devices raise.
    """
    request = job.request
    found = registry()
    protocol, _ = load_protocol(found, request["protocol"])
    name, shot = request["target_dataset"], request["shot"]
    shown = request.get("inputs", EVERYTHING)
    if job.kind == "cell":
        target = alone(found, protocol, place, name, shot, shown)
    else:
        allowed = request["non_commercial"]
        resolved = resolve(
            found,
            protocol,
            place,
            non_commercial=allowed,
            shots=[shot],
            targets=[f"{name}[{shown}]"],
        )
        target = next(t for t in resolved.targets if t.dataset_id == name)
    backbone_ref = BackboneRef(**request["backbone"])
    algorithm_ref = AlgorithmRef(**request["algorithm"])
    unseen = mismatch(found, backbone_ref.name, backbone_ref.params, protocol.n_dims)
    if unseen:
        raise Unavailable(unseen)
    device = device_of(pick_device(request["device"]), rank)
    backbone = build_backbone(
        found,
        backbone_ref,
        image_size=protocol.image_size,
        channels=protocol.channels,
        seed=request["seed"],
        modalities=target.modalities,
    )
    entry = found.get("algorithms", algorithm_ref.name)
    if protocol.task_kind == "segmentation" and entry.spec.traits.works_on == "maps":
        require_places(backbone)
    return Bench(
        found,
        target,
        backbone.to(device),
        entry,
        resolve_params(entry, algorithm_ref.params),
        device,
        request["seed"],
    )


def require_places(backbone: Backbone) -> None:
    """Raise `Unavailable` where maps say nothing of where in a volume they are."""
    for part in backbone.modules():
        if isinstance(part, Backbone) and not part.in_place:
            raise Unavailable(
                f"the maps of {type(part).__name__} are not in the order of the volume's places, "
                "which masks need. Choose slices along depth (axis: 0, planes: 1), or a backbone "
                "for volumes."
            )


def device_of(first: torch.device, rank: int) -> torch.device:
    """Where process `rank` of a training computes: on the CPU, or on a GPU of its own."""
    if first.type != "cuda":
        return first
    return pick_device(f"cuda:{(first.index or 0) + rank}")


def make(entry: Entry, params: Mapping[str, Any], path: str | None = None) -> Any:
    """What a plugin's factory (or that at `path`) makes of parameters. Raises `ContractError`."""
    factory = load_factory(entry, path)
    try:
        return factory(**params)
    except MedbenchError:
        raise
    except TypeError as error:
        raise ContractError(
            f"{entry.name} of {entry.origin()}: {path or entry.spec.factory} does not take the "
            f"parameters of its spec ({', '.join(params) or 'none'}): {error}"
        ) from error


def settle(threads: int) -> None:
    """Make this process ready to compute: its threads, its memory, and kernels that repeat."""
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def _keep_freed_memory() -> None:
    # glibc gives large blocks back to the system at every free, and the kernel clears their pages
    # anew at every allocation: half the time of a training step of conv4 on a CPU.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)
