"""Everything a plugin author imports, and the only module of medbench that a plugin may import.

A plugin is a distribution with an entry point in group ``medbench``. Its module implements hooks
(see ``medbench.hookspecs``) that return *specs*: frozen descriptions, cheap to import, whose
``factory`` names the code that is loaded only when it is used. Importing this module imports
neither torch nor numpy, so that ``medbench list`` stays instant with a hundred plugins.

Shapes are written as in ``torch.linalg``: the last dimensions are the episode, any leading ``...``
dimensions are a batch of episodes.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pluggy

from medbench.api.algorithms import (
    Algorithm,
    Budget,
    Detector,
    Predictor,
    Source,
    Support,
    Task,
    TrainingRun,
)
from medbench.api.datasets import (
    Boxes,
    ClassSplit,
    Dataset,
    DatasetInfo,
    Detections,
    Modality,
    Place,
)
from medbench.api.specs import (
    AlgorithmSpec,
    BackboneSpec,
    Citation,
    Conformance,
    DatasetSpec,
    Excuse,
    InputSpec,
    Parameter,
    ProtocolSpec,
    Stage,
    TaskKind,
    Traits,
)
from medbench.errors import (
    ContractError,
    DataError,
    DataMissing,
    MedbenchError,
    NonFinite,
    Unavailable,
    did_you_mean,
)

if TYPE_CHECKING:
    from medbench.folding import fold_batchnorm
    from medbench.network import Backbone

__all__ = [
    "Algorithm",
    "AlgorithmSpec",
    "Backbone",
    "BackboneSpec",
    "Boxes",
    "Budget",
    "Citation",
    "ClassSplit",
    "Conformance",
    "ContractError",
    "DataError",
    "DataMissing",
    "Dataset",
    "DatasetInfo",
    "DatasetSpec",
    "Detections",
    "Detector",
    "Excuse",
    "InputSpec",
    "MedbenchError",
    "Modality",
    "NonFinite",
    "Parameter",
    "Place",
    "Predictor",
    "ProtocolSpec",
    "Source",
    "Stage",
    "Support",
    "Task",
    "TaskKind",
    "TrainingRun",
    "Traits",
    "Unavailable",
    "derive_seed",
    "did_you_mean",
    "fold_batchnorm",
    "hookimpl",
]

hookimpl = pluggy.HookimplMarker("medbench")


def __getattr__(name: str) -> Any:
    # Backbone derives from torch.nn.Module; loading it late keeps torch out of `medbench list`.
    if name == "Backbone":
        from medbench.network import Backbone

        return Backbone
    if name == "fold_batchnorm":
        from medbench.folding import fold_batchnorm

        return fold_batchnorm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (BLAKE2b of their JSON).

    >>> derive_seed("a", 1) == derive_seed("a", 1) != derive_seed("a", 2)
    True
    """
    text = json.dumps([str(p) for p in parts], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
