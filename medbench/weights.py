"""What stands for a backbone's weights in a content key; planning needs it, and no torch."""

from __future__ import annotations

from pathlib import Path

from medbench.config import BackboneRef
from medbench.errors import DataMissing, UsageError
from medbench.files import file_digest
from medbench.plugins import Entry


def weights_ingredient(entry: Entry, ref: BackboneRef, seed: int) -> str:
    """Random weights by their seed, a file by its bytes, pretrained ones by name.

    Raises `UsageError` when the backbone has no pretrained weights, `DataMissing` for a file that
    is not there.
    """
    check_weights(entry, ref)
    if ref.weights == "random":
        return f"random:{seed}"
    if ref.weights == "pretrained":
        return f"pretrained:{ref.name}"
    return f"file:{file_digest(weights_path(ref.weights))}"


def check_weights(entry: Entry, ref: BackboneRef) -> None:
    """Raise as `weights_ingredient` does."""
    if ref.weights == "pretrained" and not entry.spec.pretrained_on:
        raise UsageError(
            f"backbone {ref.name!r} of {entry.origin()} has no pretrained weights; use "
            "'weights: random' or the path of a .safetensors or .pth file."
        )
    if ref.weights not in ("random", "pretrained"):
        weights_path(ref.weights)


def weights_path(text: str) -> Path:
    """The weights file that `text` names. Raises `DataMissing`."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise DataMissing(
            f"weights {text!r}: there is no file {path.absolute()}; give 'random', 'pretrained' or "
            "the path of a .safetensors or .pth file."
        )
    return path
